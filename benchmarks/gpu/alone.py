"""Steps without a server: the card's share of its own product, memory, scores, and peers beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module

import torch

from benchmarks import checkpoints, workloads
from benchmarks.decoder import Theirs
from benchmarks.gpu import theirs
from benchmarks.gpu.ours import Ours, PeakMemory, give_back
from benchmarks.gpu.scores import Scores
from benchmarks.gpu.size import Size
from benchmarks.gpu.telling import Teller
from benchmarks.gpu.theirs import timed
from benchmarks.servers import taking_turns
from benchmarks.workloads import Workload


def workloads_of(size: Size, count: int) -> list[Workload]:
    """So many calls of W2, no two alike."""
    return [workloads.passages(size.documents, seed=2 + number) for number in range(count)]


class AloneStep:
    """One model in this process: loaded once in each precision, measured, compared."""

    def __init__(self, size: Size, teller: Teller, name: str, share: float | None) -> None:
        self.size, self.teller, self.name = size, teller, name
        self.shape, self.share = checkpoints.SHAPES[name], share
        self.calls = workloads_of(size, size.calls)
        self.path = checkpoints.checkpoint(name)

    def rate(self, ours: Ours) -> None:
        """Tells the share of the plain product that W2 reaches, of real tokens only."""
        encoded = [ours.encode(workload) for workload in self.calls]
        lengths = [len(sequence) for call in encoded for sequence in call]
        shared = encoded[0][0].prefix
        prefix = 0 if shared is None else sum(map(len, shared.chain()))
        flop = self.shape.useful_flop(lengths, prefix)
        ours.score(encoded)
        self.after_the_first(ours)
        product = theirs.plain_product(self.shape, min(sum(lengths), theirs.MOST_ROWS), self.size)
        shares, rates, limits = [], [], []
        for _ in range(self.size.rounds):
            rates.append(flop / timed(self.size, lambda: ours.score(encoded)))
            limits.append(product())
            shares.append(rates[-1] / limits[-1])
        beside = f"{statistics.median(rates) / 1e12:.0f} of {statistics.median(limits) / 1e12:.0f} TFLOP/s"
        self.teller.figure(f"W2, {self.name}: useful FLOP/s ÷ plain product", self.share, shares, beside)

    def after_the_first(self, ours: Ours) -> None:
        """Is told that the model is loaded and has run W2 once."""

    def race(self, ours: Ours, label: str, asked: float, other: Callable[[], object]) -> None:
        """Tells how many times as fast as another system ours scores all calls, from texts."""
        ratios, pairs = [], []
        count = sum(len(call.documents) for call in self.calls)
        ours.score_texts(self.calls)
        for _ in range(self.size.rounds):
            own = timed(self.size, lambda: ours.score_texts(self.calls))
            ratios.append(timed(self.size, other) / own)
            pairs.append(count / own)
        beside = f"{statistics.median(pairs):,.0f} pairs/s"
        self.teller.figure(label, asked, ratios, beside, unit="×")

    def load(self) -> Ours:
        """Loads the model in the run's precision, warm."""
        ours = Ours(self.path, self.size)
        self.teller.fact(self.name, **ours.facts())
        return ours

    def compare(self, ours: Ours, scores: Scores) -> None:
        """Tells how far scores are from transformers' and from each other."""
        part, call = self.teller.part, self.calls[0]
        with part(f"{self.name}: scores"):
            scores.compare(ours, call)
        with part(f"{self.name}: scores of pairs alone and together"):
            scores.compare_packing(ours, call)
        with part(f"{self.name}: scores of captured passes"):
            scores.compare_graphs(ours, call)

    def compare_exact(self, scores: Scores) -> None:
        """Loads the model in fp32 and compares its scores."""
        with self.teller.part(f"{self.name}: scores in fp32"):
            exact = Ours(self.path, self.size, "fp32", warm=False)
            scores.compare_exact(exact, self.calls[0])
            exact.close()


class EncoderStep(AloneStep):
    """A cross-encoder; against sentence-transformers where a number of `times` is asked."""

    def __init__(
        self,
        size: Size,
        teller: Teller,
        name: str,
        share: float,
        *,
        times: float = 0.0,
        memory: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__(size, teller, name, share)
        self.times, self.memory, self.exact = times, memory, exact

    def prepare(self) -> None:
        """Computes the logits of transformers, while servers load beside it."""
        if self.times:
            with suppress(ImportError):  # which is told when it is needed
                import_module("sentence_transformers")
        own = torch.bfloat16 if self.size.precision == "bf16" else torch.float32
        logits = partial(theirs.transformers_logits, self.path, self.calls[0], self.size)
        self.expected, self.own = logits(torch.float32), logits(own)

    def run(self) -> None:
        self.peak = PeakMemory(self.size)
        with self.teller.part(f"{self.name}: load"), self.peak.through():
            ours = self.load()
        self.load_held, self.load_text = self.peak.held, self.peak.text()
        self.peak.reset()  # and gives back what the warm-up no longer needs, as a server does
        with self.teller.part(f"{self.name}: share of the plain product"):
            self.rate(ours)
        give_back()
        if self.times:
            with self.teller.part(f"{self.name} beside sentence-transformers"):
                self.beside_sentence_transformers(ours)
        scores = Scores(self.teller, self.name, self.expected, self.own)
        self.compare(ours, scores)
        if self.exact:
            ours.close()
            self.compare_exact(scores)

    def after_the_first(self, ours: Ours) -> None:
        if not self.memory:
            return
        self.peak.note()
        weights = theirs.weight_bytes(self.path, 2)
        beside = f"load {self.load_text}; W2 {self.peak.text()}; weights {weights >> 20:,} MiB"
        label = f"{self.name}: peak memory of load and W2 ÷ weights in bf16"
        share = max(self.load_held, self.peak.held) / weights
        self.teller.figure(label, 1.6, [share], beside, most=True)

    def beside_sentence_transformers(self, ours: Ours) -> None:
        pairs = [pair for call in self.calls for pair in call.pairs]
        score, batch = theirs.sentence_transformers(self.path, self.size, pairs)
        label = f"W2, {self.name} vs sentence-transformers in batches of {batch}, texts to scores"
        self.race(ours, label, self.times, score)


class DecoderStep(AloneStep):
    """A language model, against transformers on all calls together, sorted by length."""

    def prepare(self) -> None:
        """Computes the logits of transformers, while servers load beside it; keeps its model."""
        exact = Theirs(self.path, "fp32", self.size.device)
        with taking_turns():
            self.expected = self._score(exact, self.calls[0])
        del exact
        give_back()
        self.theirs = Theirs(self.path, self.size.precision, self.size.device)
        with taking_turns():
            self.own = self._score(self.theirs, self.calls[0])

    @staticmethod
    def _score(network: Theirs, workload: Workload) -> list[float]:
        return network.score(workload, 32, keep=1, by_length=True)

    def run(self) -> None:
        with self.teller.part(f"{self.name}: load"):
            ours = self.load()
        with self.teller.part(f"{self.name}: share of the plain product"):
            self.rate(ours)
        give_back()
        with self.teller.part(f"{self.name} beside transformers"):
            documents = tuple(text for call in self.calls for text in call.documents)
            together = replace(self.calls[0], documents=documents)
            self._score(self.theirs, self.calls[0])
            label = f"W2, {self.name} vs transformers, sorted by length, batches of 32, last logits"
            self.race(ours, label, 2.0, lambda: self._score(self.theirs, together))
        scores = Scores(self.teller, self.name, self.expected, self.own)
        self.compare(ours, scores)
        ours.close()
        self.compare_exact(scores)
