"""Cuts a template's text at its control tokens, and proves that the pieces' tokens are those of the whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.pasting import Filling, filled
from rerank_grpc.evidence.prompt import Placeholder, Prompt, Segment

# Texts whose first or last characters tokenizers join with what stands beside them.
TOKEN_PROBES = (
    *("word", " word", "word ", "\nword\n", "  two  ", "\n\n", "\t", "", "7", "42.", "'s", "...", "()", "-"),
    *("é", "e\u0301", "深度学习", "。", "👩\u200d🔬", "\u00a0x\u3000", "Word\r\n", "a" * 400),
)


def original_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, in which control tokens are recognised; raises ModelLoadError."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise ModelLoadError(
            f"{path}: not a tokenizer this version reads ({type(error).__name__}): copy it again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def control_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Lists the added tokens that stand in texts, special or not, the longest first.

    Added tokens of white space alone, as Gemma has them, are ordinary text.
    """
    written = "\0".join(texts)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return sorted((each for each in added if each.strip() and each in written), key=len, reverse=True)


def cut(text: Segment, tokenizer: Tokenizer) -> tuple[Segment, ...]:
    """Cuts a text with placeholders into segments: each one's runs from control token to control token.

    Everything between two such runs is one segment without placeholders.
    """
    segments: list[Segment] = []
    fixed, run = "", list[str | Placeholder]()
    for part, is_control in _parts(text, tokenizer):
        if not is_control:
            run.append(part)
        elif has_placeholders(run):
            segments += [(fixed,), tuple(run)]
            fixed, run = str(part), []
        else:
            fixed, run = fixed + filled(run, {}) + str(part), []
    if has_placeholders(run):
        segments += [(fixed,), tuple(run)]
    else:
        segments.append((fixed + filled(run, {}),))
    return tuple(segment for segment in segments if segment != ("",))


def has_placeholders(parts: Iterable[str | Placeholder]) -> bool:
    """Whether a request's text stands among the parts."""
    return any(isinstance(part, Placeholder) for part in parts)


def prove_tokens(prompt: Prompt, tokenizer: Tokenizer, where: Path) -> None:
    """Raises ModelLoadError unless the segments' tokens, put together, are those of the whole text.

    Segments with placeholders but the first are encoded by the tokenizer itself or, where that fails, by its
    inner one.
    """
    for segments in filter(None, (prompt.segments, prompt.instructed)):
        # The inner one, which takes seconds for a large vocabulary, is made only where it is needed.
        if not any(
            _gives_whole_text(segments, prompt.strips, tokenizer, behind) for behind in _behind(tokenizer)
        ):
            raise ModelLoadError(
                f"{where}: joins texts with the control tokens of {prompt.source} beside them, "
                "which is not supported: use the tokenizer that the model came with"
            )


def inner_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer for a text that follows another: nothing is put before its first word."""
    data = without_prepending(json.loads(tokenizer.to_str()))
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def without_prepending(data: Mapping[str, Any]) -> dict[str, Any]:
    """Takes out of a tokenizer.json's content what puts a space before a text that begins without one."""
    normalizer, pre_tokenizer = data.get("normalizer"), data.get("pre_tokenizer")
    return {
        **data,
        "normalizer": normalizer and _unprepended(normalizer),
        "pre_tokenizer": pre_tokenizer and _unprepended(pre_tokenizer),
    }


def check_control_tokens(prompt: Prompt, tokenizer: Tokenizer, where: Path) -> None:
    """Raises ModelLoadError unless each "<…>" of the segments without placeholders is one token.

    A prompt that comes with no tokenizer, as a catalogue's, may be written for another one.
    """
    for segments in (prompt.segments, prompt.instructed):
        for segment in segments:
            written = [] if has_placeholders(segment) else re.findall(r"<[^<>\s]+>", filled(segment, {}))
            for token in written:
                if _ids(tokenizer, token) != [tokenizer.token_to_id(token)]:
                    raise ModelLoadError(
                        f"{where}: has no control token {token!r}, which {prompt.source} writes: "
                        "use the tokenizer that the model came with"
                    )


def answer_ids(words: Iterable[str], tokenizer: Tokenizer, where: Path) -> tuple[int, ...]:
    """Returns the token id of each answer; raises ModelLoadError for a word that is no token of its own."""
    found = []
    for word in words:
        ids = _ids(tokenizer, word)
        if len(ids) != 1:
            raise ModelLoadError(
                f"{where}: has no token {word!r}, which the model answers with: "
                "use the tokenizer that the model came with"
            )
        found += ids
    return tuple(found)


def _parts(text: Segment, tokenizer: Tokenizer) -> Iterator[tuple[str | Placeholder, bool]]:
    """Yields texts, placeholders and control tokens, and whether they are the last."""
    tokens = control_tokens((part for part in text if isinstance(part, str)), tokenizer)
    pattern = re.compile(f"({'|'.join(map(re.escape, tokens)) or '(?!)'})")
    for part in text:
        if isinstance(part, Placeholder):
            yield part, False
            continue
        for index, piece in enumerate(pattern.split(part)):
            if piece:
                yield piece, index % 2 == 1


def _unprepended(step: Mapping[str, Any]) -> dict[str, Any]:
    match step["type"]:
        case "Sequence":
            inner = "normalizers" if "normalizers" in step else "pretokenizers"
            return {**step, inner: [_unprepended(each) for each in step[inner]]}
        case "Prepend":
            return {"type": "Sequence", "normalizers": []}
        case "Metaspace":
            never = {"prepend_scheme": "never", "add_prefix_space": False}  # the second in older files
            return {**step, **{key: value for key, value in never.items() if key in step}}
        case "ByteLevel" if "add_prefix_space" in step:
            return {**step, "add_prefix_space": False}
    return dict(step)


def _behind(tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    """Yields what may encode texts that stand behind others."""
    yield tokenizer
    yield inner_tokenizer(tokenizer)


def _gives_whole_text(
    segments: tuple[Segment, ...], strips: frozenset[Placeholder], first: Tokenizer, behind: Tokenizer
) -> bool:
    """Whether the ids of segments, put together, are those of the whole text, for a number of fillings."""
    encoders = [behind if at and has_placeholders(each) else first for at, each in enumerate(segments)]
    for filling in _fillings():
        texts = [filled(segment, filling, strips) for segment in segments]
        apart = [
            number for encoder, text in zip(encoders, texts, strict=True) for number in _ids(encoder, text)
        ]
        if apart != _ids(first, "".join(texts)):
            return False
    return True


def _fillings() -> Iterator[Filling]:
    slots = tuple(Placeholder)
    for index, probe in enumerate(TOKEN_PROBES):
        yield dict.fromkeys(slots, probe)
        yield {slot: TOKEN_PROBES[(index + 5 * more) % len(TOKEN_PROBES)] for more, slot in enumerate(slots)}


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
