"""Where the time of a full batch goes: kernels, launches, and the rate of every batch budget."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from benchmarks import checkpoints, report, workloads
from benchmarks.gpu.ours import Ours, PeakMemory
from benchmarks.gpu.size import Size
from benchmarks.gpu.telling import Teller
from benchmarks.gpu.theirs import timed
from benchmarks.workloads import Workload
from rerank_grpc.sequence import Sequence, count_tokens

TOP = 14  # kernels
PASSES = 4  # under the profiler
LAUNCHES = 10
LAUNCHED_TOKENS, LONE_TOKENS = 16_384, 300
LEAST_CALLS = 3  # of W2, whose rate a budget gives
FULL = 1.3  # of a budget's tokens are run, so that it is filled
NAME_LENGTH = 90

Batch = tuple[Sequence, ...]


class ProfileStep:
    """The tables of one shape's model."""

    def __init__(self, size: Size, teller: Teller, name: str) -> None:
        self.size, self.teller, self.name = size, teller, name
        self.shape = checkpoints.SHAPES[name]

    def prepare(self) -> None:
        """Reads the texts."""
        self.path = checkpoints.checkpoint(self.name)
        wanted = FULL * max(self.size.budgets)
        texts = (workloads.passages(self.size.documents, seed=2 + number) for number in range(24))
        self.calls = [next(texts) for _ in range(LEAST_CALLS)]
        per_document = 100  # tokens, fewer than there are
        while len(self.calls) * self.size.documents * per_document < wanted and len(self.calls) < 24:
            self.calls.append(next(texts))

    def run(self) -> None:
        with self.teller.part(f"{self.name}: load"):
            self.ours = Ours(self.path, self.size)
            facts = ", ".join(f"{key} {value}" for key, value in self.ours.facts().items())
            self.teller.note(f"{self.name}: {facts}")
            self.chosen = self.ours.engine.max_batch_tokens
            self.encoded = [self.ours.encode(call) for call in self.calls]
            self.ours.score(self.encoded[:1])
        with self.teller.part(f"{self.name}: launches"):
            self.launches()
        with self.teller.part(f"{self.name}: kernels"):
            self.kernels()
        with self.teller.part(f"{self.name}: budgets"):
            self.budgets()

    def batch(self, tokens: int) -> Batch:
        """Sequences of W2 that fill a batch of so many tokens; one at least."""
        taken, free = list[Sequence](), tokens
        for sequence in (each for call in self.encoded for each in call):
            if len(sequence) <= free:
                taken.append(sequence)
                free -= len(sequence)
        return tuple(taken or self.encoded[0][:1])

    def lone_pairs(self, count: int) -> list[Batch]:
        """Batches of one pair of about 300 tokens with its prompt, each with a query of its own."""
        call, encoded = self.calls[0], self.encoded[0]
        lengths = [abs(count_tokens([each]) - LONE_TOKENS) for each in encoded]
        text = call.documents[lengths.index(min(lengths))]
        queries = [f"{call.query} {number}" for number in range(count)]
        return [tuple(self.ours.encode(Workload("pair", query, (text,)))) for query in queries]

    def launches(self) -> None:
        """Tells the host's milliseconds for a launch, and those until the batch has landed."""
        large = [self.batch(LAUNCHED_TOKENS)] * (LAUNCHES + 2)
        rows = []
        for batches in (large, self.lone_pairs(LAUNCHES + 2)):
            launching, landing = [], []
            for batch in batches:
                started = perf_counter()
                land = self.ours.runner.launch(batch)
                launched = perf_counter()
                land()
                launching.append(1e3 * (launched - started))
                landing.append(1e3 * (perf_counter() - started))
            middle = [f"{statistics.median(each[2:]):.2f}" for each in (launching, landing)]
            rows.append([described(batches[0]), *middle])
        self.table(["batch", "launch, ms", "until it landed, ms"], rows)

    def kernels(self) -> None:
        """Tells the kernels of the batch that the engine would make, and those of one pair."""
        depth = self.ours.runner.depth
        full = self.batch(self.chosen // depth)
        self.passes("full batch", [full] * PASSES, depth)
        # The batches of a sample differ, for a language model keeps what it computed of a query.
        lone = self.lone_pairs(5 * PASSES)
        self.passes("one pair", lone, 1)

    def passes(self, name: str, batches: list[Batch], depth: int) -> None:
        """Tells the kernels of some passes; `depth` of them are launched ahead, as the engine does.

        The first parts of the batches warm up and are timed, the last is profiled.
        """

        def run(some: list[Batch]) -> None:
            flights: list[Callable[[], object]] = []
            for batch in some:
                if len(flights) == depth:
                    flights.pop(0)()
                flights.append(self.ours.runner.launch(batch))
            for land in flights:
                land()

        parts = [batches[start : start + PASSES] for start in range(0, len(batches), PASSES)]
        parts = parts if len(parts) > 1 else parts * 5
        run(parts[0])
        wall = min(timed(self.size, lambda part=part: run(part)) for part in parts[1:-1]) / PASSES  # type: ignore[misc]
        seconds, calls = profiled(self.size, lambda: run(parts[-1]))
        total, batch = sum(seconds.values()) / PASSES, batches[0]
        self.teller.note(
            f"{self.name}, {name}: a pass of {described(batch)}: {1e3 * wall:.2f} ms, "
            f"{self.flop(batch) / wall / 1e12:.0f} TFLOP/s; kernels {1e3 * total:.2f} ms, "
            f"{total / wall:.0%} of the time, {calls.total() / PASSES:.0f} a pass"
        )
        rows = [
            [
                kernel[:NAME_LENGTH],
                f"{taken / PASSES / total:.1%}",
                f"{1e6 * taken / PASSES:.0f}",
                f"{calls[kernel] / PASSES:g}",
            ]
            for kernel, taken in sorted(seconds.items(), key=lambda each: -each[1])[:TOP]
        ]
        self.table(["kernel", "share of all kernels", "µs a pass", "calls a pass"], rows)

    def flop(self, sequences: Iterable[Sequence]) -> float:
        """Useful operations; a prefix that all share counts once."""
        listed = list(sequences)
        prefix = listed[0].prefix
        shared = 0 if prefix is None else sum(map(len, prefix.chain()))
        return self.shape.useful_flop([len(each) for each in listed], shared)

    def budgets(self) -> None:
        """Tells the rate of W2 with each budget forced, and the memory that it takes."""
        rows = []
        for budget in self.size.budgets:
            self.ours.engine.max_batch_tokens = budget
            calls = self.enough(FULL * budget)
            tokens = count_tokens(each for call in calls for each in call)
            peak = PeakMemory(self.size)
            self.ours.score(calls[:1])
            seconds = timed(self.size, lambda calls=calls: self.ours.score(calls))  # type: ignore[misc]
            peak.note()
            if self.ours.engine.max_batch_tokens < budget:
                rows.append([f"{budget:,}", "out of memory", "", ""])
                break
            flop = self.flop(each for call in calls for each in call)
            cells = [f"{tokens / seconds:,.0f}", f"{flop / seconds / 1e12:.0f}"]
            chosen = " (chosen)" if budget == self.chosen else ""
            rows.append([f"{budget:,}{chosen}", *cells, f"{peak.held >> 20:,} / {peak.taken >> 20:,}"])
        self.ours.engine.max_batch_tokens = self.chosen
        self.table(["budget, tokens", "tokens/s", "TFLOP/s", "MiB held / in tensors"], rows)

    def enough(self, tokens: float) -> list[list[Sequence]]:
        """Calls that hold so many tokens together; all of them if they hold fewer."""
        taken: list[list[Sequence]] = []
        for call in self.encoded:
            if len(taken) >= LEAST_CALLS and sum(len(each) for one in taken for each in one) >= tokens:
                break
            taken.append(call)
        return taken

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        self.teller.note(report.table(header, rows) + "\n")


def described(batch: Batch) -> str:
    return f"{len(batch)} pairs, {count_tokens(batch):,} tokens"


def profiled(size: Size, work: Callable[[], None]) -> tuple[dict[str, float], Counter[str]]:
    """Seconds and calls of each kernel by name; on the CPU of torch's own operations."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = size.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        timed(size, work)
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    events: Any = found.events()
    for event in events:
        waits = event.name.endswith((" Sync", " Wait Event"))
        if event.device_type == wanted and not waits and not getattr(event, "is_user_annotation", False):
            spent = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
            seconds[event.name] += spent / 1e6
            calls[event.name] += 1
    return dict(seconds), calls
