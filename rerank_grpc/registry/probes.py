"""Compares a model's tokens with those of its tokenizer class, which may do more than tokenizer.json says.

The comparison runs in another process, and is kept by all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import normalizers

from rerank_grpc import __version__
from rerank_grpc.checkpoints.disk import digest_of
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.evidence.prompt import CATALOGUE, Placeholder, Prompt
from rerank_grpc.kept import Kept, Key
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.reference import aside
from rerank_grpc.registry.vocabularies import small_vocabulary
from rerank_grpc.sequence import Sequence
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from rerank_grpc.tokenizer.vocabulary import read_tokenizer
from rerank_grpc.types import Document, RerankRequest

# A file of a tokenizer that a class may read has one of these endings.
READ = (".json", ".jinja", ".txt", ".model")
# All of this package that makes or compares tokens.
PACKAGE = Path(__file__).parents[1]
SOURCES = (
    *("registry/probes.py", "registry/vocabularies.py", "evidence/prompt.py", "sequence.py"),
    "tokenizer/*.py",
)
# More than any probe has, in a small vocabulary too.
MOST_TOKENS = 1 << 16
# Texts that tokenizers of different settings take apart differently.
QUERY = "What is a Café, and how MANY?"
DOCUMENTS = (
    "plain words, lower case.",
    "Ünïcödé Àccents e\u0301 and UPPER case",
    "深度学习 rerank 模型。",
    "emoji 👩‍👩‍👧 1234567890 3.14 ½",
    "  white \t space\n\n and   more  ",
    "it's <b>markup</b> & code_like_this(x) -> y",
    "long " * 600,
)


class Read(NamedTuple):
    """The tokens of one sequence, and the segment of each."""

    ids: list[int]
    types: list[int]


def checked_tokenizer(card: ModelCard, token_types: bool | None = None) -> Tokenizer:
    """Makes the tokenizer of a loaded model; raises ModelLoadError, also if the reference reads otherwise.

    The comparison may have been made already, and have found the `token_types`.
    """
    file = read_tokenizer(card.tokenizer_file, lower_case=card.reading.lower_case)
    if token_types is None:
        token_types = check_tokenizer(card)
    reading = replace(card.reading, token_types=token_types)
    return tokenizer_for(replace(card, reading=reading), file)


def check_tokenizer(card: ModelCard) -> bool:
    """Tells like `reads_token_types`, by another process or as an earlier start has kept it.

    The weights of the model need not be in memory beside that process.
    """
    found = _kept_token_types(card)
    if found is None:
        found = aside(reads_token_types, card)
        Kept("tokenizers").write(_key(card), {"token_types": found})
    return found


def tokenizer_kept(card: ModelCard) -> bool:
    """Whether an earlier start has kept what `check_tokenizer` tells, so that no process is needed for it."""
    return _kept_token_types(card) is not None


def _kept_token_types(card: ModelCard) -> bool | None:
    found = (Kept("tokenizers").read(_key(card)) or {}).get("token_types")
    return found if isinstance(found, bool) else None


def reads_token_types(card: ModelCard) -> bool:
    """Compares all steps of a tokenizer, and tells whether its class names the segment of each token.

    Of a large vocabulary, which takes seconds to read as the class reads it, only the first tokens are
    compared. Raises ModelLoadError if the class reads otherwise.
    """
    file = read_tokenizer(card.tokenizer_file, lower_case=card.reading.lower_case)
    with small_vocabulary(file.path, file.data) as small:
        own = _read_by_class(card, small)
        types = _names_types(own)
        reading = replace(card.reading, token_types=types)
        check_reading(replace(card, reading=reading, tokenizer_file=small), own)
    return types


def _key(card: ModelCard) -> Key:
    """All that the comparison depends on; the model's name, which errors begin with, is no part of it."""
    ours = [path for pattern in SOURCES for path in PACKAGE.glob(pattern)]
    theirs = [path for path in card.tokenizer_file.parent.iterdir() if path.suffix in READ and path.is_file()]
    reading = json.dumps(asdict(card.reading), default=_listed)
    return {
        "reading": hashlib.sha256(reading.encode()).hexdigest(),
        "kind": card.kind.value,
        "files": _digest(theirs),
        "sources": _digest(ours),
        "package": __version__,
        "tokenizers": version("tokenizers"),
        "transformers": version("transformers"),
    }


def _listed(value: object) -> Any:
    """Writes what JSON has no form for: sets and enumerations."""
    return sorted(map(str, value)) if isinstance(value, frozenset) else str(value)


def _digest(files: list[Path]) -> str:
    """Digests the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}:{digest_of(path)}\n".encode())
    return digest.hexdigest()


def _read_by_class(card: ModelCard, file: Path) -> Any:
    """Reads a tokenizer by the class that its files name."""
    from transformers import AutoTokenizer

    from rerank_grpc.models.borrowed.weights import SAFE, quiet

    try:
        with quiet():
            own = AutoTokenizer.from_pretrained(str(file.parent), **SAFE)
    except Exception as error:  # from many libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelLoadError(
            f"{card.tokenizer_file.parent}: transformers cannot read its tokenizer ({reason}): "
            "use the tokenizer files that the model came with"
        ) from error
    if card.reading.lower_case:
        _lower_case(own)
    return own


def _names_types(own: Any) -> bool:
    return "token_type_ids" in own.model_input_names


def check_reading(card: ModelCard, own: Any) -> None:
    """Checks that probe texts become the tokens that transformers' tokenizer makes of them.

    Raises ModelLoadError if they do not.
    """
    card = replace(card, max_tokens=MOST_TOKENS)
    if card.late is not None:  # whose prefixes late_framing proves
        plain = replace(card.reading, query_prefix="", document_prefix="")
        card = replace(card, kind=Kind.BI_ENCODER, late=None, reading=plain)
    tokenizer = tokenizer_for(card)
    pairs = _of_prompt if card.reading.prompt else _of_pairs if card.kind is Kind.CROSS_ENCODER else _of_texts
    for text, found, expected in pairs(card, tokenizer, own):
        if found != expected:
            what = "tokens" if found.ids != expected.ids else "token types"
            raise ModelLoadError(
                f"{card.source}: its tokenizer.json gives other {what} than tokenizer_config.json's class "
                f"{type(own).__name__} for {text[:40]!r}: use the tokenizer files that the model came with, "
                "as transformers' save_pretrained writes them"
            )


def _lower_case(own: Any) -> None:
    """Puts Lowercase first, as sentence-transformers does."""
    normalizer = own.backend_tokenizer.normalizer
    inner = isinstance(normalizer, normalizers.Sequence)
    steps = list(normalizer) if inner else [] if normalizer is None else [normalizer]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        own.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _of_pairs(card: ModelCard, tokenizer: Tokenizer, own: Any) -> Iterator[tuple[str, Read, Read]]:
    reading = card.reading
    request = tokenizer.tokenize(RerankRequest(QUERY, tuple(map(Document, DOCUMENTS))))
    for text, document in zip(DOCUMENTS, request.documents, strict=True):
        sequence = request.sequences[document.chunks[0].sequence]
        pair = reading.query_prefix + QUERY, reading.document_prefix + text
        yield text, _read(sequence), _encoded(own, *pair, max_tokens=card.max_tokens)


def _of_texts(card: ModelCard, tokenizer: Tokenizer, own: Any) -> Iterator[tuple[str, Read, Read]]:
    reading = card.reading
    request = tokenizer.tokenize(RerankRequest(QUERY, tuple(map(Document, DOCUMENTS))))
    found = [request.sequences[document.chunks[0].sequence] for document in request.documents]
    texts = [reading.document_prefix + text for text in DOCUMENTS]
    if request.query is not None:
        found.append(request.sequences[request.query])
        texts.append(reading.query_prefix + QUERY)
    for text, sequence in zip(texts, found, strict=True):
        yield text, _read(sequence), _encoded(own, text, max_tokens=card.max_tokens)


def _of_prompt(card: ModelCard, tokenizer: Tokenizer, own: Any) -> Iterator[tuple[str, Read, Read]]:
    prompt = card.reading.prompt
    assert prompt is not None
    request = tokenizer.tokenize(RerankRequest(QUERY, tuple(map(Document, DOCUMENTS))))
    for text, document in zip(DOCUMENTS, request.documents, strict=True):
        sequence = request.sequences[document.chunks[0].sequence]
        if not document.truncated and not request.query_truncated:
            ids = [
                number
                for part in _rendered(prompt, text)
                for number in own.encode(part, add_special_tokens=False, verbose=False)
            ]
            yield text, _read(sequence), Read(ids, [0] * len(ids))


def _rendered(prompt: Prompt, text: str) -> list[str]:
    """Renders the texts that become tokens by themselves."""
    texts = {
        Placeholder.INSTRUCTION: prompt.instruction,
        Placeholder.QUERY: QUERY,
        Placeholder.DOCUMENT: text,
    }
    texts |= {slot: texts[slot].strip() for slot in prompt.strips}
    parts = [
        "".join(texts[part] if isinstance(part, Placeholder) else part for part in segment)
        for segment in prompt.chosen("")
    ]
    return parts if prompt.source == CATALOGUE else ["".join(parts)]


def _encoded(own: Any, *texts: str, max_tokens: int) -> Read:
    found = own(*texts, truncation=True, max_length=max_tokens, verbose=False)
    ids = found["input_ids"]
    return Read(ids, found.get("token_type_ids") or [0] * len(ids))


def _read(sequence: Sequence) -> Read:
    """Lists the tokens of a sequence, those of its prefixes first."""
    before = [] if sequence.prefix is None else list(sequence.prefix.chain())
    ids = memoryview(b"".join([*(prefix.ids for prefix in before), sequence.ids])).cast("i").tolist()
    start = sequence.segment_start or len(ids)
    return Read(ids, [0] * start + [1] * (len(ids) - start))
