"""A tokenizer in which no text can become a control token, and the templates that join texts.

Random strings replace the written form of control tokens in memory, among the
added tokens and in the vocabulary, where Unigram's "</s>" is a piece like any
other. Scores, merges and ids stay, so ordinary text keeps its tokens.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.tokenizer.shortcuts import AsciiTokenizer, ascii_tokenizer, cut_safety

# Control tokens that a model's tokenizer does not mark as special.
_QWEN = frozenset(
    {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"}
    | {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)
_GEMMA = frozenset(
    {"<bos>", "<eos>", "<pad>", "<mask>", "<2mass>", "[@BOS@]", "<start_of_turn>", "<end_of_turn>"}
    | {f"<unused{number}>" for number in range(99)}
)
UNMARKED: Mapping[str, frozenset[str]] = {"qwen2": _QWEN, "qwen3": _QWEN, "gemma": _GEMMA}
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


@dataclass(frozen=True, slots=True)
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


def read_vocabulary(path: Path, family: str, markers: Collection[str] = ()) -> Vocabulary:
    """Reads a tokenizer.json, or raises ModelLoadError; `markers` are control tokens beside its own."""
    try:
        original, data = Tokenizer.from_file(str(path)), json.loads(path.read_bytes())
        return _vocabulary(original, data, path.parent, family, markers)
    except ModelLoadError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ModelLoadError(
            f"{path}: not a tokenizer this version reads ({reason}): copy it again"
        ) from error


def _vocabulary(
    original: Tokenizer, data: Mapping[str, Any], directory: Path, family: str, markers: Collection[str]
) -> Vocabulary:
    original.no_truncation()
    original.no_padding()
    single, pair = _template(original.encode("a b"), last=0), _template(original.encode("a b", "a b"), last=1)
    written, ids = _control_tokens(data, directory, family)
    written |= {*markers}
    ids |= {*single.prefix, *single.suffix, *pair.prefix, *pair.middle, *pair.suffix}
    written |= {token for token in map(original.id_to_token, ids) if token is not None}
    ids |= {found for token in written if (found := original.token_to_id(token)) is not None}
    tokenizer = Tokenizer.from_str(json.dumps(_hide(data, written), ensure_ascii=False))
    _check_ids(original, tokenizer, written)
    control_ids = frozenset(ids - {original.token_to_id(str(_unknown_token(data)))})
    is_control = np.zeros(1 + max(tokenizer.get_vocab().values(), default=0), dtype=np.bool_)
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


def _control_tokens(data: Mapping[str, Any], directory: Path, family: str) -> tuple[set[str], set[int]]:
    """Collects control tokens as written, and their ids, from all files that name some."""
    unmarked = UNMARKED.get(family, frozenset())
    added = [
        each for each in data.get("added_tokens") or () if each["special"] or each["content"] in unmarked
    ]
    written = {token["content"] for token in added} | {str(_unknown_token(data))}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if file.is_file():
            settings = json.loads(file.read_bytes())
            values = [settings.get(role) for role in _NAMED_TOKENS]
            values += settings.get("additional_special_tokens") or []
            written |= {each["content"] if isinstance(each, dict) else str(each) for each in values if each}
    return written - {"", "None"}, {token["id"] for token in added}


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


def _check_ids(original: Tokenizer, tokenizer: Tokenizer, written: set[str]) -> None:
    """Raises ModelLoadError if a token that was left alone has got another id."""
    after = tokenizer.get_vocab(with_added_tokens=True)
    for token, number in original.get_vocab(with_added_tokens=True).items():
        if token not in written and after.get(token) != number:
            reason = f"token {number} cannot be kept in its place: write the file anew"
            raise ModelLoadError(f"tokenizer.json: {reason}")
