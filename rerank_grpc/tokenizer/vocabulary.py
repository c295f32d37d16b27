"""A tokenizer in which no text can become a control token, and the template that puts texts together.

Control tokens ([SEP], </s>, <think> …) keep their ids, but their written form
is replaced, in memory, by strings nobody can guess: both in the list of added
tokens and in the vocabulary, where Unigram's "</s>" is a piece like any other.
All else is left as it is (scores, merges, ids), so that ordinary text becomes
exactly what the model's own tokenizer makes of it.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.tokenizer.ascii import AsciiTokenizer, ascii_tokenizer
from rerank_grpc.tokenizer.cuts import cut_safety

# Control tokens which the model's tokenizer does not mark as special.
_QWEN = frozenset(
    {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"}
    | {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)
_GEMMA = frozenset(
    {"<bos>", "<eos>", "<pad>", "<mask>", "<2mass>", "[@BOS@]", "<start_of_turn>", "<end_of_turn>"}
    | {f"<unused{number}>" for number in range(99)}
)
UNMARKED: Mapping[str, frozenset[str]] = {"qwen2": _QWEN, "qwen3": _QWEN, "gemma": _GEMMA}

# An ASCII text of so few characters takes some 20 µs: in a busy server, less than to let go of the GIL
# and get it back, as encode_batch does.
SHORT_TEXT = 128

_NAMED_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class Template:
    """The control tokens around texts: prefix A middle B suffix, or prefix A suffix.

    Attributes:
        prefix, middle, suffix: token ids.
        segments: whether segment B (B and what follows it) has token type 1.
        segment_start: how many ids of `middle` still belong to segment A.
    """

    prefix: array[int]
    middle: array[int]
    suffix: array[int]
    segments: bool = False
    segment_start: int = 0

    @property
    def overhead(self) -> int:
        """How many control tokens it adds."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is needed to encode texts for one model.

    Attributes:
        tokenizer: adds and recognises no control tokens; neither cuts nor pads.
        ascii: makes the same tokens of ASCII texts in less time; None where it cannot.
        single, pair: how one text, and two, are put together.
        control_ids: ids that no text may become; the unknown id is not one.
        is_control: the same as a table over all ids  # [num_ids] bool
        splits_at_spaces: whether a text may be cut before a space between two
            letters, and both parts tokenize to what the whole would.
        splits_suffix: the same for the part that begins with the space.
    """

    tokenizer: Tokenizer
    ascii: AsciiTokenizer | None
    single: Template
    pair: Template
    control_ids: frozenset[int]
    is_control: NDArray[np.bool_]
    splits_at_spaces: bool
    splits_suffix: bool

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """Encodes texts without control tokens; raises as the Rust tokenizer does.

        It lets go of the GIL, but for one short ASCII text.
        """
        if len(texts) == 1 and len(texts[0]) <= SHORT_TEXT and texts[0].isascii():
            if self.ascii is not None:
                return [self.ascii.encode(texts[0])]
            return [self.tokenizer.encode(texts[0], add_special_tokens=False)]
        if self.ascii is not None:
            return self.ascii.encode_batch(texts)
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def read_vocabulary(path: Path, family: str) -> Vocabulary:
    """Reads a tokenizer.json, or raises ModelLoadError."""
    try:
        upstream = Tokenizer.from_file(str(path))
        data = json.loads(path.read_bytes())
        single = template_of(upstream, pair=False)
        pair = template_of(upstream, pair=True)
        written, ids = control_tokens(data, path.parent, family)
        ids |= {*single.prefix, *single.suffix, *pair.prefix, *pair.middle, *pair.suffix}
        written |= {token for token in map(upstream.id_to_token, ids) if token is not None}
        unknown = upstream.token_to_id(str(unknown_token(data)))
        ids |= {found for token in written if (found := upstream.token_to_id(token)) is not None}
        tokenizer = Tokenizer.from_str(json.dumps(hide(data, written), ensure_ascii=False))
        check_ids(upstream, tokenizer, written)
    except ModelLoadError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ModelLoadError(
            f"{path}: not a tokenizer this version reads ({reason}): copy it again"
        ) from error
    prefix_safe, suffix_safe = cut_safety(data)
    hidden = all(token["content"] in written for token in data["added_tokens"])
    control_ids = frozenset(ids - {unknown})
    is_control = np.zeros(1 + max(tokenizer.get_vocab().values(), default=0), dtype=np.bool_)
    is_control[list(control_ids)] = True
    short = ascii_tokenizer(tokenizer) if hidden else None
    return Vocabulary(tokenizer, short, single, pair, control_ids, is_control, prefix_safe, suffix_safe)


def control_tokens(data: Mapping[str, Any], directory: Path, family: str) -> tuple[set[str], set[int]]:
    """Collects control tokens as written, and their ids, from all files that name some."""
    written: set[str] = set()
    ids: set[int] = set()
    unmarked = UNMARKED.get(family, frozenset())
    for token in data.get("added_tokens") or ():
        if token["special"] or token["content"] in unmarked:
            written.add(token["content"])
            ids.add(token["id"])
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if file.is_file():
            settings = json.loads(file.read_bytes())
            values = [settings.get(role) for role in _NAMED_TOKENS]
            values += settings.get("additional_special_tokens") or []
            written |= {
                value["content"] if isinstance(value, dict) else str(value) for value in values if value
            }
    written.add(str(unknown_token(data)))
    return written - {"", "None"}, ids


def unknown_token(data: Mapping[str, Any]) -> str | None:
    """The written form of the unknown token, where the model has one."""
    model = data["model"]
    if _is_unigram(model):
        return None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
    unknown: str | None = model.get("unk_token")
    return unknown


def _is_unigram(model: Mapping[str, Any]) -> bool:
    return isinstance(model["vocab"], list)  # older files do not say the type


def hide(data: Mapping[str, Any], written: set[str]) -> dict[str, Any]:
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
        {**token, "content": names.get(token["content"], token["content"])} for token in data["added_tokens"]
    ]
    return {
        **data,
        "model": model,
        "added_tokens": added,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _pieces(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def check_ids(upstream: Tokenizer, tokenizer: Tokenizer, written: set[str]) -> None:
    """Raises ModelLoadError if a token that was left alone has got another id."""
    after = tokenizer.get_vocab(with_added_tokens=True)
    for token, number in upstream.get_vocab(with_added_tokens=True).items():
        if token not in written and after.get(token) != number:
            raise ModelLoadError(
                f"tokenizer.json: token {number} cannot be kept in its place: write the file anew"
            )


def template_of(upstream: Tokenizer, *, pair: bool) -> Template:
    """Reads off an encoding which control tokens the tokenizer puts around one text, or two."""
    upstream.no_truncation()
    upstream.no_padding()
    encoding: Encoding = upstream.encode("a b", "a b") if pair else upstream.encode("a b")
    places = encoding.sequence_ids
    first = [index for index, place in enumerate(places) if place == 0]
    second = [index for index, place in enumerate(places) if place == 1] if pair else first
    ids, types = encoding.ids, encoding.type_ids
    prefix = ids[: first[0]]
    middle = ids[first[-1] + 1 : second[0]] if pair else []
    suffix = ids[second[-1] + 1 :]
    start = types.index(1) if 1 in types else len(types)
    expected = [0] * start + [1] * (len(types) - start)
    if (
        types != expected
        or (start < len(types) and not first[-1] < start <= second[0])
        or (not pair and 1 in types)
    ):
        raise ModelLoadError(
            "tokenizer.json: its token types do not split at the second text, which is not supported"
        )
    return Template(
        prefix=array("i", prefix),
        middle=array("i", middle),
        suffix=array("i", suffix),
        segments=start < len(types),
        segment_start=start - first[-1] - 1 if start < len(types) else 0,
    )
