"""Runs `rerank-grpc bench`: plans, asks, measures, tells."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_grpc import __version__
from rerank_grpc.cli import terminal
from rerank_grpc.cli.ask import identity
from rerank_grpc.cli.judge.bench_progress import BenchProgress
from rerank_grpc.cli.process import needs
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import read_client_settings
from rerank_grpc.config.settings import ClientSettings, RestSettings
from rerank_grpc.config.targets import endpoints_of, is_local, is_loopback
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files import open_files
from rerank_grpc.loadtest.clock import precise_loop
from rerank_grpc.loadtest.driver import Stop
from rerank_grpc.loadtest.measures import StepFigures
from rerank_grpc.loadtest.plan import recorded
from rerank_grpc.loadtest.report import HEAD, Report, remarks, row
from rerank_grpc.loadtest.search import Search
from rerank_grpc.loadtest.slo import Objective
from rerank_grpc.loadtest.steps import Bench, Manner
from rerank_grpc.loadtest.texts import DrawnRange, MadeTexts, RecordedTexts, Texts, read_recording
from rerank_grpc.loadtest.transports.base import CallFailed, Transport
from rerank_grpc.units import duration

if TYPE_CHECKING:
    from rerank_grpc.loadtest.transports.over_rest import RestEndpoint

STEP_SECONDS = 30.0  # without --duration
MISSED = 3  # the exit status of a run that misses its objective
SEARCH_STEPS = 9  # about as many as a search takes, for the time that is told


@dataclass(frozen=True, slots=True)
class _Load:
    """The load that is asked for: rates, a search between two, callers, or a recording at its own times."""

    rates: tuple[float, ...] = ()
    callers: int | None = None
    search: Search | None = None

    def most(self, texts: Texts, manner: Manner) -> str:
        """Describes the heaviest load."""
        if self.callers is not None:
            return f"{self.callers} callers"
        if self.rates:
            return f"{'up to ' if len(self.rates) > 1 else ''}{max(self.rates):g} calls/s"
        assert isinstance(texts, RecordedTexts)
        return f"the {len(texts.calls):,} calls of {texts.name}"

    def seconds(self, manner: Manner) -> float:
        """Foretells how long it takes, without what is waited for at the end of a step."""
        if self.search is not None:
            return SEARCH_STEPS * (manner.warm_up + manner.seconds_at(min(self.rates)))
        steps = [manner.seconds_at(rate) for rate in self.rates] or [manner.seconds]
        return sum(manner.warm_up + each for each in steps)


def run(parsed: argparse.Namespace) -> int:
    """Measures: 0, 3 where the objective is missed, 1 without an end, 128 + a signal behind one.

    Without an end is a run in which nothing was answered, the server went away, the driver could not keep to
    its plan, or a search found no verdict. Raises OptionError, ConfigurationError or RerankError.
    """
    settings = read_client_settings(parsed.flags)
    texts, manner, load = _plan(parsed)
    url = _url(parsed.rest, settings) if parsed.rest is not None else None
    if url is not None:
        _endpoint(url)
    if parsed.output is not None:
        _prepare(parsed.output)
    _confirm(parsed, url or settings.target, local=_is_local(url, settings), load=load, of=(texts, manner))
    open_files.raise_limit()
    report = Report(
        _facts(parsed, texts, manner, local=_is_local(url, settings)),
        manner.objective,
        load.search,
        left_out=manner.recording.left_out if manner.recording is not None else 0,
    )
    progress = BenchProgress(sys.stderr)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_measure(parsed, settings, url, (texts, manner, load), report, progress))
    progress.clear()
    return _tell(parsed, report)


def _plan(parsed: argparse.Namespace) -> tuple[Texts, Manner, _Load]:
    """Reads what is to be sent, and when; raises OptionError or ConfigurationError."""
    seed = parsed.seed if parsed.seed is not None else random.SystemRandom().randrange(1 << 31)
    texts: Texts
    if parsed.replay is not None:
        texts = read_recording(Path(parsed.replay))
        times = texts.times if not parsed.rate and parsed.concurrency is None else None
    else:
        texts, times = MadeTexts(seed, DrawnRange(*parsed.documents), DrawnRange(*parsed.words)), None
    seconds, warm_up, plan = parsed.duration or STEP_SECONDS, parsed.warm_up, None
    if times:
        plan = recorded(times, warm_up, parsed.speed, parsed.duration)
        seconds, warm_up = plan.seconds, plan.warm_up
    manner = Manner(seconds, warm_up, parsed.arrivals, seed, parsed.slo, plan)
    if parsed.concurrency is not None:
        if parsed.rate:
            raise OptionError("--rate and --concurrency: give one of them, an open loop or callers in turn")
        return texts, manner, _Load(callers=parsed.concurrency)
    if not parsed.rate and times is None:
        raise OptionError(
            "--rate N is missing, the calls a second; or --concurrency N, callers that wait for their answers"
        )
    low, high = (min(parsed.rate), max(parsed.rate)) if parsed.rate else (0.0, 0.0)
    if len(parsed.rate) == 2 and parsed.slo != Objective():
        return texts, manner, _Load((low, high), search=Search(low, high))
    if len(parsed.rate) == 2:
        gap = (high - low) / (parsed.steps - 1)
        return texts, manner, _Load(tuple(low + gap * step for step in range(parsed.steps)))
    return texts, manner, _Load(tuple(parsed.rate))


def _url(given: str, settings: ClientSettings) -> str:
    """Completes the URL of REST: by default the target's host with the shim's own port."""
    if given:
        return given
    endpoint = next(iter(endpoints_of(settings.target)), "")
    if isinstance(endpoint, str):
        raise OptionError(f"--rest: name the URL: {settings.target} is no host")
    host = f"[{endpoint[0]}]" if ":" in endpoint[0] else endpoint[0]
    return f"{'http' if settings.tls is None else 'https'}://{host}:{RestSettings().port}"


def _is_local(url: str | None, settings: ClientSettings) -> bool:
    if url is None:
        return is_local(settings.target)
    from urllib.parse import urlsplit

    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host in ("0.0.0.0", "::")


def _prepare(folder: Path) -> None:
    """Makes the folder of the results; raises ConfigurationError before any load is put."""
    with needs("bench --output, which draws a chart,", 'pip install "rerank-grpc[bench]"'):
        import matplotlib  # noqa: F401  # drawn with at the end; missing here, it is told before any load
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--output: {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"--output: {folder}: this user may not write there")


def _confirm(
    parsed: argparse.Namespace, target: str, *, local: bool, load: _Load, of: tuple[Texts, Manner]
) -> None:
    """Asks before a machine other than this one is loaded; raises ConfigurationError without a yes."""
    if local or parsed.yes:
        return
    what = f"this puts {load.most(*of)} on {target} for about {duration(load.seconds(of[1]))}"
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{what}: give --yes where its operator knows of it")
    print(f"{terminal.printable(what)}; type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise ConfigurationError("not confirmed: nothing was sent")


async def _measure(
    parsed: argparse.Namespace,
    settings: ClientSettings,
    url: str | None,
    plan: tuple[Texts, Manner, _Load],
    report: Report,
    progress: BenchProgress,
) -> None:
    """Runs all steps into the report; Ctrl-C ends them, and what was measured stays."""
    texts, manner, load = plan
    stop, loop = Stop(), asyncio.get_running_loop()

    def interrupt(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)  # the second one ends at once
        report.interrupted = number
        stop.set("Ctrl-C" if number is signal.SIGINT else number.name)

    transport = _transport(parsed.model or "", settings, url)
    try:
        report.facts["server"] = await transport.facts()
        bench = Bench(transport, texts, manner, stop, progress.begin, progress.seen)
        try:
            await bench.probe()
        except CallFailed as error:
            raise ConfigurationError(f"the first call failed: {error}") from None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        async with aclosing(_steps(bench, load, stop)) as steps:
            async for figures in steps:
                report.steps.append(figures)
    finally:
        await transport.close()


async def _steps(bench: Bench, load: _Load, stop: Stop) -> AsyncGenerator[StepFigures]:
    if load.search is not None:
        async for figures in bench.search(load.search):
            yield figures
    elif load.callers is not None:
        yield await bench.in_turn(load.callers)
    elif load.rates:
        async for figures in bench.sweep(load.rates):
            yield figures
    else:
        yield await bench.recording()


def _transport(model: str, settings: ClientSettings, url: str | None) -> Transport:
    if url is None:
        from rerank_grpc.client import AsyncClient
        from rerank_grpc.loadtest.transports.over_grpc import GrpcTransport

        client = AsyncClient(settings.target, timeout=settings.timeout, retries=0, **identity(settings))
        return GrpcTransport(client, model)
    from rerank_grpc.loadtest.transports.over_rest import RestTransport

    endpoint = _endpoint(url)
    context = None
    if endpoint.secure:
        from rerank_grpc.tls.channel import TlsSources

        context = (settings.tls or TlsSources()).load().context()
        context.set_alpn_protocols(["http/1.1"])
    return RestTransport(endpoint, model, settings.token, settings.timeout, context)


def _endpoint(url: str) -> RestEndpoint:
    """Reads the URL of REST; raises OptionError, or ConfigurationError where a package is missing."""
    with needs("bench --rest", 'pip install "rerank-grpc[rest]"'):
        from rerank_grpc.loadtest.transports.over_rest import RestEndpoint
    return RestEndpoint.of(url)


def _facts(parsed: argparse.Namespace, texts: Texts, manner: Manner, *, local: bool) -> dict[str, Any]:
    """Gathers what a run is repeated by; neither this machine's name nor the server's is told."""
    import grpc

    return {
        "version": __version__,
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "processors": os.cpu_count(),
        "transport": "gRPC" if parsed.rest is None else "REST",
        "target": "this machine" if local else "another machine",
        "model": parsed.model,
        "seed": manner.seed,
        "arrivals": "recorded" if manner.recording is not None else manner.arrivals,
        "speed": parsed.speed,
        "duration": manner.seconds,
        "warm_up": manner.warm_up,
        "texts": texts.describe(),
    }


def _tell(parsed: argparse.Namespace, report: Report) -> int:
    """Prints and writes what was measured; returns the exit status."""
    value = report.to_json()
    if parsed.json:
        print(json.dumps(value, ensure_ascii=False, indent=1))
    else:
        _print(report)
    if parsed.output is not None and report.steps:
        from rerank_grpc.loadtest.chart import draw

        text = json.dumps(value, ensure_ascii=False, indent=1)
        (parsed.output / "bench.json").write_text(text + "\n", "utf-8")
        draw(report.steps, report.objective, parsed.output / "bench.png")
        print(f"wrote {parsed.output}/bench.json and bench.png", file=sys.stderr)
    if report.interrupted:
        return 128 + report.interrupted
    if not report.is_complete or not any(step.answered for step in report.steps):
        return 1
    return MISSED if report.is_missed else 0


def _print(report: Report) -> None:
    facts, screen = report.facts, Screen.of(sys.stdout)
    server = facts.get("server", {})
    model = " ".join(str(server[name]) for name in ("name", "precision", "device") if name in server)
    open_loop = any(step.rate for step in report.steps)
    unit = "milliseconds from each call's planned time" if open_loop else "milliseconds"
    print(f"{facts['transport']}, {model or 'model unknown'}, seed {facts['seed']}; latencies in {unit}")
    rows = [row(step, report.objective) for step in report.steps]
    shown = [place for place, name in enumerate(HEAD) if name != "slo" or any(each[-1] for each in rows)]
    head = [HEAD[place] for place in shown]
    for line in terminal.table(head, [[each[place] for place in shown] for each in rows], screen):
        print(line)
    for text in remarks(report):
        print(terminal.printable(text))
