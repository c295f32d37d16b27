"""The prompts of the language models that rerank, as data, and whether a tokenizer knows their words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence import prompt as prompts
from rerank_grpc.evidence.prompt import Slot
from rerank_grpc.types import Scoring


@dataclass(frozen=True, slots=True)
class Prompt:
    """The question that a language model is asked about one query and one document.

    The parts of a tuple are encoded each by itself, and their tokens put together, as the model card's own
    code does it. Control tokens stand in `system` and `suffix` as they are written.
    """

    system: tuple[str, ...]  # the beginning, the same for all requests
    before_document: tuple[str, ...]  # the parts up to the document, with {instruction} and {query}
    lead: str  # the beginning of each document; no token joins it with the part before
    suffix: tuple[str, ...]  # the parts after the document; never cut
    answers: tuple[str, ...]  # the words whose logits are compared; one alone is the score
    scoring: Scoring
    max_tokens: int  # the longest sequence; a table of positions may be longer
    instruction: str = ""  # the default one; "" if the model takes none

    def filled(self, query: str, instruction: str) -> list[str]:
        """Fills a request's texts into `before_document`."""
        chosen = instruction or self.instruction
        return [text.format(query=query, instruction=chosen) for text in self.before_document]

    @property
    def control_tokens(self) -> list[str]:
        """The control tokens of `system` and `suffix`, "<…>" each."""
        text = "".join(self.system + self.suffix)
        return sorted({part.partition(">")[0].join("<>") for part in text.split("<")[1:]})


# The prompt of the model card, https://huggingface.co/Qwen/Qwen3-Reranker-0.6B (section "Transformers
# Usage"): system text and think block are encoded apart from the text between them.
QWEN3 = Prompt(
    system=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    ),
    before_document=("<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",),
    lead=" ",
    suffix=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    answers=("yes", "no"),
    scoring=Scoring.SOFTMAX,
    max_tokens=32_768,
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)

# The prompt of FlagEmbedding (FlagEmbedding/inference/reranker/decoder_only/base.py), which encodes
# "A: …", the line break, "B: …" and the question each by itself. Its score is the logit of "Yes" alone.
GEMMA = Prompt(
    system=("<bos>",),
    before_document=("A: {query}", "\n", "B:"),
    lead=" ",
    suffix=(
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the query "
        "by providing a prediction of either 'Yes' or 'No'.",
    ),
    answers=("Yes",),
    scoring=Scoring.SIGMOID,
    max_tokens=8_192,
)

# By architecture: the family of a decoder alone does not say that it answers in words.
PROMPTS: Mapping[str, Prompt] = {"Qwen3ForCausalLM": QWEN3, "GemmaForCausalLM": GEMMA}


def as_data(prompt: Prompt) -> prompts.Prompt:
    """Writes a prompt as segments."""
    slots = {"{instruction}": Slot.INSTRUCTION, "{query}": Slot.QUERY, "{document}": Slot.DOCUMENT}
    texts = [*prompt.before_document[:-1], f"{prompt.before_document[-1]}{prompt.lead}{{document}}"]
    divided = [re.split("({[a-z]+})", text) for text in texts]
    asked = [tuple(slots.get(part, part) for part in parts if part) for parts in divided]
    segments = (*((text,) for text in prompt.system), *asked, *((text,) for text in prompt.suffix))
    instructed = segments if prompt.instruction else ()
    return prompts.Prompt(segments, "catalogue.toml", instructed, prompt.instruction)


# Beginnings of documents, for a check that the last token before all of them is the same.
PROBES = ("word", " word", "\nword", "7", "。", "深", "'s", "...", "()", "")


def check_prompt(tokenizer_file: Path, prompt: Prompt) -> tuple[int, ...]:
    """Checks that a tokenizer knows the words of a prompt, and returns the token ids of the answers.

    Raises ModelLoadError if an answer or a control token is no token of its own,
    or if the tokens of a document depend on the text before it.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the Rust library raises bare Exception
        raise ModelLoadError(
            f"{tokenizer_file}: not a tokenizer this version reads ({type(error).__name__}): copy it again"
        ) from error
    answers = [_answer(tokenizer, tokenizer_file, word) for word in prompt.answers]
    for token in prompt.control_tokens:
        if tokenizer.token_to_id(token) is None or len(_ids(tokenizer, token)) != 1:
            raise ModelLoadError(
                f"{tokenizer_file}: has no control token {token!r}, which the prompt of this family needs: "
                "use the tokenizer that the model came with"
            )
    before = prompt.before_document[-1]
    for text in (prompt.lead + probe for probe in PROBES):
        if _ids(tokenizer, before + text) != _ids(tokenizer, before) + _ids(tokenizer, text):
            raise ModelLoadError(
                f"{tokenizer_file}: joins the prompt's last token with the document's first: not supported"
            )
    return tuple(answers)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _answer(tokenizer: Tokenizer, path: Path, word: str) -> int:
    ids = _ids(tokenizer, word)
    if len(ids) != 1:
        raise ModelLoadError(
            f"{path}: has no token {word!r}, which a reranker of this family answers with: "
            "use the tokenizer that the model came with"
        )
    return ids[0]
