"""The shared clock is pure but for its lock, so its times are arguments here."""

from rerank_grpc.engine.meter import DeviceClock


def test_one_engine_has_the_device_for_itself():
    clock = DeviceClock()
    began = clock.time(4, enter="a")
    assert clock.time(9) - began == 5


def test_two_engines_have_half_each_while_both_are_there():
    clock = DeviceClock()
    began = clock.time(0, enter="a")
    clock.time(2, enter="b")
    clock.time(6, leave="b")
    assert clock.time(7) - began == 2 + 4 / 2 + 1


def test_the_time_of_both_together_is_the_devices():
    clock = DeviceClock()
    a = clock.time(10, enter="a")
    b = clock.time(11, enter="b")
    a = clock.time(14) - a
    clock.time(14, leave="a")
    b = clock.time(15) - b
    assert a + b == 5


def test_an_engine_counts_once_and_leaves_once():
    clock = DeviceClock()
    clock.time(0, enter="a")
    clock.time(1, enter="a")
    assert (clock.sharers("a"), clock.sharers("b")) == (1, 2)
    clock.time(2, leave="a")
    clock.time(3, leave="a")
    assert (clock.sharers("a"), clock.sharers("b")) == (1, 1)


def test_threads_that_come_in_another_order_than_their_times_do_not_turn_it_back():
    clock = DeviceClock()
    later = clock.time(5, enter="a")
    assert clock.time(4.999, enter="b") == later


def test_only_the_time_of_several_engines_together_is_shared():
    clock = DeviceClock()
    clock.time(0, enter="a")
    clock.time(2, enter="b")
    assert clock.shared_seconds == 0
    clock.time(5, leave="a")
    clock.time(9, leave="b")
    assert clock.shared_seconds == 3


def test_a_device_is_idle_since_its_last_engine_left():
    clock = DeviceClock()
    clock.time(0, enter="a")
    clock.time(1, enter="b")
    clock.time(2, leave="a")
    assert clock.idle_seconds(6) == 0
    clock.time(7, leave="b")
    assert clock.idle_seconds(10) == 3
