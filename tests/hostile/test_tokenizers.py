"""Texts that tokenizers are slow at: twice the text takes twice the time, also a hundred in a call."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Iterator

import pytest
from tokenizers import Tokenizer as Upstream

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.server.server import RerankServer
from rerank_grpc.tokenizer.frames import PlainFraming
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.tokenizer.vocabulary import read_tokenizer
from rerank_grpc.types import Document, RerankRequest, Truncation
from tests import random_models
from tests.support import CARD, CountingRunner, ScriptedLoader, request_of, stub_of

FAMILIES: dict[str, Callable[[], Upstream]] = {
    "wordpiece": random_models.wordpiece,
    "byte-level": random_models.byte_level,
    "unigram": random_models.unigram,
    "qwen": random_models.qwen_tokenizer,
    "gemma": random_models.gemma_tokenizer,
}
MAX_TOKENS = 512
RATIO, SECONDS = 2.5, 2.0
# The longest text that a caller may send costs what it costs: below half a second the ratio says little.
LEAST_SECONDS = 0.2
CHANCE = random.Random(24)


def of(characters: str) -> Callable[[int], str]:
    """Repeats some characters up to a length."""
    return lambda length: (characters * (length // len(characters) + 1))[:length]


def among(first: int, last: int) -> Callable[[int], str]:
    """Draws characters out of a range."""
    return of("".join(chr(CHANCE.randint(first, last)) for _ in range(10_007)))


HOSTILE: dict[str, Callable[[int], str]] = {
    "one letter": of("x"),
    "one letter that is in no vocabulary": of("ᚠ"),
    "spaces": of(" "),
    "tabs": of("\t"),
    "newlines": of("\n"),
    "every kind of space": of(" \u00a0\u2003\u3000\t\r\n\u2028"),
    "combining marks": of("\u0301"),
    "marks out of order": of("\u0301\u0323\u0345\u0327"),
    "a letter under marks": lambda length: "a" + "\u0323\u0301" * (length // 2),
    "zalgo": of("Z" + "\u0300\u0316\u0334\u0360\u0489" * 20),
    "families of emojis": of("👩\u200d👩\u200d👧\u200d👦"),
    "one emoji without end": lambda length: "👩" + "\u200d👩" * (length // 2),
    "flags": of("🇩🇪"),
    "skin tones": of("👍🏿"),
    "Chinese": of("深度学习模型的排序"),
    "rare Chinese": among(0x4E00, 0x9FFF),
    "Hangul in parts": of("\u1112\u1161\u11ab"),
    "Thai": of("ภาษาไทย"),
    "base64": of(base64.b64encode(CHANCE.randbytes(9_999)).decode()),
    "digits": of("0123456789"),
    "dots": of("."),
    "brackets": of("(" * 500 + ")" * 500),
    "a word and a bracket": of("a("),
    "apostrophes": of("'s't're"),
    "control characters": of("".join(map(chr, range(1, 32)))),
    "zero bytes": of("\0"),
    "private use": among(0xE000, 0xF8FF),
    "beyond the first plane": among(0x20000, 0x2A6DF),
    "replacement characters": of("\ufffd"),
    "what bytes look like": of("<0xE2><0x80>Ġâ▁##"),
    "control tokens": of("[CLS][SEP]</s><|im_end|><eos><unk>"),
    "word beginnings": of("▁"),
    "zero width": of("\u200b\u200d\ufeff"),
    "right to left": of("\u202e\u2066"),
    "one long word": of("Donaudampfschifffahrtsgesellschaft"),
    "random letters": of("".join(CHANCE.choices("abcdefghijklmnopqrstuvwxyz", k=10_007))),
    "capital letters": of("İIıſẞ"),
}


# NFKC makes eighteen of it: a tenth of a megabyte costs as much as two of them.
LIGATURE = of("\ufdfa")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root, made = tmp_path_factory.mktemp("tokenizers"), {}
    for family, make in FAMILIES.items():
        make().save(str(root / f"{family}.json"))
        vocabulary = read_tokenizer(root / f"{family}.json").vocabulary()
        made[family] = Tokenizer(PlainFraming(vocabulary, MAX_TOKENS, pairs=True))
    return made


def seconds(work: Callable[[str], object], text: str) -> float:
    """Measures the processor time of some work, to which other processes add little."""
    started = time.process_time()
    work(text)
    return time.process_time() - started


def check(work: Callable[[str], object], text: Callable[[int], str], length: int, name: str) -> None:
    """Compares what a text costs with what a half of it does, again where chance may have decided."""
    measured = []
    for _ in range(3):
        half, whole = seconds(work, text(length // 2)), seconds(work, text(length))
        measured.append(f"{whole:.2f} s, a half {half:.2f} s")
        if whole <= min(SECONDS, RATIO * max(half, LEAST_SECONDS)):
            return
    raise AssertionError(f"{name}: {measured}")


@pytest.mark.parametrize("chunks", [1, 64], ids=["cut", "in chunks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_twice_a_hostile_text_takes_twice_the_time(
    tokenizers: dict[str, Tokenizer], family: str, chunks: int
) -> None:
    tokenizer = tokenizers[family]

    def document(text: str) -> None:
        tokenizer.tokenize(RerankRequest("a query", (Document(text),), max_chunks_per_document=chunks))

    def query(text: str) -> None:
        tokenizer.tokenize(RerankRequest(text, (Document("a document"),), truncation=Truncation.START))

    for name, text in HOSTILE.items():
        check(document, text, 100_000 if chunks == 1 else 50_000, name)
        if chunks == 1:
            check(query, text, 100_000, f"{name}, as a query")
    if chunks == 1:
        check(document, LIGATURE, 100_000, "a character that becomes eighteen")


class TokenizerLoader(ScriptedLoader):
    """Loads models that tokenize as real ones do, and whose scores cost nothing."""

    def __init__(self, tokenizers: dict[str, Tokenizer]) -> None:
        super().__init__()
        self._tokenizers = tokenizers

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        engine = Engine(CountingRunner(), self._settings, name=spec.name, on_death=on_death)
        engine.start()
        return LoadedModel(spec.name, CARD, self._tokenizers[spec.name], engine)


@pytest.fixture(scope="module")
def server(tokenizers: dict[str, Tokenizer]) -> Iterator[RerankServer]:
    models = tuple(ModelSpec(family, family) for family in FAMILIES)
    settings = ServerSettings(models=models, port=0, admin_port=None)
    server = RerankServer(settings, loader=TokenizerLoader(tokenizers))
    server.start()
    try:
        assert server.wait_until_loaded(60)
        yield server
    finally:
        server.stop(5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_hostile_documents_take_a_call_twice_the_time(server: RerankServer, family: str) -> None:
    with stub_of(server.port) as stub:

        def rerank(text: str) -> None:
            # Equal texts would be tokenized once.
            documents = [f"{number} {text}" for number in range(100)]
            reply = stub.Rerank(request_of("a query", *documents, model=family), timeout=60)
            assert len(reply.results) == 100

        for name, text in HOSTILE.items():
            check(rerank, text, 8_000, name)
