import threading

import pytest

from rerank_grpc.errors import QueueFull
from rerank_grpc.gate import LATEST_RETRY, SOONEST_RETRY, Gate


def refusal_of(gate: Gate, characters: int) -> QueueFull:
    with pytest.raises(QueueFull) as caught:
        gate.enter(characters)
    return caught.value


def test_as_many_calls_are_inside_as_there_are_slots():
    gate = Gate(3, 1_000)
    slots = [gate.enter(1) for _ in range(3)]
    error = refusal_of(gate, 1)
    assert error.metadata == {"calls": "3", "max_calls": "3"}
    assert SOONEST_RETRY <= (error.retry_after or 0) <= LATEST_RETRY
    slots[0].leave()
    gate.enter(1)


def test_only_so_much_text_is_inside():
    gate = Gate(10, 1_000)
    first = gate.enter(600)
    error = refusal_of(gate, 500)
    assert error.metadata == {"characters": "600", "max_characters": "1000"}
    assert SOONEST_RETRY <= (error.retry_after or 0) <= LATEST_RETRY
    gate.enter(400)
    first.leave()
    gate.enter(500)


def test_a_call_larger_than_all_that_fits_is_served_alone():
    gate = Gate(10, 1_000)
    with gate.enter(5_000):
        refusal_of(gate, 1)
    assert gate.calls == 0
    gate.enter(5_000)
    assert gate.calls == 1


def test_a_slot_is_given_back_once_however_many_threads_try():
    gate = Gate(3, 1_000)
    slot, other = gate.enter(10), gate.enter(10)
    threads = [threading.Thread(target=slot.leave) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gate.calls == 1
    with other:
        other.leave()
    assert gate.calls == 0


def test_the_delay_of_a_refusal_grows_with_the_time_that_calls_stay():
    now = [1_000.0]
    gate = Gate(4, 1_000, clock=lambda: now[0])
    slots = [gate.enter(1) for _ in range(4)]
    assert refusal_of(gate, 1).retry_after == SOONEST_RETRY
    slots[0].leave()
    slots[0] = gate.enter(1)
    now[0] += 20
    assert refusal_of(gate, 1).retry_after == pytest.approx(5)  # four stays of 20 s: one ends every 5 s
    assert refusal_of(gate, 1).retry_after == pytest.approx(10)  # the second in line
    now[0] += 2_000
    assert refusal_of(gate, 1).retry_after == LATEST_RETRY


def test_a_caller_who_fills_the_gate_keeps_no_other_out():
    gate = Gate(16, 1_000)
    greedy = [gate.enter(1, "greedy") for _ in range(16)]
    with pytest.raises(QueueFull):
        gate.enter(1, "greedy")
    others = [gate.enter(1, "other") for _ in range(2)]
    with pytest.raises(QueueFull):  # the reserve is an eighth
        gate.enter(1, "third")
    for permit in greedy[:3]:
        permit.leave()
    gate.enter(1, "third")
    with pytest.raises(QueueFull):
        gate.enter(1, "greedy")
    for permit in [*greedy, *others]:
        permit.leave()
    assert gate.calls == 1


def test_a_caller_who_fills_the_gate_with_text_keeps_no_other_out():
    gate = Gate(16, 1_000)
    gate.enter(1_000, "greedy")
    with pytest.raises(QueueFull):
        gate.enter(1, "greedy")
    gate.enter(100, "other")
    with pytest.raises(QueueFull):
        gate.enter(100, "other")


def test_one_caller_alone_has_no_reserve():
    gate = Gate(8, 1_000)
    for _ in range(8):
        gate.enter(1, "only")
    with pytest.raises(QueueFull):
        gate.enter(1, "only")
