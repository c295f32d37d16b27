"""Servers to be measured, each in a process of its own.

    python -m benchmarks.servers echo            a bare threaded grpcio server that computes nothing
    python -m benchmarks.servers free            the service, whose model costs nothing
    python -m benchmarks.servers model minilm    the service with a checkpoint of real shape; behind it the
                                                 batch budget may stand
    python -m benchmarks.servers rest base       the same with its REST port, asked on stdin: how much of so
                                                 many seconds its device worked
    python -m benchmarks.servers alone minilm 1 1024
                                                 no server: the engine alone, asked on stdin; W4's scale
                                                 and the batch budget, 0 for its own
    python -m benchmarks.servers command free --port 50051
                                                 the real `rerank-grpc serve` with these options, of a
                                                 checkpoint or of the model that costs nothing

Each but the last prints one JSON line when it is ready. The service has its token check on
and writes one log line a call.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks import checkpoints, workloads

if TYPE_CHECKING:
    from rerank_grpc.engine.engine import Engine, OnDeath
    from rerank_grpc.engine.meter import Counts
    from rerank_grpc.runner.runner import Landing
    from rerank_grpc.sequence import Sequence

TOKEN = "benchmark"
RUNNING: list[grpc.Server] = []  # one that nobody holds is stopped
CALLERS = 16
# Names a file by which processes take turns to measure the device they share; without it none waits.
LOCK_VARIABLE = "BENCH_LOCK"
LONGEST_TURN = 30.0  # seconds that one waits for the others
LOOK_SECONDS = 1e-3  # a device's counts are looked at so often, to see a batch end
METADATA = (("authorization", f"Bearer {TOKEN}"),)


@dataclass(frozen=True, slots=True)
class Served:
    """A server in a process of its own, and a channel to it."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.facts['port']}"

    def ask(self, question: str) -> dict[str, Any]:
        """Sends a line to its stdin and reads the answer, one JSON line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """Starts one of the servers above, waits until it is ready, and stops it at last."""
    command = [sys.executable, "-m", "benchmarks.servers", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise SystemExit(f"{' '.join(arguments)} did not start:\n{log.read()[-2000:]}")
            yield Served(process, json.loads(line))
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def taking_turns() -> Iterator[None]:
    """Waits for other processes that would disturb a measurement on the same device, but not for ever."""
    name = os.environ.get(LOCK_VARIABLE)
    if not name:
        yield
        return
    with open(name, "w") as file:
        until = perf_counter() + LONGEST_TURN
        while perf_counter() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                sleep(0.02)
        yield


def warm_up_in_turns() -> None:
    """Lets the warm-ups of models take turns with those of other processes, whose batches they would time."""
    from rerank_grpc.registry import loading
    from rerank_grpc.registry.warmup import warm_up

    def waiting(*arguments: Any) -> None:
        with taking_turns():
            warm_up(*arguments)

    loading.warm_up = waiting  # type: ignore[assignment,attr-defined]


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def echo() -> None:
    say(port=start_echo())
    sys.stdin.read()


def start_echo() -> int:
    from rerank_grpc.v1 import rerank_pb2 as pb
    from rerank_grpc.v1 import rerank_pb2_grpc

    class Servicer(rerank_pb2_grpc.RerankServiceServicer):
        def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
            count = range(len(request.documents))
            return pb.RerankResponse(
                results=[pb.RerankResult(index=n, relevance_score=0.5, logit=0.5) for n in count]
            )

    server = grpc.server(ThreadPoolExecutor(128), options=[("grpc.max_receive_message_length", 8 << 20)])
    rerank_pb2_grpc.add_RerankServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    RUNNING.append(server)
    return port


class Free:
    """A runner that costs nothing."""

    depth = 1

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        return lambda: [0.5] * len(sequences)


def free() -> None:
    serve("embedded", free_loader())


def free_loader() -> Any:
    """Loads a cross-encoder whose tokenizer is real and whose model costs nothing, warmed up as any."""
    from benchmarks.fileless import FilelessLoader
    from rerank_grpc.config.settings import EngineSettings, ModelSpec
    from rerank_grpc.engine.engine import Engine
    from rerank_grpc.registry.slot import LoadedModel
    from rerank_grpc.registry.warmup import warm_up
    from rerank_grpc.tokenizer.tokenizer import tokenizer_for

    card = load("minilm").card

    class FreeLoader(FilelessLoader):
        def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
            engine = Engine(Free(), EngineSettings(), name=spec.name, on_death=on_death)
            engine.start()
            tokenizer = tokenizer_for(card)
            warm_up(engine, tokenizer, card)
            return LoadedModel(spec.name, card, tokenizer, engine)

    return FreeLoader()


def load(name: str) -> Any:
    from rerank_grpc.config.settings import ServerSettings
    from rerank_grpc.registry.loading import ModelLoader

    return ModelLoader(ServerSettings()).read_model(str(checkpoints.checkpoint(name)))


def serve(source: str, loader: Any = None, budget: int = 0) -> None:
    from rerank_grpc.cli.logs import log_to
    from rerank_grpc.cli.serve import freeze_imports
    from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
    from rerank_grpc.server.server import RerankServer

    freeze_imports()
    # Standard error is a file here, and a log line costs what it costs in production.
    log_to(sys.stderr, "info", for_people=False)
    settings = replace(
        ServerSettings(),
        models=(ModelSpec("model", source),),
        port=0,
        admin_port=None,
        access_tokens=(TOKEN,),
        engine=EngineSettings(max_batch_tokens=budget or None),
    )
    warm_up_in_turns()
    began = perf_counter()
    server = RerankServer(settings, loader=loader)
    server.start()
    server.wait_until_loaded()
    ready = round(perf_counter() - began, 1)
    info = server.registry.models()[0]
    say(port=server.port, precision=info.precision, budget=info.max_batch_tokens, ready_seconds=ready)
    sys.stdin.read()
    server.stop(5)


def command(name: str, *options: str) -> None:
    """Runs the real command, whose server loads the model "free", or a checkpoint by its name."""
    from rerank_grpc import cli, reranker

    source = "embedded"
    if name == "free":
        loader = free_loader()
        reranker.ModelLoader = lambda settings: loader  # type: ignore[assignment,attr-defined]
    else:
        source = str(checkpoints.checkpoint(name))
    raise SystemExit(cli.main(["serve", "--model", f"model={source}", *options]))


def rest_server(name: str) -> None:
    """Serves REST beside gRPC; each line on stdin is the least number of seconds to watch the device for."""
    from rerank_grpc.cli.serve import freeze_imports, rest_beside
    from rerank_grpc.config.settings import ModelSpec, RestSettings, ServerSettings
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.registry.slot import LoadedModel
    from rerank_grpc.server.server import RerankServer

    loaded: list[LoadedModel] = []

    class Kept(ModelLoader):
        """Keeps what it loads, whose engine is watched."""

        def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
            loaded.append(super().load(spec, on_death))
            return loaded[-1]

    freeze_imports()
    settings = ServerSettings(
        models=(ModelSpec("model", str(checkpoints.checkpoint(name))),),
        port=0,
        admin_port=None,
        access_tokens=(TOKEN,),
        rest=RestSettings(port=0),
    )
    server = RerankServer(settings, loader=Kept(settings))
    beside = rest_beside(server)
    assert beside is not None
    server.start()
    beside.start()
    server.wait_until_loaded()
    (model,) = loaded
    say(rest=beside.port, precision=model.card.precision, budget=model.engine.max_batch_tokens)
    for line in sys.stdin:
        say(**watch(model.engine, float(line)))
    beside.stop(1)
    server.stop(5)


def watch(engine: Engine, seconds: float) -> dict[str, float]:
    """Counts from the end of a batch to that of the first one after so many seconds."""
    started, before = next_batch(engine)
    sleep(seconds)
    ended, after = next_batch(engine)
    return after.since(before)._asdict() | {"seconds": ended - started}


def next_batch(engine: Engine) -> tuple[float, Counts]:
    """Waits until a batch ends; returns when, and the counts then."""
    before = engine.counts.batches
    while (counts := engine.counts).batches == before:
        sleep(LOOK_SECONDS)
    return perf_counter(), counts


def alone(name: str, scale: str = "1", budget: str = "0") -> None:
    """Runs the calls of W4 through the engine without a server; each line on stdin is a number of seconds."""
    from rerank_grpc.config.settings import EngineSettings
    from rerank_grpc.engine.engine import Engine
    from rerank_grpc.kept import Kept
    from rerank_grpc.registry.warmup import warm_up
    from rerank_grpc.runner.cuda import runner_for
    from rerank_grpc.tokenizer.tokenizer import tokenizer_for

    model = load(name)
    tokenizer = tokenizer_for(model.card)
    engine = Engine(runner_for(model), EngineSettings(max_batch_tokens=int(budget) or None))
    engine.start()
    with taking_turns():  # the budget is the one that a server of the same model keeps
        warm_up(engine, tokenizer, model.card, Kept("budgets"))
    requests = [workloads.request_of(workloads.QUERY, call) for call in concurrent_calls(float(scale))]
    calls = [tokenizer.tokenize(request).sequences for request in requests]
    say(port=0, budget=engine.max_batch_tokens, precision=model.card.precision)
    for line in sys.stdin:
        say(tokens_per_second=saturate(engine, calls, float(line)))


def saturate(engine: Any, calls: list[Any], seconds: float) -> float:
    """Keeps as many calls in the engine as W4 has callers; returns tokens per second."""
    from rerank_grpc.types import Call

    started, done = perf_counter(), 0

    def caller(number: int) -> int:
        tokens = 0
        for turn in range(number, 1 << 30, CALLERS):
            if perf_counter() - started > seconds:
                break
            with engine.admit(Call()) as admission:
                request = admission.submit(calls[turn % len(calls)])
                request.wait()
            tokens += request.tokens
        return tokens

    with ThreadPoolExecutor(CALLERS) as callers:
        done = sum(callers.map(caller, range(CALLERS)))
    return done / (perf_counter() - started)


def concurrent_calls(scale: float = 1.0) -> list[tuple[str, ...]]:
    """The documents of W4's calls: 10 to 100 each, no two alike, of W2's lengths times `scale`."""
    texts = workloads.passages(3_000, seed=4, scale=scale).documents
    calls, start = [], 0
    for number in range(48):
        count = 10 + (number * 37) % 91
        calls.append(texts[start : start + count])
        start += count
    return calls


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    kind, *rest = sys.argv[1:]
    kinds: dict[str, Callable[..., None]] = {
        "echo": echo,
        "free": free,
        "model": model_server,
        "rest": rest_server,
        "alone": alone,
        "command": command,
    }
    kinds[kind](*rest)


def model_server(name: str, budget: str = "0") -> None:
    serve(str(checkpoints.checkpoint(name)), budget=int(budget))


if __name__ == "__main__":
    main()
