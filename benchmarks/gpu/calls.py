"""Steps through gRPC: each starts its servers while others prepare, and keeps them idle until it runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import checkpoints, workloads
from benchmarks.gpu import texts
from benchmarks.gpu.alone import workloads_of
from benchmarks.gpu.size import Size
from benchmarks.gpu.telling import NotHere, Teller
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from benchmarks.load import Answer
    from benchmarks.servers import Served
    from rerank_grpc.v1 import rerank_pb2 as pb

PAIRS, PAIR_TOKENS = 10, 300  # of a call of the published load
LIMIT_SECONDS = 0.45  # of 99 in 100 calls
WARM_SECONDS = 1.5


def check_server() -> None:
    """Raises NotHere where the server's packages are missing or too old for its stubs."""
    try:
        import rerank_grpc.server.server  # noqa: F401
    except Exception as error:  # the stubs check versions, too, each with errors of its own
        raise NotHere(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def request_of(workload: Workload) -> pb.RerankRequest:
    from benchmarks import load

    return load.request_of(workload.query, workload.documents)


class ServedStep:
    """A model behind a server of its own."""

    kinds: tuple[str, ...] = ("model",)  # of the processes that benchmarks.servers starts

    def __init__(self, size: Size, teller: Teller, name: str) -> None:
        self.size, self.teller, self.name = size, teller, name
        self.path = checkpoints.checkpoint(name)
        self.servers: list[Served] = []
        self._stack = ExitStack()

    def prepare(self) -> None:
        """Starts the servers at once and waits until they are ready."""
        check_server()
        from benchmarks.servers import served

        def start(kind: str) -> Served:
            scale = ("1",) if kind == "alone" else ()
            return self._stack.enter_context(served(kind, self.name, *scale, str(self.size.budget)))

        with ThreadPoolExecutor(len(self.kinds)) as pool:
            starting = pool.map(start, self.kinds)
            self.prepare_calls()
            self.servers = list(starting)
        self.teller.fact(f"{self.name}, served", **facts_of(self.servers[0]))

    def prepare_calls(self) -> None:
        """Makes what is sent, while the servers start."""

    def close(self) -> None:
        self._stack.close()

    def latency(self, label: str, asked: float, requests: Sequence[pb.RerankRequest]) -> None:
        """Tells the milliseconds of calls one after the other, behind five that warm up."""
        from benchmarks import load

        caller = load.Caller(self.servers[0].target)
        for request in requests[-5:]:
            caller.call(request)
        answers = [caller.call(request) for request in requests]
        caller.close()
        check(self.name, answers)
        tokenizing = 1e3 * statistics.median(answer.tokenization for answer in answers)
        beside = (
            f"p99 {1e3 * load.percentile(answers, 0.99):.1f} ms, {statistics.mean(tokens_of(answers)):,.0f} "
            f"tokens, {tokenizing:.1f} ms of it tokenizing"
        )
        milliseconds = [1e3 * answer.seconds for answer in answers]
        self.teller.figure(f"{self.name}: {label}", asked, milliseconds, beside, unit=" ms", most=True)


def facts_of(server: Served) -> dict[str, object]:
    return {key: value for key, value in server.facts.items() if key != "port"}


def tokens_of(answers: Sequence[Answer]) -> list[int]:
    return [answer.tokens for answer in answers]


def check(name: str, answers: Sequence[Answer]) -> None:
    """Ends the part if a call failed."""
    codes = Counter(answer.code for answer in answers)
    if set(codes) != {"OK"}:
        raise SystemExit(f"{name}: the server answered {dict(codes)}")


class FullStep(ServedStep):
    """One caller whose calls have all documents of W2."""

    def prepare_calls(self) -> None:
        self.fulls = list(map(request_of, workloads_of(self.size, self.size.fulls)))

    def run(self) -> None:
        with self.teller.part(f"{self.name}: calls of {self.size.documents} passages"):
            label = f"{self.size.documents} passages, one caller, p50 through gRPC"
            self.latency(label, 35.0, self.fulls)


class BusyStep(ServedStep):
    """Calls of one document, and all callers of W4 beside the engine alone."""

    kinds = ("model", "alone")

    def prepare_calls(self) -> None:
        from benchmarks import load
        from benchmarks.servers import concurrent_calls

        documents = workloads.passages(self.size.singles, seed=6).documents
        self.singles = [load.request_of(workloads.QUERY, (text,)) for text in documents]
        self.many = [load.request_of(workloads.QUERY, documents) for documents in concurrent_calls()]

    def run(self) -> None:
        with self.teller.part(f"{self.name}: calls of one document"):
            self.latency("one document, p50 through gRPC", 3.0, self.singles)
        with self.teller.part(f"{self.name}: W4 at saturation"):
            self.saturation()

    def saturation(self) -> None:
        from benchmarks import load
        from benchmarks.servers import CALLERS

        size, (server, engine), shares, rates = self.size, self.servers, [], []
        requests = self.many
        load.closed_loop(server.target, requests, CALLERS, size.seconds / 2)
        engine.ask(str(size.seconds / 2))
        for _ in range(size.rounds):
            answers, seconds = load.closed_loop(server.target, requests, CALLERS, size.seconds)
            check(self.name, answers)
            through = sum(tokens_of(answers)) / seconds
            rates.append(engine.ask(str(size.seconds))["tokens_per_second"])
            shares.append(through / rates[-1])
        milliseconds = 1e3 * load.percentile(answers, 0.5)
        beside = f"engine alone {statistics.median(rates):,.0f} tokens/s; a call {milliseconds:.0f} ms"
        label = f"{self.name}: W4 at saturation through gRPC ÷ engine alone"
        self.teller.figure(label, 0.90, shares, beside)
        self.teller.fact(f"{self.name}, alone", **facts_of(engine))


class LoadStep(ServedStep):
    """A published load: calls of ten pairs at times fixed beforehand, whether or not others are answered."""

    def prepare_calls(self) -> None:
        """Makes calls of which no two are alike; each pair has 300 tokens with prompt and query."""
        size = self.size
        offered = [*size.rates, *size.lower, size.rates[0] / 2]
        count = int(1.5 * sum(rate / PAIRS * size.load_seconds for rate in offered)) + 50
        made = texts.counted_calls(self.path, count + size.singles, PAIRS, PAIR_TOKENS)
        self.requests = [request_of(call) for call in made[:count]]
        self.singles = [request_of(Workload("pair", each.query, each.documents[:1])) for each in made[count:]]

    def run(self) -> None:
        with self.teller.part(f"{self.name}: calls of one pair"):
            self.latency(f"one pair of {PAIR_TOKENS} tokens, p50 through gRPC", 5.0, self.singles)
        with self.teller.part(f"{self.name}: open loop"):
            self.open_loop()

    def open_loop(self) -> None:
        """Tells the highest rate at which 99 of 100 calls are answered in time, and what each rate gave."""
        size = self.size
        self.offer(size.rates[0] / 2, WARM_SECONDS)
        met, told = 0, []
        for rate in size.rates:
            in_time, text = self.offer(rate, size.load_seconds)
            told.append(text)
            if not in_time:
                break
            met = rate
        for rate in size.lower if not met else ():
            in_time, text = self.offer(rate, size.load_seconds)
            told.append(text)
            if in_time:
                met = rate
                break
        label = (
            f"{self.name}: {PAIRS} pairs a call of {PAIR_TOKENS} tokens, open loop, "
            f"highest rate with p99 ≤ {1e3 * LIMIT_SECONDS:.0f} ms"
        )
        self.teller.figure(label, size.rates[0], [met], "; ".join(told), unit=" pairs/s")

    def offer(self, rate: float, seconds: float) -> tuple[bool, str]:
        """Offers so many pairs a second; returns whether they were answered in time, and a line on it."""
        from benchmarks import load

        calls = rate / PAIRS
        most = int(1.4 * calls * seconds) + 10
        requests, self.requests = self.requests[:most], self.requests[most:]
        answers = load.open_loop(self.servers[0].target, requests, calls, seconds)
        p50, p99 = (1e3 * load.percentile(answers, share) for share in (0.5, 0.99))
        failed = {code: n for code, n in Counter(answer.code for answer in answers).items() if code != "OK"}
        failures = f", failed {failed}" if failed else ""
        text = f"{rate:g}: p50 {p50:.0f}, p99 {p99:.0f} ms of {len(answers)} calls{failures}"
        self.teller.note(f"{self.name}, open loop, pairs/s {text}")
        return not failed and p99 <= 1e3 * LIMIT_SECONDS, text
