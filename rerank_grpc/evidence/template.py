"""Reads a checkpoint's chat template as a prompt, as sentence-transformers' CrossEncoder uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import cut, original_tokenizer, prove_tokens
from rerank_grpc.evidence.pasting import Filling, Pasting, pasting, probes
from rerank_grpc.evidence.prompt import Placeholder, Prompt
from rerank_grpc.evidence.rendering import Conversation, Rendered, render, used_variables

# Those of rerankers have 3,000 at most; parsing takes a second for each 100,000, and holds up other threads.
TEMPLATE_CHARACTERS = 1 << 16
PROMPT_CHARACTERS = 1 << 15  # of what stands around the texts, which is tokenized for each probe
DEFAULT, UNNAMED = "default", ""
SPECIAL_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# Keys of processing_kwargs["chat_template"] that are no variables of the template: lengths, and a flag of
# sentence-transformers' own.
LENGTHS = frozenset({"padding", "truncation", "max_length", "return_tensors", "restore_suffix"})
# Those that make apply_chat_template do something else, unless they are empty or false.
UNSUPPORTED = (
    *("tools", "documents", "continue_final_message", "return_assistant_tokens_mask"),
    *("sanitize_control_tokens", "tokenizer_kwargs", "processor_kwargs"),
)
# As in sentence_transformers/base/modality.py.
FLAT_FAMILIES = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})
STRUCTURED_SIGNS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
PAIR = (Placeholder.QUERY, Placeholder.DOCUMENT)
INSTRUCTED = tuple(Placeholder)


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """The use of a template, by the files of sentence-transformers."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)  # processing_kwargs["chat_template"]
    message_format: str = "auto"  # "flat", "structured", or "auto": by the template
    instruction: str = ""  # the default system message
    family: str = ""  # config.json's model_type


class ChatTemplate(NamedTuple):
    """A template, and the file it stands in."""

    source: str
    file: Path


def read_template(directory: Path, *, settings: TemplateSettings) -> Prompt:
    """Renders a checkpoint's chat template once with probes, and returns what it puts around its texts.

    Raises ModelLoadError for a template that is missing, does more than to paste its texts, or does not
    take the default system message, and for a tokenizer that joins texts with control tokens.
    """
    templates = find_templates(directory)
    template = _chosen(templates, settings.kwargs, directory)
    if len(template.source) > TEMPLATE_CHARACTERS:
        raise _too_long(template.file)
    plain, instructed = _pastings(template, templates, settings, directory)
    tokenizer_file = directory / "tokenizer.json"
    tokenizer = original_tokenizer(tokenizer_file)
    found = [each for each in (plain, instructed) if each]
    if any(
        sum(len(part) for part in each.text if isinstance(part, str)) > PROMPT_CHARACTERS for each in found
    ):
        raise ModelLoadError(
            f"{template.file}: writes more than {PROMPT_CHARACTERS:,} characters around its texts, which is "
            "not supported: shorten it"
        )
    prompt = Prompt(
        segments=cut(plain.text, tokenizer) if plain else (),
        source=str(template.file.relative_to(directory)),
        instructed=cut(instructed.text, tokenizer) if instructed else (),
        instruction=settings.instruction,
        strips=frozenset().union(*(each.strips for each in found)),
    )
    prove_tokens(prompt, tokenizer, tokenizer_file)
    return prompt


def find_templates(directory: Path) -> dict[str, ChatTemplate]:
    """Finds the chat templates of a checkpoint by name, as AutoTokenizer does; a single one's name is "".

    Files of templates take the place of tokenizer_config.json's. Raises ModelLoadError.
    """
    files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    main = directory / "chat_template.jinja"
    if main.is_file():
        files = {DEFAULT if files else UNNAMED: main} | files
    if files:
        return {name: ChatTemplate(_read(path), path) for name, path in files.items()}
    path = directory / "tokenizer_config.json"
    named = read_json(path).get("chat_template") if path.is_file() else None
    try:
        if isinstance(named, list):
            named = {each["name"]: each["template"] for each in named}
        elif not isinstance(named, dict):
            named = {UNNAMED: named} if named is not None else {}
        return {str(name): ChatTemplate("" + source, path) for name, source in named.items()}
    except (KeyError, TypeError):
        raise ModelLoadError(
            f"{path}: its chat_template is neither a text nor a list of texts with names: copy it again"
        ) from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * TEMPLATE_CHARACTERS:
            raise _too_long(path)
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({type(error).__name__}): copy it again") from error


def _too_long(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path}: a template of more than {TEMPLATE_CHARACTERS:,} characters is not supported: shorten it"
    )


def _chosen(
    templates: Mapping[str, ChatTemplate], kwargs: Mapping[str, Any], directory: Path
) -> ChatTemplate:
    """Chooses as apply_chat_template does; the name may be a whole template itself."""
    settings_file = directory / "sentence_bert_config.json"
    for key in UNSUPPORTED:
        if kwargs.get(key):
            raise ModelLoadError(f"{settings_file}: chat_template asks for {key}, which is not supported")
    name = kwargs.get("chat_template")
    if name is None:
        name = UNNAMED if UNNAMED in templates else DEFAULT
    elif not isinstance(name, str):
        raise ModelLoadError(f"{settings_file}: chat_template is no name of a template: copy it again")
    elif "{" in name and name not in templates:
        return ChatTemplate(name, settings_file)
    if name not in templates:
        missing = "chat_template.jinja" if name == DEFAULT else f"additional_chat_templates/{name}.jinja"
        raise ModelLoadError(
            f"{directory}: has no {missing}, by which it is asked: copy the whole checkpoint"
        )
    return templates[name]


def _pastings(
    template: ChatTemplate, templates: Mapping[str, ChatTemplate], settings: TemplateSettings, directory: Path
) -> tuple[Pasting | None, Pasting | None]:
    """Renders without and with a system message, and returns what each is, None where it serves no request.

    A template that does not take a system message is not asked for one, but for the default one.
    """
    where = str(template.file)
    structured = _is_structured(settings, templates)
    variants = [probes(slots, template.source, where) for slots in (PAIR, INSTRUCTED)]
    groups = [[_conversation(each, structured) for each in variant] for variant in variants]
    variables = _variables(template, settings.kwargs, directory)
    try:
        pair, instructed = render(template.source, variables, groups)
    except (OSError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"{where}: no process can be started to render it ({type(error).__name__}): "
            "start the server by a Python whose sys.executable runs, with memory and processes to spare"
        ) from error
    if settings.instruction:
        return None, pasting(variants[1], instructed, where)
    plain = pasting(variants[0], pair, where)
    return plain, _optional(variants[1], instructed, where, plain)


def _optional(
    fillings: Sequence[Filling], rendered: Sequence[Rendered], where: str, plain: Pasting
) -> Pasting | None:
    """Returns the text with a system message; None if the template does not take one as it takes its pair."""
    try:
        found = pasting(fillings, rendered, where)
    except ModelLoadError:
        return None
    return found if found.strips - {Placeholder.INSTRUCTION} == plain.strips else None


def _is_structured(settings: TemplateSettings, templates: Mapping[str, ChatTemplate]) -> bool:
    """Whether messages are lists of parts; inferred from the one template, and so for several."""
    if settings.message_format != "auto":
        return settings.message_format == "structured"
    if settings.family in FLAT_FAMILIES:
        return False
    if UNNAMED not in templates:
        return True
    return any(sign in templates[UNNAMED].source for sign in STRUCTURED_SIGNS)


def _conversation(filling: Filling, structured: bool) -> Conversation:
    """Makes the messages: the system's, if there is one, then the query and the document."""
    roles = {Placeholder.INSTRUCTION: "system", Placeholder.QUERY: "query", Placeholder.DOCUMENT: "document"}
    return [
        {"role": role, "content": [{"type": "text", "text": filling[slot]}] if structured else filling[slot]}
        for slot, role in roles.items()
        if slot in filling
    ]


def _variables(template: ChatTemplate, kwargs: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Collects what a template sees beside the messages; raises ModelLoadError for an unknown token."""
    tokens = _special_tokens(directory)
    used = used_variables(template.source)
    for name in SPECIAL_TOKENS:
        if name not in tokens and name not in kwargs and name in used:
            raise ModelLoadError(
                f"{directory}/tokenizer_config.json: names no {name}, which {template.file.name} writes: "
                "use the tokenizer that the model came with"
            )
    own = {name: value for name, value in kwargs.items() if name not in {*LENGTHS, "chat_template"}}
    written = {name: token for name, token in tokens.items() if token is not None}
    return {"tools": None, "documents": None, "add_generation_prompt": False, **written, **own}


def _special_tokens(directory: Path) -> dict[str, str | None]:
    """Reads the special tokens that the files name, None for those that they say are missing."""
    path = directory / "tokenizer_config.json"
    found = read_json(path) if path.is_file() else {}
    older = directory / "special_tokens_map.json"
    if "added_tokens_decoder" not in found and older.is_file():
        found |= read_json(older)
    values = {name: found[name] for name in SPECIAL_TOKENS if name in found}
    return {
        name: str(value["content"]) if isinstance(value, dict) and "content" in value else value
        for name, value in values.items()
    }
