"""What attacks, overload and faults do to the service: `make bench-attacks`, about six minutes.

    python -m benchmarks.attacks --only watches,bodies

Every attack is made on the real command, in a process of its own on free ports
of this machine, with the embedded model and no tokens: what a stranger can do
to that, a stranger can do at all. Bystanders are timed before and during it, in
the same run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.attacks import callers, faults, strangers
from benchmarks.attacks.checkpoints import write_models
from benchmarks.attacks.probes import Figure
from benchmarks.attacks.service import COMMAND, Service

# No attack takes so long, unless what it waits for never comes.
ATTACK_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack, and what happens.

    `arguments` are the server's; "{models}" in them is where the checkpoints
    lie. Attacks with the same arguments share a server that is still there; one
    that measures memory is `fresh`: what others have left would hide what it takes.
    """

    name: str
    attack: str
    happens: str
    run: Callable[[Service], list[Figure]]
    arguments: tuple[str, ...] = ()
    tokens: str = ""
    fresh: bool = False
    command: tuple[str, ...] = COMMAND


FOUR = tuple(word for name in callers.FOUR_MODELS[1:] for word in ("--model", f"{name}=embedded"))
LAZY = tuple(word for name in faults.LAZY_MODELS for word in ("--lazy-model", f"{name}={{models}}/slow"))
PAUSED = ("--hang-timeout", f"{faults.HANG_SECONDS:g}")
SHORT = ("--grace", f"{faults.GRACE_SECONDS:g}")

ATTACKS = (
    # Without a token
    Attack(
        "bodies",
        "8 × 96 calls without a body, on both ports: Check, then Rerank",
        "they are cancelled, those of the connection that has most first",
        strangers.calls_without_body,
    ),
    Attack(
        "streams",
        "96 and 192 StreamReranks that nobody reads",
        "a call gives its place back once it is scored; a reader that stalls is cancelled",
        strangers.stalled_streams,
    ),
    Attack(
        "connections",
        "2,000 idle connections on each port",
        "ports take thousands, and drop those that say nothing",
        strangers.idle_connections,
    ),
    Attack(
        "reflection",
        "192 idle reflection streams",
        "a stream that asks nothing for 10 s is ended",
        strangers.idle_reflection,
    ),
    Attack(
        "log-flood",
        "garbage, and calls with a wrong token to both ports, as fast as they are refused",
        "of one kind, ten lines a second are written and the rest are counted",
        strangers.log_flood,
        tokens="secret",
    ),
    Attack(
        "uploads",
        "40 requests of 8 MiB to Check, each without its end",
        "16 wait at once, at most 5 s",
        strangers.unfinished_bodies,
        fresh=True,
    ),
    Attack(
        "names",
        "20,000 Watches of unknown services, 30 of names of 8 MiB",
        "they are told SERVICE_UNKNOWN or refused, and nothing is kept",
        strangers.unknown_names,
        fresh=True,
    ),
    Attack(
        "scripts",
        "300 connections that ask for the script of /docs and do not read it",
        "it is sent in pieces that wait for their reader",
        strangers.unread_scripts,
        fresh=True,
    ),
    Attack(
        "watches",
        "96 Watches on each port, on connections that may receive nothing",
        "a watcher keeps only its own thread; the server drains as usual",
        strangers.stalled_watches,
    ),
    # By callers
    Attack(
        "small-calls",
        "1,000 one-document calls, then large ones",
        "small batches leave the estimate of full ones alone",
        callers.small_calls,
    ),
    Attack(
        "cancel-storm",
        "4 threads that send 6.8 MiB and cancel after 150 ms, for 8 s",
        "tokenizing stops at the next block; 64 MiB of text are inside at most",
        callers.cancel_storm,
        fresh=True,
    ),
    Attack(
        "empty-documents",
        "4 million empty documents in 8 MB, 4 callers",
        "documents are counted before they are parsed",
        callers.empty_documents,
    ),
    Attack(
        "short-deadlines",
        "calls with 1 ms to go, 4 callers",
        "they end before they cost anything",
        callers.short_deadlines,
    ),
    Attack(
        "rest-flood",
        "200 REST callers at once",
        "probes have a connection of their own; the 97th call is refused at once",
        callers.rest_flood,
    ),
    Attack(
        "models",
        "96 callers on each of four models",
        "one bound for all models together; Health has threads of its own",
        callers.four_models,
        FOUR,
    ),
    Attack(
        "padding",
        "900 short documents and a long one, on a model that pads",
        "sequences of like length are padded together",
        callers.one_long,
        ("--model", "{models}/padded"),
    ),
    # Faults
    Attack(
        "freeze",
        "the process stands still for 8 s amid one-document calls",
        "an idle engine admits every call, and one slow batch is one outlier",
        callers.freeze,
    ),
    Attack(
        "pause",
        f"the process stands still for {2 * faults.HANG_SECONDS:g} s in a call, "
        f"with --hang-timeout {faults.HANG_SECONDS:g}",
        "a pause is no hang: the call is answered",
        faults.pause,
        PAUSED,
    ),
    Attack(
        "hang",
        f"a pass that never ends, with --hang-timeout {faults.HANG_SECONDS:g}",
        "calls fail, and the process ends for its supervisor to restart",
        faults.hang,
        PAUSED,
        command=("-c", faults.HANGS),
    ),
    Attack(
        "loading",
        "ten calls of a model that takes longer to load than they have",
        "they are told so, and when to come again",
        faults.loading,
        ("--lazy-model", "slow={models}/slow"),
    ),
    Attack(
        "thrash",
        "two lazy models called in turn, with memory for one beside the default",
        "a model stays for as long as it took to load, and the default goes last",
        faults.thrash,
        (*LAZY, "--model-memory", "400MiB"),
    ),
    Attack(
        "unloads",
        "UnloadModel of the default again and again",
        "calls wait while it is loaded again",
        faults.unload_loop,
    ),
    # The end
    Attack(
        "log-reader",
        "a log that nobody reads, and garbage to the REST port",
        "only the log's own thread waits",
        faults.deaf_log,
        SHORT,
    ),
    Attack(
        "end-body",
        "SIGTERM beside a Check without a body",
        "a server that stops waits a second for a body",
        faults.end_beside_body,
    ),
    Attack(
        "end-all",
        "SIGTERM beside 96 stalled Watches, 208 calls without a body and a log that nobody reads",
        "the process ends in time",
        faults.end_beside_all,
        SHORT,
    ),
)


def main() -> None:
    chosen = chosen_of(sys.argv[1:])
    began, results = time.monotonic(), list[dict[str, Any]]()
    data: dict[str, Any] = {"when": report.now(), "load_before": report.load_average()}
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder)) as servers:
        for attack in chosen:
            results.append(result_of(attack, servers))
    data |= {"seconds": round(time.monotonic() - began), "load_after": report.load_average()}
    data["attacks"] = results
    markdown = page(data)
    if len(chosen) == len(ATTACKS):
        report.write("attacks", data, markdown)
    print(markdown)


def chosen_of(arguments: Sequence[str]) -> list[Attack]:
    """The attacks that the command line asks for."""
    names = [attack.name for attack in ATTACKS]
    parser = argparse.ArgumentParser(prog="benchmarks.attacks", description="Attacks the service.")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(names)}; writes no page")
    only = parser.parse_args(arguments).only
    wanted = only.split(",") if only else names
    if unknown := set(wanted).difference(names):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    return [attack for attack in ATTACKS if attack.name in wanted]


class Servers:
    """The server that runs at present, of which there is never more than one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._service: Service | None = None
        self._started_with: tuple[object, ...] = ()

    def of(self, attack: Attack) -> Service:
        """Gives the server that is there if it suits an attack, or starts one."""
        wanted = (attack.command, attack.arguments, attack.tokens)
        if attack.fresh or self._service is None or self._service.ended or self._started_with != wanted:
            self.close()
            if any("{models}" in word for word in attack.arguments) and not any(self._folder.iterdir()):
                write_models(self._folder)
            arguments = [word.format(models=self._folder) for word in attack.arguments]
            self._service = Service(*arguments, command=attack.command, RERANK_TOKENS=attack.tokens)
            self._started_with = wanted
        return self._service

    def close(self) -> None:
        if self._service is not None:
            self._service.close()
            self._service = None

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def result_of(attack: Attack, servers: Servers) -> dict[str, Any]:
    """Makes an attack; one that breaks down has not met what is asked."""
    print(f"{attack.name}: {attack.attack} ...", file=sys.stderr, flush=True)
    service = servers.of(attack)
    started = time.monotonic()
    try:
        with at_most(ATTACK_SECONDS):
            figures = attack.run(service)
    except Exception as error:
        servers.close()
        figures = [Figure("the attack can be made", f"{type(error).__name__}: {error}", 0, met=False)]
    seconds = round(time.monotonic() - started, 1)
    for figure in figures:
        met = "" if figure.met else "  NOT MET"
        print(f"    {figure.asked}: {figure.measured}{met}", file=sys.stderr, flush=True)
    shown = {"name": attack.name, "attack": attack.attack, "happens": attack.happens}
    return {**shown, "seconds": seconds, "figures": [asdict(figure) for figure in figures]}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in a `with` statement that takes longer."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not over after {seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def page(data: dict[str, Any]) -> str:
    lines = ["| attack | what happens | bound | measured | met |", "| --- | --- | --- | --- | --- |"]
    for attack in data["attacks"]:
        asked, measured = (
            "; ".join(each[key] for each in attack["figures"]) for key in ("asked", "measured")
        )
        met = "yes" if all(figure["met"] for figure in attack["figures"]) else "**no**"
        lines.append(f"| {attack['attack']} | {attack['happens']} | {asked} | {measured} | {met} |")
    table = "\n".join(lines)
    found = report.versions("rerank-grpc", "grpcio", "torch", "uvicorn")
    return f"""# Attacks, overload and faults

`make bench-attacks`, {data["when"]}, {data["seconds"]} s.

{report.facts(report.machine()["cores"], found)}
- load average before and after: {data["load_before"]}, {data["load_after"]}
- server, attackers and bystanders share these cores
- no tokens are set but for the log's flood, so that every method is open to the attacker
- the attackers' processes have a lower priority (`nice`): elsewhere they have machines of their own
- a probe is a call over a connection of its own; the slowest of 20 counts, and "quiet" is that of 20 before
- a refusal is timed by one more caller, from outside; the median of 20 counts, with what its connection costs
- memory is what the process's peak, or with unknown names its present size, has grown by

{table}
"""


if __name__ == "__main__":
    main()
