"""Threads that answer calls are bound to one CPU, and threads that compute are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rerank_grpc.config import ModelSpec, Settings
from rerank_grpc.cpus import OneCpu, use_all
from rerank_grpc.errors import ConfigurationError
from tests import checkpoints
from tests.support import CountingRunner, request_of, serving, stub_of

ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="there is no CPU to choose")
ONE = min(ALL, default=0)


def cpus_in_thread() -> set[int]:
    """The CPUs that a thread may use which is started now."""
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return found[0]


def test_auto_draws_one_of_the_cpus_that_this_process_may_use() -> None:
    drawn = {OneCpu("auto").number for _ in range(200)}
    assert drawn == ALL


def test_threads_started_while_binding_are_bound_and_who_starts_them_is_not() -> None:
    cpu = OneCpu(ONE)
    with cpu.binding():
        assert cpus_in_thread() == {ONE}
    assert os.sched_getaffinity(0) == ALL
    assert cpus_in_thread() == ALL


def test_who_fails_while_binding_is_free_again() -> None:
    with pytest.raises(RuntimeError), OneCpu(ONE).binding():
        raise RuntimeError
    assert os.sched_getaffinity(0) == ALL


def test_off_binds_nothing() -> None:
    cpu = OneCpu(None)
    with cpu.binding():
        assert cpus_in_thread() == ALL
    cpu.bind()
    assert os.sched_getaffinity(0) == ALL


def test_a_cpu_of_others_is_refused_with_those_that_may_be_used() -> None:
    with pytest.raises(ConfigurationError, match=rf"--call-cpu: CPU 99999 .*{ONE}"):
        OneCpu(99_999)


def test_a_cpu_that_cannot_be_had_leaves_the_thread_as_it_is_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpu = OneCpu(ONE)
    cpu.number = 99_999  # it has gone since
    cpu.bind()
    assert os.sched_getaffinity(0) == ALL
    assert "cannot bind a thread to CPUs [99999]" in caplog.text


def test_of_a_server_the_threads_that_answer_are_bound_and_those_that_compute_are_not() -> None:
    with serving(Settings(call_cpu=ONE), runner=CountingRunner()) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document", "another one"), timeout=10)
        found = {
            thread.name.rstrip("0123456789_"): os.sched_getaffinity(thread.native_id or 0)
            for thread in threading.enumerate()
        }
    assert found["rerank"] == {ONE}
    assert next(cpus for name, cpus in found.items() if "_serve" in name) == {ONE}
    for name in ("device-embedded", "watch-embedded", "keep-models", "MainThread"):
        assert found[name] == ALL, name


def test_a_model_that_a_bound_thread_calls_for_is_brought_by_free_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[int]] = []

    def prepare(_: ModelSpec) -> int:
        seen.append(os.sched_getaffinity(0))
        return 0

    monkeypatch.setattr("rerank_grpc.registry.building.ready_at_once", prepare)
    lazy = ModelSpec("lazy", "embedded", lazy=True)
    settings = Settings(models=(ModelSpec("first", "embedded"), lazy), call_cpu=ONE)
    with serving(settings, runner=CountingRunner()) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("query", "a document", model="lazy"), timeout=20)
        cpus = {each.name: os.sched_getaffinity(each.native_id or 0) for each in threading.enumerate()}
    assert seen == [ALL, ALL]
    assert cpus["device-lazy"] == ALL


def test_a_bound_thread_is_freed() -> None:
    def free() -> None:
        use_all()
        found.append(os.sched_getaffinity(0))

    found: list[set[int]] = []
    with OneCpu(ONE).binding():
        thread = threading.Thread(target=free)
        thread.start()
        thread.join()
    assert found == [ALL]


# In a process of its own: the tokenizer starts its threads but once.
TOKENIZES_IN_A_BOUND_THREAD = """
import json, os, sys, threading
from pathlib import Path
from rerank_grpc.cpus import OneCpu
from rerank_grpc.engine.vocabulary import read_vocabulary

vocabulary = read_vocabulary(Path(sys.argv[1]), "bert")
others = {int(task) for task in os.listdir("/proc/self/task")}
with OneCpu(int(sys.argv[2])).binding():
    documents = ["naïve documents of some length"] * 100
    caller = threading.Thread(target=vocabulary.encode_batch, args=[documents])
    caller.start()
    caller.join()
own = {caller.native_id, threading.main_thread().native_id}
rayon = {int(task) for task in os.listdir("/proc/self/task")} - own
print(json.dumps([sorted(os.sched_getaffinity(task)) for task in rayon]))
print(json.dumps(sorted(rayon - others)))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_tokenizers_threads_are_started_at_load_with_all_cpus(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    checkpoints.wordpiece().save(str(path))
    environment = {name: text for name, text in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", TOKENIZES_IN_A_BOUND_THREAD, str(path), str(ONE)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    cpus, started_late = map(json.loads, output.splitlines())
    assert len(cpus) >= 2
    assert all(each == sorted(ALL) for each in cpus)
    assert started_late == []
