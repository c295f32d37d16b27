"""Models come when they are called and go when another needs the room; nobody who waits is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic

import pytest
import torch

from rerank_grpc import __version__
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.engine.engine import OnDeath
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelFailed,
    ModelLoadError,
    ModelLoading,
    ShuttingDown,
    UnknownModel,
)
from rerank_grpc.evidence.facts import Reading
from rerank_grpc.evidence.prompt import Placeholder, Prompt
from rerank_grpc.registry import eviction, keeper, memory
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.registry.memory import ModelBudget, Shortage
from rerank_grpc.registry.registry import Registry, seconds_to_wait
from rerank_grpc.registry.slot import LoadedModel, Slot
from rerank_grpc.sequence import Sequence
from rerank_grpc.telemetry.snapshots import BuildSnapshot, ModelSnapshot
from rerank_grpc.types import Call, State
from tests.support import CARD, LONG, WAIT, ScriptedLoader, submit

SIZES = {"one": 100, "two": 100, "three": 100, "small": 10, "huge": 1_000}


@pytest.fixture(autouse=True)
def _no_least_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets scripted models, whose loading takes no time, leave at once."""
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 0.0)


class Loads(ScriptedLoader):
    """A loader that is counted, can be held, and can be made to fail.

    `prepare` tells how many bytes a model is expected to take, SIZES how many it takes.
    """

    def __init__(self, prepare: Callable[[ModelSpec], int] = lambda each: SIZES.get(each.name, 1)) -> None:
        super().__init__()
        self._prepare = prepare
        self.names: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.held = threading.Event()
        self.held.set()
        self.began = threading.Semaphore(0)
        self.most = self._inside = 0

    def prepare(self, spec: ModelSpec) -> int:
        return self._prepare(spec)

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        self._inside += 1
        self.most = max(self.most, self._inside)
        self.names.append(spec.name)
        self.began.release()
        assert self.held.wait(LONG)
        self._inside -= 1
        if spec.name in self.failing:
            raise self.failing[spec.name]
        return replace(super().load(spec, on_death), memory_bytes=SIZES.get(spec.name, 1))


def spec(name: str, **options: object) -> ModelSpec:
    return replace(ModelSpec(name, "test"), **options)  # type: ignore[arg-type]


@contextmanager
def keeping(loads: Loads, *specs: ModelSpec, **options: object) -> Iterator[Registry]:
    registry = Registry(specs, loads, **options)  # type: ignore[arg-type]
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


def let_leave(registry: Registry, *places: int) -> None:
    """Lets models leave whose stay a test had made long."""
    with registry._changed:
        for place in places:
            registry._slots[place].load_seconds = 0.0
        registry._changed.notify_all()


def try_again(registry: Registry, place: int) -> None:
    """Ends a failed model's wait for its next attempt."""
    with registry._changed:
        registry._slots[place].retry_at = 0.0
        registry._changed.notify_all()


def use(registry: Registry, name: str, seconds: float = WAIT) -> str:
    with registry.lease(name, Call(monotonic() + seconds)) as model:
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
        until(registry, lambda: len(registry._slots[1].waiting) == 32)
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


@pytest.mark.clock
def test_a_caller_without_enough_time_is_told_when_to_come_back():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        took = list[float]()
        for _ in range(3):
            begin = monotonic()
            with pytest.raises(ModelLoading) as caught:
                use(registry, "two", seconds=0.2)
            took.append(monotonic() - begin)
            assert caught.value.retry_after
        # A busy machine may hold one up.
        assert min(took) < 0.2, "it must be told before its deadline, not after"
        loads.held.set()
        assert use(registry, "two") == "two"
        registry.unload("two", deadline=monotonic() + WAIT)
        registry._slots[1].load_seconds = 30.0
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
        until(registry, lambda: len(registry._slots[1].waiting) == 2)
        with pytest.raises(ModelLoading):
            use(registry, "two")
        loads.held.set()
        assert [answer.result(WAIT) for answer in answers] == ["two"] * 2


def test_a_caller_who_leaves_while_it_waits_is_let_go():
    loads, leaving = Loads(), Call()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()

        def call() -> None:
            with registry.lease("two", leaving):
                raise AssertionError("it was let in")

        waiting = callers.submit(call)
        until(registry, lambda: bool(registry._slots[1].waiting))
        leaving.cancel()
        with pytest.raises(Cancelled):
            waiting.result(WAIT)
        loads.held.set()
        until(registry, lambda: registry._slots[1].state is State.READY)
        assert registry._slots[1].leases == 0


def test_a_call_that_goes_on_keeps_no_model_that_it_waited_for():
    loads, call = Loads(), Call()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        waiting = callers.submit(registry.lease, "two", call)
        until(registry, lambda: bool(registry._slots[1].waiting))
        ticket = registry._slots[1].waiting[0]
        loads.held.set()
        waiting.result(WAIT).leave()
        assert ticket.answer is None, "the call refers to the ticket, and would keep the model in memory"


def test_a_caller_who_leaves_at_the_moment_it_is_let_in_keeps_no_lease():
    loads, call = Loads(), Call()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        waiting = callers.submit(registry.lease, "two", call)
        slot = registry._slots[1]
        until(registry, lambda: bool(slot.waiting))
        with registry._changed:  # as the keeper does, before the caller can look
            call.cancel()
            slot.leases += 1
            loaded = registry._slots[0].loaded
            assert loaded is not None
            slot.answer(loaded)
        with pytest.raises(Cancelled):
            waiting.result(WAIT)
        assert slot.leases == 0


def test_the_least_recently_used_makes_room():
    loads = Loads()
    specs = [spec("small"), spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry:
        assert registry.wait_until_loaded(WAIT)
        let_leave(registry, 0, 1, 2)
        use(registry, "two")
        use(registry, "one")
        use(registry, "three")
        assert [name for name, state in states(registry).items() if state is State.UNLOADED] == ["two"]
        assert registry.serving
        assert sum(info.memory_bytes for info in registry.models()) == 210


def in_memory(name: str, *, ready: float = 0, used: float = 0, took: float = 0, leases: int = 0) -> Slot:
    slot = Slot(spec(name), local=True)
    slot.state, slot.ready_at, slot.last_used = State.READY, ready, used
    slot.load_seconds, slot.leases = took, leases
    return slot


def victim(*slots: Slot, now: float = 100.0) -> str | float:
    """Says which model goes, or how long to wait; the first of them is the default."""
    slots[0].is_default = True
    match eviction.victim(slots, now):
        case eviction.Evict(other):
            return other.spec.name
        case eviction.Wait(seconds):
            return seconds


def test_an_idle_model_too_stays_as_long_as_its_loading_took():
    default = in_memory("default", ready=0, took=3)
    recent, former = in_memory("recent", ready=90, took=30), in_memory("former", ready=80, took=25)
    assert victim(default, recent, former) == 5, "20 s for one, 5 s for the other"
    assert victim(default, recent, former, now=105) == "former"


def test_an_idle_model_goes_before_a_busy_one_and_the_least_recently_used_first():
    default = in_memory("default")
    busy = in_memory("busy", used=1, leases=1)
    assert victim(default, busy, in_memory("late", used=9), in_memory("early", used=5)) == "early"
    assert victim(default, busy, in_memory("idle", ready=95, took=30)) == "busy", "the idle one must stay"


def test_the_default_goes_last():
    default = in_memory("default", ready=90, took=15)
    other = in_memory("other", ready=99, took=60, leases=1)
    pinned = in_memory("pinned")
    pinned.spec = replace(pinned.spec, pinned=True)
    assert victim(default, other, pinned) == 59, "another model will leave"
    assert victim(default, pinned) == 5, "no other will, so that it goes when it has stayed"
    assert victim(default, pinned, now=105) == "default"


def test_what_an_operator_wants_out_makes_room_before_all():
    default, other = in_memory("default", ready=90, took=15), in_memory("other", ready=99, took=60)
    default.unload_asked = True
    assert victim(default, other) == 5
    assert victim(default, other, in_memory("idle"), now=105) == "default"


def test_a_stay_has_a_least_and_a_most(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 1.0)
    assert eviction.stays_until(in_memory("fast", ready=10, took=0.01)) == 11
    assert eviction.stays_until(in_memory("slow", ready=10, took=60)) == 70
    assert eviction.stays_until(in_memory("paused", ready=10, took=86_400)) == 310


def test_calls_of_two_lazy_models_never_take_the_default_away():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry:
        assert registry.wait_until_loaded(WAIT)
        for _ in range(10):
            assert use(registry, "one", seconds=0.001) == "one"
            use(registry, "two")
            use(registry, "three")
        assert [loads.names.count(name) for name in ("one", "two", "three")] == [1, 10, 10]


def test_a_call_waits_for_the_room_of_a_model_that_has_not_stayed():
    loads = Loads()
    specs = [spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        registry._slots[1].load_seconds = 60.0
        waiting = callers.submit(use, registry, "three")
        until(registry, lambda: bool(registry._slots[2].waiting))
        with pytest.raises(ModelLoading):
            use(registry, "three", seconds=0.01)
        assert states(registry) == {"one": State.READY, "two": State.READY, "three": State.LOADING}
        let_leave(registry, 1)
        assert waiting.result(WAIT) == "three"
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED, "three": State.READY}


class TightLoads(Loads):
    """A loader in whose process so many models fit the free memory; `registry` tells how many are there."""

    def __init__(self, most: int, missing: int = 50) -> None:
        super().__init__()
        self._most, self._missing = most, missing
        self.registry: Registry | None = None

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        there = [each for each in self.registry._slots if each.loaded] if self.registry else []
        if len(there) >= self._most:
            raise Shortage(f"model {spec.name} takes more than is free", self._missing)
        return super().load(spec, on_death)


def test_a_load_for_which_too_little_is_free_evicts_the_least_recently_used():
    loads = TightLoads(2)
    specs = [spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs) as registry:
        loads.registry = registry
        assert registry.wait_until_loaded(WAIT)
        assert use(registry, "three") == "three"
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED, "three": State.READY}


@pytest.mark.parametrize(("pinned", "missing"), [(True, 50), (False, 500)])
def test_nothing_is_evicted_for_a_load_that_would_still_find_too_little(pinned: bool, missing: int):
    loads = TightLoads(1, missing)
    with keeping(loads, spec("one", pinned=pinned), spec("two", lazy=True)) as registry:
        loads.registry = registry
        assert registry.wait_until_loaded(WAIT)
        with pytest.raises(ModelFailed, match="takes more than is free"):
            use(registry, "two")
        assert states(registry) == {"one": State.READY, "two": State.FAILED}


class BatchLoads(Loads):
    """A loader whose models need 40 bytes for a batch."""

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        return replace(super().load(spec, on_death), batch_bytes=40)


@pytest.mark.parametrize(("left", "state"), [(279, State.UNLOADED), (280, State.READY)])
def test_models_within_a_memory_limit_have_room_for_their_batches(left: int, state: State):
    specs = [spec("one"), spec("two", lazy=True), spec("three", lazy=True)]
    budget = ModelBudget(left=left)
    with keeping(BatchLoads(), *specs, budget=budget) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "two")
        assert states(registry) == {"one": state, "two": State.READY, "three": State.UNLOADED}


def test_a_model_beside_pinned_ones_is_told_the_smaller_bound():
    specs = [spec("one", pinned=True), spec("two", lazy=True)]
    budget = ModelBudget(option=500, left=150, source="this container")
    with keeping(Loads(), *specs, budget=budget) as registry:
        assert registry.wait_until_loaded(WAIT)
        with pytest.raises(ModelFailed, match="raise the memory limit of this container, or pin less"):
            use(registry, "two")


def test_a_model_that_is_left_for_later_is_told_the_smaller_bound(caplog: pytest.LogCaptureFixture):
    with keeping(Loads(), spec("one"), spec("two"), budget=ModelBudget(150)) as registry:
        assert registry.wait_until_loaded(WAIT)
        assert states(registry)["two"] is State.UNLOADED
    assert (
        "leave no room: it is loaded when it is called; to keep it in memory, raise --model-memory"
        in caplog.text
    )


def test_waiting_for_room_is_no_loading_time(monkeypatch: pytest.MonkeyPatch):
    now = 1_000.0
    monkeypatch.setattr(keeper, "monotonic", lambda: now)
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 60.0)
    # Its size is known only once it is there, so that it waits for room after its loading.
    sizes = {"one": 100, "two": 1}
    loads = Loads(lambda each: sizes[each.name])
    specs = [spec("one"), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(150)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        waiting = callers.submit(use, registry, "two")
        until(registry, lambda: registry._slots[1].memory_bytes == 100)
        assert states(registry) == {"one": State.READY, "two": State.LOADING}
        with registry._changed:
            now += 60.0
            registry._changed.notify_all()
        assert waiting.result(WAIT) == "two"
        assert registry._slots[1].load_seconds == 0.0


def test_an_operators_unload_is_not_held_up_by_a_model_that_waits_for_room():
    loads = Loads()
    specs = [spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        registry._slots[1].load_seconds = 60.0
        waiting = callers.submit(use, registry, "three")
        until(registry, lambda: bool(registry._slots[2].waiting))
        assert registry.unload("one", deadline=monotonic() + WAIT).state is State.UNLOADED
        assert waiting.result(WAIT) == "three", "it got the room that the operator made"
        assert states(registry)["two"] is State.READY


def test_the_default_is_loaded_before_what_was_called_earlier():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True), spec("three", lazy=True)]
    with keeping(loads, *specs) as registry, ThreadPoolExecutor(2) as callers:
        assert registry.wait_until_loaded(WAIT)
        registry.unload("one", deadline=monotonic() + WAIT)
        assert loads.began.acquire(timeout=WAIT)
        loads.held.clear()
        waiting = [callers.submit(use, registry, name) for name in ("two", "three")]
        assert loads.began.acquire(timeout=WAIT)
        until(registry, lambda: len(registry._keeper._queue) == 1)
        with pytest.raises(ModelLoading):
            use(registry, "one", seconds=0.01)
        until(registry, lambda: len(registry._keeper._queue) == 2)
        loads.held.set()
        assert [call.result(WAIT) for call in waiting] == ["two", "three"]
        assert loads.names[2] == "one", loads.names


def test_the_default_is_not_left_for_later_by_an_early_call_of_another_model():
    here = threading.Event()
    specs = [spec("one"), spec("two", lazy=True)]

    def prepare(each: ModelSpec) -> int:
        assert each.name != "one" or here.wait(WAIT)
        return SIZES[each.name]

    with keeping(Loads(prepare), *specs, budget=ModelBudget(150)) as registry:
        assert use(registry, "two") == "two"
        here.set()
        assert registry.wait_until_loaded(WAIT)
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED}


def test_loading_again_what_failed_at_the_start_evicts_nothing():
    reachable = threading.Event()

    def prepare(each: ModelSpec) -> int:
        if each.name == "two" and not reachable.is_set():
            raise ModelLoadError("the hub cannot be reached")
        return SIZES[each.name]

    with keeping(Loads(prepare), spec("one"), spec("two"), budget=ModelBudget(150)) as registry:
        assert registry.wait_until_loaded(WAIT)
        assert states(registry)["two"] is State.FAILED
        reachable.set()
        try_again(registry, 1)
        until(registry, lambda: registry._slots[1].state in (State.UNLOADED, State.READY))
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED}
        assert registry.info("two").serving, "its first call loads it"


def test_a_pinned_model_stays():
    loads = Loads()
    specs = [spec("one", pinned=True), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "one")
        use(registry, "two")
        use(registry, "three")
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED, "three": State.READY}
        assert [info.pinned for info in registry.models()] == [True, False, False]


def test_eviction_waits_for_the_calls_in_progress():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(150)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("one", Call()) as model:
            other = callers.submit(use, registry, "two")
            until(registry, lambda: registry._slots[0].state is State.UNLOADING)
            assert model.engine.alive
            assert loads.names == ["one"]
        assert other.result(WAIT) == "two"
        assert states(registry) == {"one": State.UNLOADED, "two": State.READY}


def test_who_calls_a_model_that_is_leaving_gets_it_when_it_is_back():
    loads = Loads()
    specs = [spec("one"), spec("two", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(150)) as registry, ThreadPoolExecutor(2) as callers:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("one", Call()):
            other = callers.submit(use, registry, "two")
            until(registry, lambda: registry._slots[0].state is State.UNLOADING)
            again = callers.submit(use, registry, "one")
            until(registry, lambda: bool(registry._slots[0].waiting))
        assert (other.result(WAIT), again.result(WAIT)) == ("two", "one")
        assert loads.names == ["one", "two", "one"]


def test_the_alias_of_every_name_moves_no_model():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", aliases=("second", "*"), lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        for move in (
            lambda name: registry.load(name, Call(monotonic() + WAIT)),
            lambda name: registry.unload(name, deadline=monotonic() + WAIT),
        ):
            with pytest.raises(UnknownModel, match="no model is named 'tow'; known: one, two, second"):
                move("tow")
        assert states(registry) == {"one": State.READY, "two": State.UNLOADED}
        assert use(registry, "tow") == "two"
        let_leave(registry, 1)
        assert registry.unload("second", deadline=monotonic() + WAIT).state is State.UNLOADED


def test_a_model_larger_than_the_budget_is_refused_with_both_sizes():
    loads = Loads(lambda _: 0)
    with keeping(loads, spec("one"), spec("huge", lazy=True), budget=ModelBudget(500)) as registry:
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
    with keeping(loads, *specs, budget=ModelBudget(150)) as registry:
        assert registry.wait_until_loaded(WAIT)
        with pytest.raises(ModelFailed):
            use(registry, "two")
        assert "50 B of 150 B" in registry.info("two").state_message
        assert loads.names == ["one"], "it was known beforehand"


def test_what_does_not_fit_at_the_start_is_left_for_when_it_is_called():
    loads = Loads()
    specs = [spec("one"), spec("two"), spec("three")]
    with keeping(loads, *specs, budget=ModelBudget(200)) as registry:
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
        "acme/no--id",
    )
    models = tuple(ModelSpec(source.replace("/", "-"), source, lazy=True) for source in sources)
    registry = Registry(models, ModelLoader(replace(ServerSettings(), models_dir=tmp_path)))
    assert [info.local_available for info in registry.models()] == [True, True, False, True, False, False]


def test_an_unused_model_leaves_memory_and_comes_back():
    loads = Loads()
    specs = [spec("one", pinned=True), spec("two", lazy=True)]
    with keeping(loads, *specs, idle_seconds=0.05) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("two", Call()):
            assert states(registry)["two"] is State.READY
        until(registry, lambda: registry._slots[1].state is State.UNLOADED)
        assert states(registry)["one"] is State.READY
        assert use(registry, "two") == "two"


def test_a_failed_load_says_why_and_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eviction, "retry_seconds", lambda _: LONG)
    loads = Loads()
    loads.failing["two"] = ModelLoadError("the disk is gone: put it back")
    with keeping(loads, spec("one"), spec("two")) as registry:
        assert registry.wait_until_loaded(WAIT)
        info = registry.info("two")
        assert (info.state, info.state_message) == (State.FAILED, "the disk is gone: put it back")
        with pytest.raises(ModelFailed, match="model two failed: the disk is gone: put it back") as caught:
            use(registry, "two")
        assert caught.value.metadata == {"model": "two", "state_message": info.state_message}
        assert use(registry, "one") == "one"
        del loads.failing["two"]
        assert loads.names == ["one", "two"]
        try_again(registry, 1)
        until(registry, lambda: registry._slots[1].state is State.READY)
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


def test_a_loaded_model_is_described_by_its_card():
    with keeping(Loads(), spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        slot = registry._slots[0]
        assert slot.loaded is not None
        prompt = Prompt(((Placeholder.QUERY, Placeholder.DOCUMENT),), source="chat_template.jinja")
        card = replace(CARD, reading=Reading(prompt=prompt), activation="identity", pooling="last")
        assert registry.info("one").prompt_source == "", "it has no prompt"
        slot.loaded = replace(slot.loaded, card=card)
        info = registry.info("one")
        assert (info.activation, info.pooling) == ("identity", "last")
        assert info.prompt_source == "chat_template.jinja"


@pytest.mark.parametrize("letter", ["x", "ß", "熊", "🐼"])
def test_a_long_reason_reaches_the_caller_with_its_place_and_its_remedy(letter: str):
    loads = Loads()
    loads.failing["two"] = ModelLoadError(f"/models/{letter * 5_000}: no tokenizer.json: add it")
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        with pytest.raises(ModelFailed) as caught:
            use(registry, "two")
        assert str(caught.value).startswith(f"model two failed: /models/{letter}")
        assert str(caught.value).endswith(f"{letter}: no tokenizer.json: add it")
        assert 490 < len(caught.value.metadata["state_message"].encode()) <= 500
        assert len(registry.info("two").state_message) > 5_000, "ListModels tells all of it"


def test_a_reason_is_one_line_that_a_message_can_hold_whatever_a_file_says():
    loads = Loads()
    loads.failing["two"] = ModelLoadError("model_type 'a\nb\x1b[2J' of /models/\udcff is not served")
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        with pytest.raises(ModelFailed) as caught:
            use(registry, "two")
        shown = r"model_type 'a\nb\x1b[2J' of /models/\udcff is not served"
        assert registry.info("two").state_message == caught.value.metadata["state_message"] == shown


def test_an_operator_need_not_wait_for_the_back_off():
    loads = Loads()
    loads.failing["two"] = ModelLoadError("broken")
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        with pytest.raises(ModelFailed):
            use(registry, "two")
        registry._slots[1].retry_at = monotonic() + 300
        del loads.failing["two"]
        with pytest.raises(ModelFailed):
            use(registry, "two")
        assert registry.load("two", Call(monotonic() + WAIT)).state is State.READY


def test_the_back_off_doubles_up_to_five_minutes():
    assert [eviction.retry_seconds(n) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]


def test_a_default_model_that_fails_ends_the_start():
    loads = Loads()
    loads.failing["one"] = ModelLoadError("broken")
    with keeping(loads, spec("one")) as registry, pytest.raises(ModelLoadError, match="broken"):
        registry.wait_until_loaded(WAIT)


def test_a_model_whose_device_died_is_only_helped_by_an_unload():
    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        break_device(registry, "one")
        assert not registry.serving
        with pytest.raises(ModelFailed, match=r"model one failed: .* unload it, or restart the server"):
            registry.load("one", Call(monotonic() + WAIT))
        registry._slots[0].load_seconds = 60.0
        assert registry.unload("one", deadline=monotonic() + WAIT).state is State.UNLOADED, "it need not stay"
        registry._slots[0].load_seconds = 0.0
        assert use(registry, "one") == "one"


def break_device(registry: Registry, name: str, *, hung: bool = False) -> None:
    (loaded,) = [slot.loaded for slot in registry._slots if slot.spec.name == name]
    assert loaded is not None
    loaded.engine._die(hung=hung)


def test_a_hang_while_a_model_is_being_loaded_is_told_too():
    told = threading.Event()

    class Hanging(ScriptedLoader):
        def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
            on_death(True)  # as the engine's watcher does when the warm-up hangs
            raise ModelLoadError("the warm-up failed")

    registry = Registry([spec("one")], Hanging(), on_hang=told.set)
    registry.start()
    assert told.wait(WAIT)
    registry.close()


def test_closing_waits_for_what_a_failed_load_leaves_to_do():
    before = set(threading.enumerate())

    def on_change() -> None:
        with registry._changed:
            assert registry._changed.wait_for(lambda: registry._keeper.closing, WAIT)

    loads = Loads()
    loads.failing["one"] = ModelLoadError("not supported")
    registry = Registry([spec("one")], loads, on_change=on_change)
    registry.start()
    with pytest.raises(ModelLoadError, match="not supported"):
        registry.wait_until_loaded(WAIT)
    registry.close(wait_seconds=WAIT)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("hung", [False, True])
def test_a_hang_is_told_once_its_calls_have_failed_and_another_death_is_not(*, hung: bool):
    loads = Loads()
    told: list[State] = []

    def on_hang() -> None:
        assert not registry._changed._is_owned()  # type: ignore[attr-defined]
        told.append(registry.info("one").state)

    with keeping(loads, spec("one"), on_hang=on_hang) as registry:
        assert registry.wait_until_loaded(WAIT)
        break_device(registry, "one", hung=hung)
        assert told == [State.FAILED] * hung


def test_the_late_death_of_an_unloaded_engine_is_not_the_present_ones():
    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("one", Call()) as loaded:
            former = loaded.engine
        registry.unload("one", deadline=monotonic() + WAIT)
        assert use(registry, "one") == "one"
        former._die(hung=False)
        assert use(registry, "one") == "one"


def test_a_model_whose_device_dies_while_it_is_leaving_leaves():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two")) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("two", Call()):
            registry._slots[1].unload_asked = True
            let_leave(registry, 1)
            until(registry, lambda: registry._slots[1].state is State.UNLOADING)
            break_device(registry, "two")
            # The keeper has seen the death, and waits again for the last lease.
            until(registry, lambda: bool(registry._changed._waiters))  # type: ignore[attr-defined]
        until(registry, lambda: registry._slots[1].state is State.UNLOADED)
        assert use(registry, "two") == "two"


def test_a_device_that_refuses_to_give_memory_back_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    def give_back(_device: object) -> None:
        raise RuntimeError("canary")

    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        monkeypatch.setattr(memory, "give_back", give_back)
        assert registry.unload("one", deadline=monotonic() + WAIT).state is State.UNLOADED
        assert use(registry, "one") == "one"


def test_a_model_is_closed_to_calls_by_the_decision_that_it_leaves(monkeypatch: pytest.MonkeyPatch):
    loads, leaving = Loads(), []
    unload = keeper.Keeper._unload

    def recorded(self: keeper.Keeper, slot: Slot) -> None:
        leaving.append((slot.spec.name, slot.state))
        unload(self, slot)

    monkeypatch.setattr(keeper.Keeper, "_unload", recorded)
    specs = [spec("one", pinned=True), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "three")
        registry.unload("one", deadline=monotonic() + WAIT)
        with registry._changed:
            registry._keeper._idle_seconds = 0.0
            registry._changed.notify_all()
        until(registry, lambda: len(leaving) == 3)
    assert leaving == [(name, State.UNLOADING) for name in ("two", "one", "three")]


def test_who_is_told_of_changes_holds_no_call_up():
    loads, told, slow = Loads(), threading.Semaphore(0), threading.Event()
    changes = count(1)

    def on_change() -> None:
        assert not registry._changed._is_owned()  # type: ignore[attr-defined]
        first = next(changes) == 1
        told.release()
        assert first or slow.wait(WAIT)

    registry = Registry([spec("one"), spec("two", lazy=True)], loads, on_change=on_change)
    registry.start()
    assert told.acquire(timeout=WAIT)
    assert use(registry, "two") == "two"
    assert told.acquire(timeout=WAIT)
    assert use(registry, "one") == use(registry, "") == "one"
    assert registry.serving
    slow.set()
    registry.close()


def test_a_failure_of_who_is_told_of_changes_ends_nothing():
    loads = Loads()

    def on_change() -> None:
        raise RuntimeError("canary")

    with keeping(loads, spec("one"), spec("two", lazy=True), on_change=on_change) as registry:
        assert registry.wait_until_loaded(WAIT)
        assert use(registry, "two") == "two"
        assert registry.unload("two", deadline=monotonic() + WAIT).state is State.UNLOADED
        assert use(registry, "one") == "one"


def test_a_model_is_not_unloaded_faster_than_it_is_loaded():
    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)
        registry._slots[0].load_seconds = 250.0
        for _ in range(3):
            with pytest.raises(
                DeadlineExceeded, match=r"has just been loaded; it is unloaded in 2\d\d\.\d s"
            ):
                registry.unload("one", deadline=monotonic() + 0.01)
            assert use(registry, "one", seconds=0.01) == "one", "meanwhile it serves"
        let_leave(registry, 0)
        until(registry, lambda: registry._slots[0].state is State.UNLOADED)
        assert loads.names == ["one"]


def test_the_keeper_wakes_when_an_unload_is_due():
    slot = in_memory("one", ready=100, took=30)
    assert eviction.seconds_to_next([slot], 110, inf) == inf
    slot.unload_asked = True
    assert eviction.unloadable([slot], 110) is None
    assert eviction.seconds_to_next([slot], 110, inf) == 20
    assert eviction.unloadable([slot], 130) is slot


def test_an_unload_of_a_model_that_loads_says_that_it_comes_later():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        with pytest.raises(ModelLoading):
            use(registry, "two", seconds=0.01)
        with pytest.raises(DeadlineExceeded, match="still loading"):
            registry.unload("two", deadline=monotonic() + 0.01)
        loads.held.set()
        until(registry, lambda: registry._slots[1].state is State.UNLOADED)
        assert loads.names == ["one", "two"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, -1), (0.02, 0.01), (0.1, 0.05), (0.3, 0.05), (2, 0.2), (100, 1)],
)
def test_the_answer_has_a_tenth_of_the_time_to_travel_and_50_ms_at_least(seconds: float, expected: float):
    assert seconds_to_wait(seconds) == pytest.approx(seconds - expected)


def test_a_call_without_a_deadline_waits_for_ever():
    assert seconds_to_wait(inf) is None


def is_serving(registry: Registry) -> bool:
    """Asks anew: a property counts as unchanged to mypy."""
    return registry.serving


def serving(registry: Registry) -> dict[str, bool]:
    return {info.name: info.serving for info in registry.models()}


def test_serving_is_what_a_call_would_get():
    loads = Loads()
    loads.held.clear()
    specs = [spec("one"), spec("two"), spec("three", lazy=True)]
    with keeping(loads, *specs, budget=ModelBudget(150)) as registry:
        assert loads.began.acquire(timeout=WAIT)
        assert serving(registry) == {"one": False, "two": False, "three": True}, "nothing is warm yet"
        assert not is_serving(registry)
        loads.held.set()
        assert registry.wait_until_loaded(WAIT)
        assert is_serving(registry)
        assert serving(registry) == {"one": True, "two": True, "three": True}, "two was left for later"
        assert registry.unload("one", deadline=monotonic() + WAIT).serving
        loads.failing["one"] = ModelLoadError("broken")
        with pytest.raises(ModelFailed):
            use(registry, "one")
        assert not is_serving(registry)
        loads.held.clear()
        with registry._changed:
            registry._slots[0].retry_at = 0.0
            registry._changed.notify_all()
        until(registry, lambda: registry._slots[0].state is State.LOADING)
        assert not is_serving(registry), "that it is tried again makes no call succeed"
        del loads.failing["one"]
        loads.held.set()
        assert use(registry, "one") == "one"
        assert is_serving(registry)


def test_an_idle_default_is_serving():
    loads = Loads()
    with keeping(loads, spec("one"), idle_seconds=0.0) as registry:
        assert registry.wait_until_loaded(WAIT)
        until(registry, lambda: registry._slots[0].state is State.UNLOADED)
        assert registry.serving
        assert registry.info("").serving


def named(registry: Registry, *names: str) -> list[str]:
    return [registry.info(name).name for name in names]


def test_a_source_is_a_name_too(tmp_path: Path):
    path = str(tmp_path / "bge")
    specs = [
        ModelSpec("path", path, aliases=("way",)),
        ModelSpec("bge", "BAAI/bge-reranker-v2-m3"),
        ModelSpec("pinned", "org/model@v1"),
    ]
    registry = Registry(specs, Loads())
    assert named(registry, path, "way", "BAAI/bge-reranker-v2-m3") == ["path", "path", "bge"]
    assert named(registry, "org/model@v1", "org/model") == ["pinned", "pinned"]
    aliases = {info.name: info.aliases for info in registry.models()}
    assert aliases == {"path": ("way",), "bge": ("BAAI/bge-reranker-v2-m3",), "pinned": ("org/model",)}
    with pytest.raises(UnknownModel) as caught:
        registry.info("org/model@v2")
    known = "path, way, bge, BAAI/bge-reranker-v2-m3, pinned, org/model"
    assert caught.value.metadata["known_models"] == known
    assert str(tmp_path) not in str(caught.value)


def test_a_configured_name_wins_over_a_source_and_a_whole_source_over_a_part():
    specs = [
        ModelSpec("old", "org/model@v1"),
        ModelSpec("new", "org/model"),
        ModelSpec("org/other", "org/third", aliases=("org/fourth",)),
        ModelSpec("other", "org/other"),
        ModelSpec("fourth", "org/fourth"),
    ]
    registry = Registry(specs, Loads())
    assert named(registry, "org/model@v1", "org/model") == ["old", "new"]
    assert named(registry, "org/third", "org/other", "org/fourth") == ["org/other"] * 3
    assert [info.aliases for info in registry.models()] == [
        (),
        ("org/model",),
        ("org/fourth", "org/third"),
        (),
        (),
    ]


def test_a_source_of_two_models_is_a_name_of_neither():
    specs = [
        ModelSpec("one", "org/model@v1", aliases=("eins",)),
        ModelSpec("two", "org/model@v2"),
        ModelSpec("three", "org/same"),
        ModelSpec("four", "org/same"),
    ]
    registry = Registry(specs, Loads())
    assert named(registry, "org/model@v1", "org/model@v2") == ["one", "two"]
    assert [info.aliases for info in registry.models()] == [("eins",), (), (), ()]
    for name, owners in (("org/model", "one or two"), ("org/same", "three or four")):
        with pytest.raises(UnknownModel) as caught:
            registry.info(name)
        assert str(caught.value) == f"{name!r} is the source of several models: name {owners}"


def test_the_whole_hub_id_of_a_short_name_wins_over_a_pinned_one():
    specs = [ModelSpec("new", "bge-reranker-base@main"), ModelSpec("short", "bge-reranker-base")]
    registry = Registry(specs, Loads())
    assert named(registry, "BAAI/bge-reranker-base", "bge-reranker-base") == ["short", "short"]
    assert [info.hub_id for info in registry.models()] == ["BAAI/bge-reranker-base"] * 2


def test_any_other_name_is_one_models_where_it_has_that_alias():
    specs = [ModelSpec("one", "org/one"), ModelSpec("two", "org/two", aliases=("*", "zwei"))]
    registry = Registry(specs, Loads())
    assert (
        named(registry, "", "one", "org/one", "zwei", "gpt-4o", "x" * 999, "*") == ["one"] * 3 + ["two"] * 4
    )
    assert [info.aliases for info in registry.models()] == [("org/one",), ("zwei", "org/two")]


def test_a_caller_that_specifies_no_model_means_the_default_unless_a_model_is_named_so():
    name = "default/not-specified"
    assert named(Registry([spec("one"), spec("two")], Loads()), name) == ["one"]
    for other in (spec(name), spec("two", aliases=(name,)), ModelSpec("two", name)):
        assert named(Registry([spec("one"), other], Loads()), name) == [other.name]
    anything = spec("two", aliases=("*",))
    assert named(Registry([spec("one"), anything], Loads()), name) == ["one"]


def test_a_relative_directory_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "private" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    registry = Registry([ModelSpec("one", "private/model")], Loads())
    assert named(registry, "private/model") == ["one"]
    assert registry.info("").aliases == ()


def test_an_unload_past_its_deadline_still_happens():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two")) as registry:
        assert registry.wait_until_loaded(WAIT)
        with registry.lease("two", Call()), pytest.raises(DeadlineExceeded):
            registry.unload("two", deadline=monotonic() + 0.05)
        until(registry, lambda: registry._slots[1].state is State.UNLOADED)


def test_closing_wakes_whoever_waits_for_a_model():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry, ThreadPoolExecutor(1) as callers:
        assert registry.wait_until_loaded(WAIT)
        loads.held.clear()
        waiting = callers.submit(use, registry, "two")
        until(registry, lambda: bool(registry._slots[1].waiting))
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
        for call in (registry.info, registry.health, lambda each: use(registry, each)):
            with pytest.raises(UnknownModel, match="known: one"):
                call(name)
        assert loads.names == ["one"]


def test_2000_calls_on_three_models_with_room_for_two_lose_none():
    loads = Loads()
    names = ["one", "two", "three"]
    specs = [spec(name, lazy=name != "one") for name in names]
    with keeping(loads, *specs, budget=ModelBudget(250)) as registry, ThreadPoolExecutor(24) as callers:
        calls = [names[(n * 7 + n // 5) % 3] for n in range(2_000)]
        assert list(callers.map(lambda name: use(registry, name, 60), calls)) == calls
        assert loads.most == 1
        assert len(loads.names) > 3, "nothing was evicted: this proves nothing"
        assert all(slot.leases == 0 for slot in registry._slots)


def test_a_snapshot_tells_how_each_model_is():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True)) as registry:
        assert registry.wait_until_loaded(WAIT)
        registry._slots[0].load_seconds = 2.5
        began = time.time()
        with registry.lease("one", Call()):
            one, two = registry.snapshots()
        assert (one.name, one.state, one.load_seconds, one.memory_bytes) == ("one", State.READY, 2.5, 100)
        assert (one.calls_inside, one.evictions) == (1, 0)
        assert (one.queued_tokens, one.queued_seconds) == (0, 0)
        assert one.capacity_tokens == EngineSettings().max_queue_tokens
        assert one.last_used is not None
        assert began - 0.1 < one.last_used < time.time() + 0.1
        assert two == ModelSnapshot("two", State.UNLOADED, 0.0, 0, None, 0, 0, 0, 0.0, 0, 0.0, 0.0)
        assert registry.snapshots()[0].calls_inside == 0


def test_only_what_leaves_without_being_told_to_was_evicted():
    loads = Loads()
    with keeping(loads, spec("one"), spec("two", lazy=True), budget=ModelBudget(150)) as registry:
        assert registry.wait_until_loaded(WAIT)
        use(registry, "two")
        use(registry, "one")
        use(registry, "two")
        assert [each.evictions for each in registry.snapshots()] == [2, 1]
        registry.unload("two", deadline=monotonic() + WAIT)
        assert [each.evictions for each in registry.snapshots()] == [2, 1]
    with keeping(loads, spec("one"), idle_seconds=0.0) as registry:
        until(registry, lambda: registry.snapshots()[0].evictions == 1)


def test_the_time_that_the_device_was_busy_outlasts_an_unload():
    loads = Loads()
    with keeping(loads, spec("one")) as registry:
        assert registry.wait_until_loaded(WAIT)

        def score() -> None:
            with registry.lease("one", Call()) as model:
                submit(model.engine, [Sequence.of([1, 2])]).wait()

        score()
        until(registry, lambda: registry.snapshots()[0].busy_seconds > 0)
        before = registry.snapshots()[0].busy_seconds
        registry.unload("one", deadline=monotonic() + WAIT)
        (gone,) = registry.snapshots()
        assert (gone.busy_seconds, gone.memory_bytes, gone.capacity_tokens) == (before, 0, 0)
        score()
        until(registry, lambda: registry.snapshots()[0].busy_seconds > before)


def test_the_device_and_the_precision_of_the_default_model_are_known_once_it_has_been_loaded():
    loads = Loads()
    loads.held.clear()
    with keeping(loads, spec("one")) as registry:
        assert registry.build() == BuildSnapshot(__version__, torch.__version__, "", "")
        assert registry.devices() == []
        loads.held.set()
        assert registry.wait_until_loaded(WAIT)
        registry.unload("one", deadline=monotonic() + WAIT)
        assert registry.build() == BuildSnapshot(__version__, torch.__version__, "cpu", "fp32")
        (device,) = registry.devices()
        assert device.device == "cpu"
        assert min(device.used_bytes, device.free_bytes) > 1 << 20
