"""Models come when they are called and go when another needs the room; nobody who waits is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from rerank_grpc.config import EngineSettings, ModelSpec, Settings
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelFailed,
    ModelLoadError,
    ModelLoading,
    ShuttingDown,
    UnknownModel,
)
from rerank_grpc.registry import LoadedModel, Registry, registry_for, residency
from rerank_grpc.types import State
from tests.support import WAIT, CountingRunner, loader_of

SIZES = {"one": 100, "two": 100, "three": 100, "small": 10, "huge": 1_000}


class Loads:
    """A loader that is counted, can be held, and can be made to fail."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.held = threading.Event()
        self.held.set()
        self.began = threading.Semaphore(0)
        self.most = self._inside = 0
        self._inner = loader_of(CountingRunner(), EngineSettings())

    def __call__(self, spec: ModelSpec, on_death: Callable[[], None]) -> LoadedModel:
        self._inside += 1
        self.most = max(self.most, self._inside)
        self.names.append(spec.name)
        self.began.release()
        assert self.held.wait(WAIT)
        self._inside -= 1
        if spec.name in self.failing:
            raise self.failing[spec.name]
        return replace(self._inner(spec, on_death), memory_bytes=SIZES.get(spec.name, 1))


def spec(name: str, **options: object) -> ModelSpec:
    return replace(ModelSpec(name, "test"), **options)  # type: ignore[arg-type]


@contextmanager
def keeping(loads: Loads, *specs: ModelSpec, **options: object) -> Iterator[Registry]:
    known = {"prepare": lambda each: SIZES.get(each.name, 1)}
    registry = Registry(specs, loads, **known | options)  # type: ignore[arg-type]
    registry.start()
    try:
        yield registry
    finally:
        loads.held.set()
        registry.close()


def states(registry: Registry) -> dict[str, State]:
    return {info.name: info.state for info in registry.models()}


def until(registry: Registry, condition: Callable[[], bool]) -> None:
    """Waits until something has come true, asking again and again."""
    end = monotonic() + WAIT
    with registry._changed:
        while not condition():
            assert monotonic() < end, states(registry)
            registry._changed.wait(0.005)


def use(registry: Registry, name: str, seconds: float = WAIT) -> str:
    with registry.lease(name, deadline=monotonic() + seconds) as model:
        return model.name


def test_a_lazy_model_is_loaded_when_it_is_first_called():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED}
        assert use(registry, "two") == "two"
        assert states(registry)["two"] is State.READY
        assert loads.names == ["one", "two"]


def test_concurrent_first_calls_load_once():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(32) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        answers = [callers.submit(use, registry, "two") for _ in range(32)]
        until(registry, lambda: len(registry._entries[1].waiting) == 32)
        loads.held.set()
        assert [answer.result(WAIT) for answer in answers] == ["two"] * 32
        assert loads.names == ["one", "two"]


def test_no_lock_is_held_while_a_model_loads():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        waiting = callers.submit(use, registry, "two")
        assert loads.began.acquire(timeout=WAIT)
        assert loads.began.acquire(timeout=WAIT)
        assert use(registry, "one", seconds=1) == "one"
        assert registry.info("two").state is State.LOADING
        loads.held.set()
        assert waiting.result(WAIT) == "two"


def test_a_caller_without_enough_time_is_told_when_to_come_back():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        begin = monotonic()
        with pytest.raises(ModelLoading) as caught:
            use(registry, "two", seconds=0.2)
        assert monotonic() - begin < 0.2, "it must be told before its deadline, not after"
        assert caught.value.retry_after
        loads.held.set()
        assert use(registry, "two") == "two"
        registry._entries[1].load_seconds = 30.0
        registry.unload("two", deadline=monotonic() + WAIT)
        loads.held.clear()
        begin = monotonic()
        with pytest.raises(ModelLoading) as caught:
            use(registry, "two", seconds=10)
        assert monotonic() - begin < 1, "ten seconds are known not to be enough"
        assert caught.value.retry_after == 30.0


def test_only_so_many_callers_wait_and_the_others_are_told_so():
    loads = Loads()
    lazy = spec("two", lazy=True)
    with keeping(loads, spec("one"), lazy, max_waiting=2) as registry, ThreadPoolExecutor(2) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        answers = [callers.submit(use, registry, "two") for _ in range(2)]
        until(registry, lambda: len(registry._entries[1].waiting) == 2)
        with pytest.raises(ModelLoading):
            use(registry, "two")
        loads.held.set()
        assert [answer.result(WAIT) for answer in answers] == ["two"] * 2


def test_a_caller_who_leaves_while_it_waits_is_let_go():
    loads, leave = Loads(), []
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()

        def call() -> None:
            with registry.lease("two", on_cancel=leave.append):
                raise AssertionError("it was let in")

        waiting = callers.submit(call)
        until(registry, lambda: bool(registry._entries[1].waiting))
        leave[0]()
        with pytest.raises(Cancelled):
            waiting.result(WAIT)
        loads.held.set()
        until(registry, lambda: registry._entries[1].state is State.READY)
        assert registry._entries[1].leases == 0


def test_the_least_recently_used_makes_room():
    loads = Loads()
    specs = [spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=250) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "two")
        use(registry, "one")
        use(registry, "three")
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED, "three": State.READY}
        assert registry.serving
        assert sum(info.memory_bytes for info in registry.models()) == 200


def test_a_pinned_model_stays():
    loads = Loads()
    specs = [spec("one", pinned=True), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=250) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "one")
        use(registry, "two")
        use(registry, "three")
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED, "three": State.READY}
        assert [info.pinned for info in registry.models()] == [True, False, False]


def test_eviction_waits_for_the_calls_in_progress():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=150) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("one") as model:
            other = callers.submit(use, registry, "two")
            until(registry, lambda: registry._entries[0].state is State.UNLOADING)
            assert model.engine.alive
            assert loads.names == ["one"]
        assert other.result(WAIT) == "two"
        assert states(registry) == {"one": State.UNLOADED, "two": State.READY}


def test_who_calls_a_model_that_is_leaving_gets_it_when_it_is_back():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=150) as registry, ThreadPoolExecutor(2) as callers:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("one"):
            other = callers.submit(use, registry, "two")
            until(registry, lambda: registry._entries[0].state is State.UNLOADING)
            again = callers.submit(use, registry, "one")
            until(registry, lambda: bool(registry._entries[0].waiting))
        assert (other.result(WAIT), again.result(WAIT)) == ("two", "one")
        assert loads.names == ["one", "two", "one"]


def test_a_model_larger_than_the_budget_is_refused_with_both_sizes():
    loads = Loads()
    with keeping(loads, spec("one"), spec("huge", lazy=True), budget=500, prepare=lambda _: 0) as registry:
        assert registry.wait_until_loaded(WAIT)
        with pytest.raises(ModelFailed):
            use(registry, "huge")
        message = registry.info("huge").state_message
        assert "1000 B" in message
        assert "500 B" in message
        assert states(registry)["one"] is State.READY
        with pytest.raises(ModelFailed):
            use(registry, "huge")
        assert loads.names == ["one", "huge"], "a larger model does not become smaller by trying again"


def test_a_model_that_pinned_ones_leave_no_room_for_is_refused():
    loads = Loads()
    specs = [spec("one", pinned=True), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=150) as registry:
        assert registry.wait_until_loaded(WAIT)
        with pytest.raises(ModelFailed):
            use(registry, "two")
        assert "50 B of 150 B" in registry.info("two").state_message
        assert loads.names == ["one"], "it was known beforehand"


def test_what_does_not_fit_at_the_start_is_left_for_when_it_is_called():
    loads = Loads()
    specs = [spec("one"), spec("two"), spec("three")]
    with keeping(loads, *specs, budget=200) as registry:
        assert registry.wait_until_loaded(WAIT)
        assert states(registry) == {"one": State.READY, "two": State.READY, "three": State.UNLOADED}
        assert [info.local_available for info in registry.models()] == [True] * 3
        assert use(registry, "three") == "three"


def test_it_is_told_whose_files_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "bge-reranker-base").mkdir()
    sources = (
        "embedded",
        "bge-reranker-base",
        "BAAI/bge-reranker-large",
        str(tmp_path),
        str(tmp_path / "none"),
    )
    models = tuple(ModelSpec(source.replace("/", "-"), source, lazy=True) for source in sources)
    registry = registry_for(replace(Settings(), models=models, models_dir=tmp_path))
    assert [info.local_available for info in registry.models()] == [True, True, False, True, False]


def test_an_unused_model_leaves_memory_and_comes_back():
    loads = Loads()
    specs = [spec("one", pinned=True), spec("two", lazy=True)]
    with keeping(loads, *specs, idle_seconds=0.05) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("two"):
            assert states(registry)["two"] is State.READY
        until(registry, lambda: registry._entries[1].state is State.UNLOADED)
        assert states(registry)["one"] is State.READY
        assert use(registry, "two") == "two"


def test_a_failed_load_says_why_and_is_tried_again():
    loads = Loads()
    loads.failing["two"] = ModelLoadError("the disk is gone: put it back")
    with keeping(loads, spec("one"), spec("two")) as registry:
        assert registry.wait_until_loaded(WAIT)
        info = registry.info("two")
        assert (info.state, info.state_message) == (State.FAILED, "the disk is gone: put it back")
        with pytest.raises(ModelFailed, match="see ListModels"):
            use(registry, "two")
        assert use(registry, "one") == "one"
        del loads.failing["two"]
        until(registry, lambda: registry._entries[1].state is State.READY)
        assert loads.names == ["one", "two", "two"]


def test_an_unexpected_failure_is_told_without_its_text():
    loads = Loads()
    loads.failing["two"] = RuntimeError("canary")
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        with pytest.raises(ModelFailed):
            use(registry, "two")
        message = registry.info("two").state_message
        assert "RuntimeError" in message
        assert "canary" not in message


def test_an_operator_need_not_wait_for_the_back_off():
    loads = Loads()
    loads.failing["two"] = ModelLoadError("broken")
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        with pytest.raises(ModelFailed):
            use(registry, "two")
        registry._entries[1].retry_at = monotonic() + 300
        del loads.failing["two"]
        with pytest.raises(ModelFailed):
            use(registry, "two")
        assert registry.load("two", deadline=monotonic() + WAIT).state is State.READY


def test_the_back_off_doubles_up_to_five_minutes():
    assert [residency.retry_seconds(n) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]


def test_a_default_model_that_fails_ends_the_start():
    loads = Loads()
    loads.failing["one"] = ModelLoadError("broken")
    with keeping(loads, spec("one")) as registry, pytest.raises(ModelLoadError, match="broken"):
        registry.wait_until_loaded(WAIT)


def test_a_model_whose_device_died_is_only_helped_by_an_unload():
    deaths: list[Callable[[], None]] = []
    loads = Loads()

    def load(each: ModelSpec, on_death: Callable[[], None]) -> LoadedModel:
        deaths.append(on_death)
        return loads(each, on_death)

    registry = Registry([spec("one")], load)
    registry.start()
    assert registry.wait_until_loaded(WAIT)
    deaths[0]()
    assert not registry.serving
    with pytest.raises(ModelFailed):
        registry.load("one", deadline=monotonic() + WAIT)
    assert registry.unload("one", deadline=monotonic() + WAIT).state is State.UNLOADED
    assert use(registry, "one") == "one"
    registry.close()


def test_an_unload_past_its_deadline_still_happens():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two")) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("two"), pytest.raises(DeadlineExceeded):
            registry.unload("two", deadline=monotonic() + 0.05)
        until(registry, lambda: registry._entries[1].state is State.UNLOADED)


def test_closing_wakes_whoever_waits_for_a_model():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        waiting = callers.submit(use, registry, "two")
        until(registry, lambda: bool(registry._entries[1].waiting))
        registry.close()
        with pytest.raises(ShuttingDown):
            waiting.result(WAIT)
        with pytest.raises(ShuttingDown):
            use(registry, "one")


@pytest.mark.parametrize(
    "name", ["../one", "/etc/passwd", "https://example.com/one", "ONE", "one/../one", "\x00"]
)
def test_r27_a_path_or_url_is_no_name_and_nothing_is_opened(name: str):
    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        for call in (registry.info, registry.loaded, lambda each: use(registry, each)):
            with pytest.raises(UnknownModel, match="known: one"):
                call(name)
        assert loads.names == ["one"]


def test_2000_calls_on_three_models_with_room_for_two_lose_none():
    loads = Loads()
    names = ["one", "two", "three"]
    specs = [spec(name, lazy=name != "one") for name in names]
    with keeping(loads, *specs, budget=250) as registry, ThreadPoolExecutor(24) as callers:
        calls = [names[(n * 7 + n // 5) % 3] for n in range(2_000)]
        assert list(callers.map(lambda name: use(registry, name, 60), calls)) == calls
        assert loads.most == 1
        assert len(loads.names) > 3, "nothing was evicted: this proves nothing"
        assert all(entry.leases == 0 for entry in registry._entries)
