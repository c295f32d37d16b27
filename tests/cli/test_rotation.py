"""Tokens are exchanged in a file under load, by real processes: calls, streams in progress and health."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from rerank_grpc.client import Client, Unauthenticated
from tests import command
from tests.support import wait_for

OLD, NEW = "canary-old", "canary-new"
DOCUMENTS = ["Our office is closed.", "Open Settings."]
PACE_SECONDS = 0.1  # between two calls of each token: 20 a second of both


class Outcome(NamedTuple):
    """One call: when it began and ended, and whether its token was accepted."""

    began: float
    ended: float
    accepted: bool


class Caller:
    """Calls with one token, over gRPC and REST in turn, until it is stopped; any other failure ends it."""

    def __init__(self, server: command.Served, token: str) -> None:
        self._server, self._token = server, token
        self.outcomes: list[Outcome] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def last(self) -> bool | None:
        assert self.failure is None, self.failure
        return self.outcomes[-1].accepted if self.outcomes else None

    def _run(self) -> None:
        try:
            with Client(self._server.target, token=self._token) as client:
                ways: Iterator[Callable[[], bool]] = itertools.cycle(
                    [lambda: self._over_grpc(client), self._over_rest]
                )
                while not self._stopping.wait(PACE_SECONDS):
                    began = time.monotonic()
                    accepted = next(ways)()
                    self.outcomes.append(Outcome(began, time.monotonic(), accepted))
        except BaseException as error:
            self.failure = error

    def _over_grpc(self, client: Client) -> bool:
        try:
            return bool(client.rerank("How do I reset it?", DOCUMENTS).results)
        except Unauthenticated:
            return False

    def _over_rest(self) -> bool:
        body = json.dumps({"query": "How do I reset it?", "documents": DOCUMENTS}).encode()
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self._server.url}/v1/rerank", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return bool(json.load(reply)["results"])
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return False
            raise


class HealthChecks:
    """Runs a container's health check over and over, and keeps what it ended with."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables
        self.done: list[subprocess.CompletedProcess[str]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> HealthChecks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.done.append(command.run("health", "--timeout", "30", **self._variables))

    def bad(self) -> list[str]:
        return [done.stdout + done.stderr for done in self.done if done.returncode]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{OLD}\n")
    return path


def replace(path: Path, *tokens: str) -> None:
    beside = path.with_name("beside")
    beside.write_text("".join(f"{token}\n" for token in tokens))
    beside.replace(path)


def here(server: command.Served, tokens: Path) -> dict[str, str]:
    """Makes the variables of a health check in the server's container."""
    return {"RERANK_PORT": server.target.rpartition(":")[2], "RERANK_TOKEN_FILE": str(tokens)}


@pytest.mark.clock
def test_a_new_token_is_accepted_and_the_old_one_refused_under_load_and_health_stays_green(
    tokens: Path, record_property: Callable[[str, object], None]
) -> None:
    with command.served("--token-file", str(tokens), "--rest-port", "0") as server:
        with (
            Caller(server, OLD) as old,
            Caller(server, NEW) as new,
            HealthChecks(**here(server, tokens)) as checks,
        ):
            wait_for(lambda: len(old.outcomes) > 5 and len(new.outcomes) > 5 and len(checks.done) > 1)
            assert old.last
            assert not new.last
            changed = time.monotonic()
            replace(tokens, NEW)
            wait_for(lambda: new.last is True and old.last is False)
            so_far = len(checks.done)
            calls = len(new.outcomes), len(old.outcomes)
            wait_for(lambda: len(checks.done) > so_far + 1)
            wait_for(lambda: len(new.outcomes) > calls[0] + 20 and len(old.outcomes) > calls[1] + 20)
        for caller, at_first in ((old, True), (new, False)):
            switches = [pair for pair in itertools.pairwise(caller.outcomes) if pair[0][2] is not pair[1][2]]
            assert len(switches) == 1, "a token is accepted or refused for good"
            assert caller.outcomes[0].accepted is at_first
        seconds = (
            max(
                next(
                    each.began for each in caller.outcomes if each.accepted is wanted and each.began > changed
                )
                for caller, wanted in ((old, False), (new, True))
            )
            - changed
        )
        record_property("seconds_to_switch", round(seconds, 2))
        print(f"switched {seconds:.2f} s after the change, {len(new.outcomes)} calls with the new token")
        assert checks.bad() == []
    said = "".join(server.said)
    assert said.count("tokens read again: 1 (1 new, 1 gone)") == 1
    assert "canary" not in said


def test_both_tokens_are_accepted_while_the_file_lists_both(tokens: Path) -> None:
    with (
        command.served("--token-file", str(tokens), "--rest-port", "0") as server,
        Caller(server, OLD) as old,
        Caller(server, NEW) as new,
    ):
        wait_for(lambda: bool(old.last) and new.last is False)
        replace(tokens, NEW, OLD)
        wait_for(lambda: bool(new.last))
        replace(tokens, NEW)
        wait_for(lambda: old.last is False)
        assert new.last
        refused = [each.accepted for each in new.outcomes]
        assert sorted(refused) == refused


def test_a_file_that_is_spoilt_keeps_the_tokens_and_health_is_green(tokens: Path) -> None:
    with command.served("--token-file", str(tokens), "--rest-port", "0") as server:
        for spoil, says in ((tokens.unlink, "no such file"), (tokens.touch, "holds no token")):
            spoil()
            wait_for(lambda says=says: any(says in line for line in server.said))  # type: ignore[misc]
            with Client(server.target, token=OLD) as client:
                assert client.rerank("How do I reset it?", DOCUMENTS).results
            done = command.run("health", **here(server, tokens))
            assert (done.returncode, done.stderr) == (0, "")
            assert "the default model is serving" in done.stdout
        with pytest.raises(Unauthenticated), Client(server.target) as client:
            client.list_models()


def test_a_stream_in_progress_goes_on_though_its_token_is_gone(tokens: Path) -> None:
    documents = [f"document {number}: {'word ' * 200}" for number in range(900)]
    with command.served("--token-file", str(tokens)) as server, Client(server.target, token=OLD) as client:
        late = 0
        with client.stream_rerank("How do I reset it?", documents, timeout=110) as stream:
            next(stream)
            replace(tokens, NEW)
            for _ in stream:
                late += any("tokens read again" in line for line in server.said)
                if late > 3:
                    break
        assert late, "the stream ended before its token was gone"
        with pytest.raises(Unauthenticated):
            client.list_models()


@contextmanager
def rest_alone(*arguments: str, **variables: str) -> Iterator[tuple[str, list[str]]]:
    """Runs `rerank-grpc rest`; yields its URL, and the lines of its log as they come."""
    options = ["rest", "--rest-port", "0", "--metrics-port", "off", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", *options],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=command.environment(**variables),
    )
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    try:
        wait_for(lambda: any("serves REST at" in line for line in said), seconds=60)
        (line,) = (line for line in said if "serves REST at" in line)
        yield line.split()[5].rstrip(","), said
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def status_of(url: str, path: str, token: str = "") -> tuple[int, dict[str, object]]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rest_alone_reads_its_callers_tokens_and_its_own_again(tokens: Path, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    upstream.write_text(f"{OLD}\n")
    with (
        command.served("--token-file", str(tokens)) as server,
        rest_alone(
            *("--target", server.target, "--token-file", str(tokens)),
            *("--upstream-token-file", str(upstream)),
        ) as (url, said),
    ):
        assert status_of(url, "/health")[1]["model"] == "embedded"
        replace(tokens, NEW)
        replace(upstream, NEW)
        wait_for(lambda: status_of(url, "/v1/models", NEW)[0] == 200)
        wait_for(lambda: status_of(url, "/v1/models", OLD)[0] == 401)
        wait_for(lambda: status_of(url, "/health")[1].get("model") == "embedded")
        wait_for(lambda: any("the token for the servers was read again" in line for line in said))
        # Which of the two files was read again first, is open.
        wait_for(lambda: any("tokens read again: " in line for line in said))
        assert sum("tokens read again: 1 (1 new, 1 gone)" in line for line in said) == 1
        assert "canary" not in "".join(said)
