import math

import pytest

from rerank_grpc.errors import Cancelled, DeadlineExceeded
from rerank_grpc.types import Call


def test_a_call_goes_on_until_it_is_cancelled_or_late():
    Call().check()
    with pytest.raises(DeadlineExceeded):
        Call(deadline=-math.inf).check()
    call = Call()
    call.cancel()
    with pytest.raises(Cancelled):
        call.check()


def test_whoever_wants_to_know_is_told_of_the_cancellation():
    told: list[str] = []
    call = Call()
    call.on_cancel(lambda: told.append("before"))
    call.cancel()
    call.cancel()
    call.on_cancel(lambda: told.append("after"))
    assert told == ["before", "after"]


def test_work_that_is_over_is_not_ended_by_a_cancellation():
    told: list[str] = []
    call = Call()
    call.on_cancel(lambda: told.append("over"))
    call.forget()
    call.on_cancel(lambda: told.append("in progress"))
    call.cancel()
    assert told == ["in progress"]
