"""Threads that answer calls are bound to one CPU, and threads that compute are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rerank_grpc import cpus
from rerank_grpc.config.settings import ModelSpec, Settings
from rerank_grpc.cpus import OneCpu, use_those_of
from rerank_grpc.engine.batch import PackedBatch
from rerank_grpc.engine.request import Output
from rerank_grpc.errors import ConfigurationError
from tests import checkpoints
from tests.support import CountingRunner, request_of, serving, stub_of, wait_for

ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="there is no CPU to choose")
ONE = min(ALL, default=0)


def own_cpus() -> set[int]:
    """The CPUs that the calling thread may use."""
    return os.sched_getaffinity(0)


def cpus_in_thread() -> set[int]:
    """The CPUs that a thread may use which is started now."""
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(own_cpus()))
    thread.start()
    thread.join()
    return found[0]


def python_threads() -> dict[str, set[int]]:
    """The CPUs of the threads that Python has started, by what their names begin with."""
    found = {}
    for thread in threading.enumerate():
        try:
            found[thread.name.rstrip("0123456789_")] = os.sched_getaffinity(thread.native_id or 0)
        except ProcessLookupError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize(
    ("allowed", "drawn"),
    [({3, 5}, {3, 5}), ({0, 1, 2, 3}, {0, 1, 2, 3}), ({7}, {None}), (set(range(5)), {None})],
    ids=["two", "four", "one", "many"],
)
def test_auto_draws_one_of_a_few_cpus_and_none_of_many(
    allowed: set[int], drawn: set[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: allowed)
    assert {OneCpu("auto").number for _ in range(200)} == drawn


def test_threads_started_for_it_are_bound_and_who_asks_is_not() -> None:
    assert OneCpu(ONE).run(cpus_in_thread) == {ONE}
    assert own_cpus() == ALL
    assert cpus_in_thread() == ALL


def test_who_asks_gets_what_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        OneCpu(ONE).run(lambda: 1 / 0)


def test_off_binds_nothing() -> None:
    assert OneCpu(None).run(cpus_in_thread) == ALL
    assert OneCpu(None).run(threading.get_ident) == threading.get_ident()


def test_a_cpu_of_others_is_refused_with_those_that_may_be_used() -> None:
    with pytest.raises(ConfigurationError, match=rf"--call-cpu: CPU 99999 .*\({ONE}"):
        OneCpu(99_999)


def test_a_cpu_that_has_gone_since_leaves_threads_as_they_are_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpu = OneCpu(ONE)
    cpu.number = 99_999
    assert cpu.run(cpus_in_thread) == ALL
    assert "cannot bind a thread to CPUs [99999]" in caplog.text


def test_a_thread_can_be_let_use_what_another_one_does() -> None:
    def free() -> set[int]:
        use_those_of(threading.main_thread())
        return own_cpus()

    assert OneCpu(ONE).run(free) == ALL


def test_the_cpus_of_a_thread_that_has_ended_are_nobodys() -> None:
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()

    def free() -> set[int]:
        use_those_of(threading.Thread())
        use_those_of(ended)
        return own_cpus()

    assert OneCpu(ONE).run(free) in ({ONE}, ALL)  # its number may have been given to another already


def test_of_a_server_the_threads_that_answer_are_bound_and_those_that_compute_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "rerank_grpc.server.app")
    with serving(Settings(call_cpu=ONE), runner=CountingRunner()) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document", "another one"), timeout=10)
        found = python_threads()
    assert found["rerank"] == {ONE}
    for name in ("watch-embedded", "keep-models", "MainThread"):
        assert found[name] == ALL, name
    assert f"calls are answered on CPU {ONE}" in caplog.text


class Computes(CountingRunner):
    """A runner that remembers which CPUs each batch could use."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[set[int]] = []

    def place(self) -> set[int]:
        return own_cpus()

    def run(self, batch: PackedBatch) -> list[Output | None]:
        self.places.append(self.place())
        return super().run(batch)


def device_waits_on(place: set[int]) -> None:
    wait_for(lambda: python_threads()["device-embedded"] == place)


def test_the_device_thread_waits_with_the_callers_and_computes_everywhere() -> None:
    runner = Computes()
    with serving(Settings(call_cpu=ONE), runner=runner) as server, stub_of(server.port) as stub:
        for number in range(3):
            stub.Rerank(request_of("query", f"document {number}"), timeout=10)
            device_waits_on({ONE})
    assert runner.places == [ALL] * 3


def watcher() -> int:
    # The last one started: the engine of an earlier test may not have ended yet.
    *_, found = [thread for thread in threading.enumerate() if thread.name == "watch-embedded"]
    assert found.native_id is not None
    return found.native_id


def test_the_device_thread_follows_when_the_process_is_given_other_cpus() -> None:
    runner, other = Computes(), max(ALL)
    with serving(Settings(call_cpu=ONE), runner=runner) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document"), timeout=10)
        device_waits_on({ONE})
        os.sched_setaffinity(watcher(), {other})  # as Linux does to threads that asked for none
        stub.Rerank(request_of("query", "another document"), timeout=10)
    assert runner.places == [ALL, {other}]


def test_a_device_thread_whose_callers_cpu_has_gone_says_so_once_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner, other = Computes(), max(ALL)
    with serving(Settings(call_cpu=ONE), runner=runner) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document"), timeout=10)
        device_waits_on({ONE})
        server.call_cpu.number = 99_999
        os.sched_setaffinity(watcher(), {other})
        for number in range(2):
            stub.Rerank(request_of("query", f"document {number}"), timeout=10)
            device_waits_on({other})
            wait_for(lambda: server.call_cpu.number is None)
        os.sched_setaffinity(watcher(), ALL)  # it has come back
        stub.Rerank(request_of("query", "the last document"), timeout=10)
    assert runner.places == [ALL, {other}, {other}, ALL]
    assert caplog.text.count("cannot bind a thread") == 1


@pytest.mark.parametrize("forbidden", ["sched_getaffinity", "sched_setaffinity"])
def test_a_device_thread_that_may_not_be_moved_any_more_goes_on(
    forbidden: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    runner = Computes()
    with serving(Settings(call_cpu=ONE), runner=runner) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document"), timeout=10)
        device_waits_on({ONE})
        with monkeypatch.context() as patch:
            patch.setattr(cpus.os, forbidden, forbid)
            patch.setattr(Computes, "place", lambda _: set())
            for number in range(3):
                stub.Rerank(request_of("query", f"document {number}"), timeout=10)
    assert len(runner.places) == 4
    assert caplog.text.count("cannot bind a thread") <= 1


def test_a_model_that_a_bound_thread_calls_for_is_brought_by_free_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[int]] = []

    def prepare(_: ModelSpec) -> int:
        seen.append(own_cpus())
        return 0

    monkeypatch.setattr("rerank_grpc.registry.building.ready_at_once", prepare)
    lazy = ModelSpec("lazy", "embedded", lazy=True)
    settings = Settings(models=(ModelSpec("first", "embedded"), lazy), call_cpu=ONE)
    with serving(settings, runner=CountingRunner()) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document", model="lazy"), timeout=20)
        found = python_threads()
    assert seen == [ALL, ALL]
    assert found["watch-lazy"] == ALL


# The rest in processes of their own: which threads the libraries start, and when, depends on all
# that a process has done before.

THREADS = """
def threads():
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            name = open(f"/proc/self/task/{task}/comm").read().strip()
            found[int(task)] = name, sorted(os.sched_getaffinity(int(task)))
        except OSError:  # it has just ended
            continue
    return found
"""

TOKENIZES_IN_A_BOUND_THREAD = f"""
import json, os, sys, time
from pathlib import Path
from rerank_grpc.cpus import OneCpu
from rerank_grpc.engine.vocabulary import read_vocabulary
{THREADS}
before = set(threads())
vocabulary = read_vocabulary(Path(sys.argv[1]), "bert")
loaded = set(threads())
OneCpu(int(sys.argv[2])).run(lambda: vocabulary.encode_batch(["naïve documents of some length"] * 100))
print(json.dumps([threads()[task][1] for task in loaded - before]))
everywhere = sorted(os.sched_getaffinity(0))
for _ in range(500):  # the bound thread has been joined, and will be gone
    bound = [place for _, place in threads().values() if place != everywhere]
    if not bound:
        break
    time.sleep(0.01)
print(json.dumps(bound))
"""

SERVES_BOTH = f"""
import json, os, sys, urllib.request
from dataclasses import replace
from rerank_grpc.cli import rest
from rerank_grpc.config.settings import Settings
from rerank_grpc.server.app import RerankServer
{THREADS}
settings = replace(Settings(), port=0, admin_port=None, call_cpu=int(sys.argv[1]))
settings = replace(settings, rest=replace(settings.rest, port=0))
server = RerankServer(settings)
shim = rest.beside(settings, server.local_port, server.health)
server.start()
server.call_cpu.run(shim.start)
server.wait_until_loaded()
body = json.dumps({{"query": "query", "documents": ["naïve document", "naïve other"]}}).encode()
urllib.request.urlopen(f"http://127.0.0.1:{{shim.port}}/v1/rerank", body).read()
print(json.dumps(list(threads().values())))
sys.stdout.flush()
os._exit(0)
"""


def output_of(script: str, *arguments: object) -> list[str]:
    """What a script prints in a process whose libraries start the threads that they start by themselves."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("RAYON_", "OMP_"))}
    environment |= {"TOKENIZERS_PARALLELISM": "true", "GRPC_VERBOSITY": "NONE"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_tokenizers_threads_are_started_at_load_with_all_cpus(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    checkpoints.wordpiece().save(str(path))
    started, bound = map(json.loads, output_of(TOKENIZES_IN_A_BOUND_THREAD, path, ONE))
    assert len(started) >= 2
    assert all(place == sorted(ALL) for place in started)
    assert bound == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_grpcs_own_threads_and_those_of_rest_are_bound_and_the_libraries_are_not() -> None:
    (line,) = output_of(SERVES_BOTH, ONE)
    found = [(name, set(place)) for name, place in json.loads(line)]
    polling = [place for name, place in found if name.startswith("event_engine")]
    assert polling
    assert all(place == {ONE} for place in polling)
    # Of the threads without a name of their own: both that poll, a worker and REST's are bound; the
    # device's, its team's and the tokenizer's are not.
    unnamed = [place for name, place in found if name.startswith("python")]
    assert sum(place == {ONE} for place in unnamed) >= 4
    assert sum(place == ALL for place in unnamed) >= 5
    assert all(place in ({ONE}, ALL) for place in unnamed)
