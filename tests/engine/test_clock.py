"""The shared clock is pure but for its lock, so its times are arguments here."""

from rerank_grpc.engine.clock import DeviceClock


def test_one_engine_has_the_device_for_itself():
    clock = DeviceClock()
    began = clock.enter("a", 4)
    assert clock.read(9) - began == 5


def test_two_engines_have_half_each_while_both_are_there():
    clock = DeviceClock()
    began = clock.enter("a", 0)
    clock.enter("b", 2)
    clock.leave("b", 6)
    assert clock.read(7) - began == 2 + 4 / 2 + 1


def test_the_time_of_both_together_is_the_devices():
    clock = DeviceClock()
    a = clock.enter("a", 10)
    b = clock.enter("b", 11)
    a = clock.read(14) - a
    clock.leave("a", 14)
    b = clock.read(15) - b
    assert a + b == 5


def test_an_engine_counts_once_and_leaves_once():
    clock = DeviceClock()
    clock.enter("a", 0)
    clock.enter("a", 1)
    assert (clock.sharers("a"), clock.sharers("b")) == (1, 2)
    clock.leave("a", 2)
    clock.leave("a", 3)
    assert (clock.sharers("a"), clock.sharers("b")) == (1, 1)


def test_threads_that_come_in_another_order_than_their_times_do_not_turn_it_back():
    clock = DeviceClock()
    later = clock.enter("a", 5)
    assert clock.enter("b", 4.999) == later
