"""The prompt of a language model that reranks: the texts before and after the document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rerank_grpc.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a language model is asked about one query and one document.

    The parts of a tuple are encoded each by itself, and their tokens put
    together, as the model card's own code does it. Control tokens stand in
    `system` and `suffix` as they are written.

    Attributes:
        system: what stands before everything, the same for all requests.
        head: what stands before the document, with {instruction} and {query}.
        lead: what each document begins with; no token joins it with the head.
        suffix: what stands after the document; never cut.
        instruction: the default one; "" if the model takes none.
        answers: the words whose logits are compared; one alone is the score.
    """

    system: tuple[str, ...]
    head: tuple[str, ...]
    lead: str
    suffix: tuple[str, ...]
    answers: tuple[str, ...]
    instruction: str = ""

    def heads(self, query: str, instruction: str) -> list[str]:
        """Fills a request's texts into `head`."""
        return [text.format(query=query, instruction=instruction or self.instruction) for text in self.head]


# What documents may begin with, for a check that the head's last token is the same before all of them.
PROBES = ("word", " word", "\nword", "7", "。", "深", "'s", "...", "()", "")


def check_prompt(tokenizer_file: Path, prompt: Prompt) -> tuple[int, ...]:
    """Checks that a tokenizer knows what a prompt is made of, and returns the answers' token ids.

    Raises:
        ModelLoadError: if an answer is no token of its own, if a control token
            of the prompt is none here, or if the tokens of the document depend
            on the head.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the Rust library raises bare Exception
        raise ModelLoadError(
            f"{tokenizer_file}: not a tokenizer this version reads ({type(error).__name__}): copy it again"
        ) from error

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    answers = []
    for word in prompt.answers:
        ids = encode(word)
        if len(ids) != 1:
            raise ModelLoadError(
                f"{tokenizer_file}: has no token {word!r}, which a reranker of this family answers with: "
                "use the tokenizer that the model came with"
            )
        answers += ids
    for token in control_tokens(prompt):
        if tokenizer.token_to_id(token) is None or len(encode(token)) != 1:
            raise ModelLoadError(
                f"{tokenizer_file}: has no control token {token!r}, which the prompt of this family needs: "
                "use the tokenizer that the model came with"
            )
    for text in PROBES:
        if encode(prompt.head[-1] + prompt.lead + text) != encode(prompt.head[-1]) + encode(
            prompt.lead + text
        ):
            raise ModelLoadError(
                f"{tokenizer_file}: joins the prompt's last token with the document's first: not supported"
            )
    return tuple(answers)


def control_tokens(prompt: Prompt) -> list[str]:
    """Lists the control tokens that a prompt is written with, "<…>" each."""
    text = "".join(prompt.system + prompt.suffix)
    return sorted({part.partition(">")[0].join("<>") for part in text.split("<")[1:]})
