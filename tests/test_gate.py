import threading

import pytest

from rerank_grpc.errors import QueueFull
from rerank_grpc.gate import LATEST_RETRY, SOONEST_RETRY, Gate


def refusal_of(door: Gate, characters: int) -> QueueFull:
    with pytest.raises(QueueFull) as caught:
        door.enter(characters)
    return caught.value


def test_as_many_calls_are_inside_as_there_are_slots():
    door = Gate(3, 1_000)
    slots = [door.enter(1) for _ in range(3)]
    error = refusal_of(door, 1)
    assert error.metadata == {"calls": "3", "max_calls": "3"}
    assert SOONEST_RETRY <= (error.retry_after or 0) <= LATEST_RETRY
    slots[0].leave()
    door.enter(1)


def test_only_so_much_text_is_inside():
    door = Gate(10, 1_000)
    first = door.enter(600)
    error = refusal_of(door, 500)
    assert error.metadata == {"characters": "600", "max_characters": "1000"}
    assert SOONEST_RETRY <= (error.retry_after or 0) <= LATEST_RETRY
    door.enter(400)
    first.leave()
    door.enter(500)


def test_a_call_larger_than_all_that_fits_is_served_alone():
    door = Gate(10, 1_000)
    with door.enter(5_000):
        refusal_of(door, 1)
    assert door.calls == 0
    door.enter(5_000)
    assert door.calls == 1


def test_a_slot_is_given_back_once_however_many_threads_try():
    door = Gate(3, 1_000)
    slot, other = door.enter(10), door.enter(10)
    threads = [threading.Thread(target=slot.leave) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert door.calls == 1
    with other:
        other.leave()
    assert door.calls == 0


def test_the_delay_of_a_refusal_grows_with_the_time_that_calls_stay(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr("rerank_grpc.gate.monotonic", lambda: now[0])
    door = Gate(4, 1_000)
    slots = [door.enter(1) for _ in range(4)]
    assert refusal_of(door, 1).retry_after == SOONEST_RETRY
    slots[0].leave()
    slots[0] = door.enter(1)
    now[0] += 20
    assert refusal_of(door, 1).retry_after == pytest.approx(5)  # four stays of 20 s: one ends every 5 s
    assert refusal_of(door, 1).retry_after == pytest.approx(10)  # the second in line
    now[0] += 2_000
    assert refusal_of(door, 1).retry_after == LATEST_RETRY
