"""Chat templates become prompts whose texts and tokens are transformers' own, or are refused in one line."""

from __future__ import annotations

import json
import resource
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers
from sentence_transformers.base.modality import InputFormatter
from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import Metaspace

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import has_placeholders, inner_tokenizer, original_tokenizer
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import Placeholder, Prompt
from rerank_grpc.evidence.template import TemplateSettings, find_templates, read_template
from tests.evidence import templates
from tests.evidence.templates import DOCUMENT, FAMILIES, HONEST, HOSTILE, PAIR, QUERY, write

TEXTS = ("how?", " two  spaces ", "", "two\nlines\n", "{{ x }}{% y %}", "深度学习", "👩\u200d🔬 'q'", "\t")
IF_SYSTEM = "{% if messages[0].role == 'system' %}"
CPU_SECONDS = 2


def read(directory: Path, **settings: Any) -> Prompt:
    return read_template(directory, settings=TemplateSettings(**settings))


def texts_of(prompt: Prompt, query: str, document: str, instruction: str = "") -> list[str]:
    filling = {
        Placeholder.QUERY: query,
        Placeholder.DOCUMENT: document,
        Placeholder.INSTRUCTION: instruction or prompt.instruction,
    }
    return [filled(segment, filling, prompt.strips) for segment in prompt.chosen(instruction)]


def ids_of(
    prompt: Prompt, tokenizer: Tokenizer, query: str, document: str, instruction: str = ""
) -> list[int]:
    """The ids of the segments, each encoded by itself."""
    is_metaspace = isinstance(tokenizer.pre_tokenizer, Metaspace)
    behind, ids = inner_tokenizer(tokenizer) if is_metaspace else tokenizer, list[int]()
    texts = texts_of(prompt, query, document, instruction)
    for index, (segment, text) in enumerate(zip(prompt.chosen(instruction), texts, strict=True)):
        chosen = behind if index and has_placeholders(segment) else tokenizer
        ids += chosen.encode(text, add_special_tokens=False).ids
    return ids


class Reference:
    """The conversation of sentence-transformers' CrossEncoder, rendered and encoded by transformers."""

    def __init__(self, directory: Path, **kwargs: Any) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.formatter = InputFormatter("qwen3", processor=self.tokenizer)
        self.kwargs = kwargs

    def text(self, query: str, document: str, instruction: str = "") -> str:
        text: str = self._apply(query, document, instruction, tokenize=False)
        return text

    def ids(self, query: str, document: str, instruction: str = "") -> list[int]:
        ids: list[int] = self._apply(query, document, instruction, tokenize=True)["input_ids"]
        return ids

    def _apply(self, query: str, document: str, instruction: str, **how: Any) -> Any:
        messages = [self.formatter.pair_to_messages((query, document))]
        if instruction:
            messages = self.formatter.prepend_prompt_to_messages(messages, instruction)
        return self.tokenizer.apply_chat_template(messages[0], **how, **self.kwargs)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_template_writes_what_transformers_writes(name, tmp_path):
    source, kwargs = HONEST[name]
    prompt, reference = read(write(tmp_path, source), kwargs=kwargs), Reference(tmp_path, **kwargs)
    for query, document in product(TEXTS, TEXTS):
        assert "".join(texts_of(prompt, query, document)) == reference.text(query, document)
        for instruction in filter(None, TEXTS if prompt.instructed else ()):
            expected = reference.text(query, document, instruction)
            assert "".join(texts_of(prompt, query, document, instruction)) == expected


@pytest.mark.parametrize(("family", "source"), templates.KINDS)
def test_segments_have_the_tokens_of_the_whole_text(family, source, tmp_path):
    make, names, _ = FAMILIES[family]
    write(tmp_path, source, make(), **names)
    prompt, reference = read(tmp_path), Reference(tmp_path)
    tokenizer = original_tokenizer(tmp_path / "tokenizer.json")
    for query, document in product(TEXTS, TEXTS):
        assert ids_of(prompt, tokenizer, query, document) == reference.ids(query, document)
        if prompt.instructed:
            expected = reference.ids(query, document, "Judge.")
            assert ids_of(prompt, tokenizer, query, document, "Judge.") == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_does_more_than_paste_is_refused_soon(name, tmp_path):
    source, said = HOSTILE[name]
    write(tmp_path, source)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(ModelLoadError) as raised:
        read(tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/chat_template.jinja: ")
    assert "\n" not in str(raised.value)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS


def test_the_prompt_is_cut_at_control_tokens(tmp_path):
    prompt = read(write(tmp_path, templates.ZERANK), kwargs={"add_generation_prompt": True})
    assert prompt == Prompt(
        segments=(
            ("<|im_start|>",),
            ("system\n", Placeholder.QUERY),
            ("<|im_end|>\n<|im_start|>",),
            ("user\n", Placeholder.DOCUMENT),
            ("<|im_end|>\n<|im_start|>assistant\n",),
        ),
        source="chat_template.jinja",
    )


def test_a_default_instruction_takes_the_system_messages_place(tmp_path):
    prompt = read(write(tmp_path, templates.QWEN3_ROLES), instruction="Which is right?")
    assert prompt.segments == ()
    assert prompt.instruction == "Which is right?"
    assert prompt.instructed[1][:2] == ("user\n<Instruct>: ", Placeholder.INSTRUCTION)
    assert "<Instruct>: Which is right?\n<Query>: q\n" in "".join(texts_of(prompt, "q", "d"))
    assert "<Instruct>: Another\n<Query>: q\n" in "".join(texts_of(prompt, "q", "d", "Another"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (PAIR, "drops the system message"),
        (
            PAIR + IF_SYSTEM + "{{ raise_exception('No system') }}{% endif %}",
            "raises 'No system'",
        ),
        (PAIR + IF_SYSTEM + "{{ messages[0].content * 2 }}{% endif %}", "2 times"),
    ],
)
def test_a_template_without_a_place_for_a_system_message_takes_no_instruction(source, said, tmp_path):
    write(tmp_path, source)
    assert read(tmp_path).instructed == ()
    with pytest.raises(ModelLoadError, match=said):
        read(tmp_path, instruction="Judge.")


def test_texts_that_are_stripped_are_told(tmp_path):
    assert read(write(tmp_path, templates.STRIPPED)).strips == {Placeholder.QUERY}
    write(tmp_path, f"{QUERY[:-3]}.strip() }}}}|{DOCUMENT[:-3]} | trim }}}}")
    assert read(tmp_path).strips == {Placeholder.QUERY, Placeholder.DOCUMENT}


def test_stripping_of_other_characters_than_white_space_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="changes the document"):
        read(write(tmp_path, f"{QUERY}|{DOCUMENT[:-3]}.strip(' \\n') }}}}"))


def test_special_tokens_come_from_the_tokenizers_files(tmp_path):
    write(tmp_path, "{{ bos_token }}" + QUERY + "{{ eos_token }}" + DOCUMENT + "{{ pad_token }}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert "".join(texts_of(read(tmp_path), "q", "d")) == "<|endoftext|>q<|im_end|>d"
    assert Reference(tmp_path).text("q", "d") == "<|endoftext|>q<|im_end|>d"
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"tokenizer_config.json: names no pad_token"):
        read(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<think>", "bos_token": "</think>"}')
    assert "".join(texts_of(read(tmp_path), "q", "d")) == Reference(tmp_path).text("q", "d")


def test_arguments_of_the_template_are_passed_and_win_over_special_tokens(tmp_path):
    kwargs = {"task": "rank", "bos_token": "B", "max_length": 7, "restore_suffix": False}
    write(tmp_path, "{{ task }} {{ max_length is defined }} {{ bos_token }} " + PAIR)
    assert "".join(texts_of(read(tmp_path, kwargs=kwargs), "q", "d")) == "rank False B qd"


def test_an_argument_that_changes_what_the_template_is_for_is_refused(tmp_path):
    write(tmp_path, PAIR)
    with pytest.raises(ModelLoadError, match=r"sentence_bert_config.json: .* continue_final_message"):
        read(tmp_path, kwargs={"continue_final_message": True})


def test_a_file_of_the_template_takes_the_place_of_the_configurations(tmp_path):
    write(tmp_path, "file " + PAIR)
    set_template(tmp_path, "config " + PAIR)
    assert "".join(texts_of(read(tmp_path), "q", "d")) == Reference(tmp_path).text("q", "d") == "file qd"
    (tmp_path / "chat_template.jinja").unlink()
    prompt = read(tmp_path)
    assert "".join(texts_of(prompt, "q", "d")) == Reference(tmp_path).text("q", "d") == "config qd"
    assert prompt.source == "tokenizer_config.json"


PARTS = PAIR.replace(".content", ".content[0].text")
NAMED = {name: f"{name} {PARTS}" for name in ("default", "reranker")}


def write_named(directory: Path, where: str) -> None:
    """Writes NAMED into a list in tokenizer_config.json, or into files."""
    write(directory, NAMED["default"])
    if where == "list":
        (directory / "chat_template.jinja").unlink()
        set_template(directory, [{"name": name, "template": source} for name, source in NAMED.items()])
        return
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "reranker.jinja").write_text(NAMED["reranker"])


@pytest.mark.parametrize("name", [None, "reranker", "default", f"inline {PARTS}"])
@pytest.mark.parametrize("where", ["files", "list"])
def test_the_template_is_the_one_that_apply_chat_template_picks(where, name, tmp_path):
    write_named(tmp_path, where)
    kwargs = {} if name is None else {"chat_template": name}
    text = "".join(texts_of(read(tmp_path, kwargs=kwargs), "q", "d"))
    assert text == Reference(tmp_path, **kwargs).text("q", "d") == f"{(name or 'default').split()[0]} qd"


def test_several_templates_without_a_default_need_a_name(tmp_path):
    write_named(tmp_path, "files")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no default"):
        Reference(tmp_path).text("q", "d")
    with pytest.raises(ModelLoadError, match=r"has no chat_template.jinja"):
        read(tmp_path)
    assert read(tmp_path, kwargs={"chat_template": "reranker"}).source.endswith("reranker.jinja")


def test_a_name_without_a_template_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"has no additional_chat_templates/reranker.jinja"):
        read(write(tmp_path, PAIR), kwargs={"chat_template": "reranker"})


def test_a_checkpoint_without_templates_is_refused(tmp_path):
    write(tmp_path, "")
    (tmp_path / "chat_template.jinja").unlink()
    assert find_templates(tmp_path) == {}
    with pytest.raises(ModelLoadError, match=r"has no chat_template.jinja"):
        read(tmp_path)


@pytest.mark.parametrize("value", [7, [{"name": "default"}], [7], {"default": 7}])
def test_a_damaged_configuration_is_refused(value, tmp_path):
    write(tmp_path, "")
    (tmp_path / "chat_template.jinja").unlink()
    set_template(tmp_path, value)
    with pytest.raises(ModelLoadError, match=r"neither a text nor a list"):
        read(tmp_path)


@pytest.mark.parametrize("data", [b"\xff{{ x }}", b" " * (2 << 20)])
def test_a_template_file_that_is_no_text_or_too_large_is_refused(data, tmp_path):
    write(tmp_path, "")
    (tmp_path / "chat_template.jinja").write_bytes(data)
    with pytest.raises(
        ModelLoadError, match=r"chat_template.jinja: (cannot be read|a template of more than)"
    ):
        read(tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
@pytest.mark.parametrize("hint", ["", "{# part.type #}", "{# content[0] #}", '{# "type" #}', "{# Type #}"])
def test_the_format_of_messages_is_inferred_as_the_reference_does(family, hint, tmp_path):
    write(
        tmp_path,
        hint + "{% for m in messages %}{% set c = m.content %}"
        "{{ 'flat ' + c if c is string else 'structured ' + (c | first).text }}{% endfor %}",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = InputFormatter(family, processor=tokenizer).message_format
    assert texts_of(read(tmp_path, family=family), "q", "d") == [f"{expected} q{expected} d"]
    for stated in ("flat", "structured"):
        prompt = read(tmp_path, family=family, message_format=stated)
        assert texts_of(prompt, "q", "d") == [f"{stated} q{stated} d"]


def test_a_tokenizer_whose_control_token_swallows_a_texts_space_is_refused(tmp_path):
    tokenizer = templates.qwen()
    tokenizer.add_special_tokens([AddedToken("<score>", lstrip=True)])
    with pytest.raises(ModelLoadError, match=r"tokenizer.json: joins texts with the control tokens"):
        read(write(tmp_path, f"{QUERY}\n{DOCUMENT}<score>", tokenizer))
    write(tmp_path, f"{QUERY}\nd:{DOCUMENT[:-3]} | trim }}}}<score>", tokenizer)
    assert read(tmp_path).strips == {Placeholder.DOCUMENT}


def set_template(directory: Path, value: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": value}))


@pytest.mark.parametrize("executable", [None, "", "/nonexistent/python", "/bin/true"])
def test_a_server_that_cannot_start_a_process_says_so(
    executable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, templates.MXBAI)
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja: no process can be started"):
        read(tmp_path)
