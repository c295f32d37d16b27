"""The ids of a call are read by one rule, from gRPC metadata and from HTTP headers."""

import pytest

from rerank_grpc.wire.metadata import CallIds

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("value", ["a", "order-66", "~" * 128])
def test_a_valid_request_id_is_read_as_it_is(value: str):
    assert CallIds.read({"x-request-id": value, "other": "x"}) == CallIds(request_id=value)


def test_a_valid_trace_is_read_as_it_is():
    ids = CallIds.read({"traceparent": TRACEPARENT})
    assert ids == CallIds(traceparent=TRACEPARENT)
    assert ids.trace_id == TRACE_ID


@pytest.mark.parametrize("value", ["", "two words", "x" * 129, "tab\tbed"])
def test_a_request_id_of_another_form_counts_as_absent(value: str):
    assert CallIds.read({"x-request-id": value}) == CallIds()


@pytest.mark.parametrize(
    "value", ["", "00", TRACEPARENT.upper(), f"{TRACEPARENT}-more", f" {TRACEPARENT}", b"00"]
)
def test_a_trace_of_another_form_counts_as_absent(value: str | bytes):
    assert CallIds.read({"traceparent": value}) == CallIds()
