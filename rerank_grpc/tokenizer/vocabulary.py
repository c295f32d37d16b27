"""A tokenizer in which no text can become a control token, and the templates that join texts.

Random strings replace the written form of control tokens in memory, among the
added tokens and in the vocabulary, where Unigram's "</s>" is a piece like any
other. Scores, merges and ids stay, so ordinary text keeps its tokens.
"""

from __future__ import annotations

import json
import secrets
import string
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import without_prepending
from rerank_grpc.tokenizer.shortcuts import AsciiTokenizer, ascii_tokenizer, cut_safety

_NAMED_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class Template:
    """The ids of control tokens around texts: prefix A middle B suffix, or prefix A suffix.

    Segment A ends with the first `segment_start` ids of `middle`; None where there are no segments.
    """

    prefix: array[int]
    middle: array[int]
    suffix: array[int]
    segment_start: int | None = None

    @property
    def overhead(self) -> int:
        """The number of control tokens."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The means to tokenize texts for one model."""

    tokenizer: Tokenizer  # adds and recognises no control tokens; neither cuts nor pads
    batches: AsciiTokenizer  # makes the same tokens of batches, without offsets and in less time
    single: Template
    pair: Template
    control_ids: frozenset[int]  # ids that no text may become; the unknown id is not one
    is_control: NDArray[np.bool_]  # [num_ids], the same as a table over all ids
    # Whether a text may be cut before a space between two letters, and the part before it keeps its tokens.
    cuts_prefix: bool
    cuts_suffix: bool  # the same for the part that begins with the space


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerFile:
    """A tokenizer.json as the model's reference reads it: control tokens are recognised in every text."""

    path: Path
    data: Mapping[str, Any]
    tokenizer: Tokenizer  # neither cuts nor pads

    def ids(self, text: str) -> list[int]:
        """Encodes a text, without a template around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def inside(self) -> TokenizerFile:
        """Returns the tokenizer of a text that follows another: nothing is put before its first word."""
        data = without_prepending(self.data)
        return self if data == self.data else _file(self.path, data, _in_memory(data))

    def vocabulary(self, written: Iterable[str] = ()) -> Vocabulary:
        """Hides the control tokens, those of the texts `written` in a prompt among them."""
        with _refusal(self.path):
            added = {each["id"]: each["content"] for each in self.data["added_tokens"]}
            found = {added[token] for text in written for token in self.ids(text) if token in added}
            # White space may be an added token as well, and stays text.
            return _vocabulary(self, {token for token in found if token.strip(f"{string.whitespace}▁")})


def read_tokenizer(path: Path, *, lower_case: bool = False) -> TokenizerFile:
    """Reads a tokenizer.json, for texts in lower case if so told; raises ModelLoadError."""
    with _refusal(path):
        data = json.loads(path.read_bytes())
        lowered = _lower_cased(data) if lower_case else data
        tokenizer = Tokenizer.from_file(str(path)) if lowered is data else _in_memory(lowered)
        return _file(path, lowered, tokenizer)


@contextmanager
def _refusal(path: Path) -> Iterator[None]:
    """Turns the errors of a file that is no tokenizer into a ModelLoadError."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ModelLoadError(
            f"{path}: not a tokenizer this version reads ({reason}): copy it again"
        ) from error


def _file(path: Path, data: Mapping[str, Any], tokenizer: Tokenizer) -> TokenizerFile:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TokenizerFile(path, data, tokenizer)


def _in_memory(data: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def _lower_cased(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Puts Lowercase before the normalizers, as sentence-transformers does, unless it is one of them."""
    normalizer = data.get("normalizer")
    steps = [] if normalizer is None else [normalizer]
    if normalizer is not None and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
    if any(step["type"] == "Lowercase" for step in steps):
        return data
    return {**data, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}}


def _vocabulary(file: TokenizerFile, written: set[str]) -> Vocabulary:
    original, data = file.tokenizer, file.data
    single, pair = _template(original.encode("a b"), last=0), _template(original.encode("a b", "a b"), last=1)
    ids = {*single.prefix, *single.suffix, *pair.prefix, *pair.middle, *pair.suffix}
    written = written | _control_tokens(data, file.path.parent)
    written |= {token for token in map(original.id_to_token, ids) if token is not None}
    ids |= {found for token in written if (found := original.token_to_id(token)) is not None}
    tokenizer = _in_memory(_hide(data, written))
    numbers = tokenizer.get_vocab()  # which takes 0.1 s for a large one
    _check_ids(original, numbers, written)
    control_ids = frozenset(ids - {original.token_to_id(str(_unknown_token(data)))})
    is_control = np.zeros(1 + max(numbers.values(), default=0), dtype=np.bool_)
    is_control[list(control_ids)] = True
    hidden = all(token["content"] in written for token in data["added_tokens"])
    batches = ascii_tokenizer(tokenizer) if hidden else AsciiTokenizer(tokenizer, tokenizer)
    return Vocabulary(tokenizer, batches, single, pair, control_ids, is_control, *cut_safety(data))


def _template(encoding: Encoding, last: int) -> Template:
    """Reads off the encoding of texts 0 to `last` which control tokens the tokenizer puts around them."""
    ids, types, texts = encoding.ids, encoding.type_ids, encoding.sequence_ids
    after_first = len(texts) - texts[::-1].index(0)
    second = texts.index(1) if last else after_first
    after_second = len(texts) - texts[::-1].index(last)
    start = types.index(1) if 1 in types else None
    split = start is None or (last and after_first <= start <= second)
    if not split or types != sorted(types) or not {0, 1}.issuperset(types):
        reason = "its token types do not split at the second text, which is not supported"
        raise ModelLoadError(f"tokenizer.json: {reason}")
    return Template(
        prefix=array("i", ids[: texts.index(0)]),
        middle=array("i", ids[after_first:second]),
        suffix=array("i", ids[after_second:]),
        segment_start=None if start is None else start - after_first,
    )


def _control_tokens(data: Mapping[str, Any], directory: Path) -> set[str]:
    """Collects control tokens as written, from all files that name some."""
    written = {token["content"] for token in data["added_tokens"] if token["special"]}
    written.add(str(_unknown_token(data)))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if file.is_file():
            settings = json.loads(file.read_bytes())
            values = [settings.get(role) for role in _NAMED_TOKENS]
            values += settings.get("additional_special_tokens") or []
            written |= {each["content"] if isinstance(each, dict) else str(each) for each in values if each}
    return written - {"", "None"}


def _unknown_token(data: Mapping[str, Any]) -> str | None:
    model = data["model"]
    if _is_unigram(model):
        return None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
    return cast("str | None", model.get("unk_token"))


def _is_unigram(model: Mapping[str, Any]) -> bool:
    return isinstance(model["vocab"], list)  # older files do not say the type


def _hide(data: Mapping[str, Any], written: set[str]) -> dict[str, Any]:
    """Returns a tokenizer.json's content with the control tokens' written forms replaced."""
    names = {token: secrets.token_hex(16) for token in written}
    model = dict(data["model"])
    if _is_unigram(model):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # a merge that makes a control token, or starts from one, serves no other text
        model["merges"] = [merge for merge in model["merges"] if written.isdisjoint(_pieces(merge))]
    added = [
        {**each, "content": names.get(each["content"], each["content"])} for each in data["added_tokens"]
    ]
    unused = {"post_processor": None, "truncation": None, "padding": None}
    return {**data, "model": model, "added_tokens": added, **unused}


def _pieces(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def _check_ids(original: Tokenizer, after: Mapping[str, int], written: set[str]) -> None:
    """Raises ModelLoadError if a token that was left alone has got another id."""
    for token, number in original.get_vocab(with_added_tokens=True).items():
        if token not in written and after.get(token) != number:
            reason = f"token {number} cannot be kept in its place: write the file anew"
            raise ModelLoadError(f"tokenizer.json: {reason}")
