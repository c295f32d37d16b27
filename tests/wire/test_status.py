"""Every error has one status, which is read as the error that it was; a call's ids are read by one rule."""

import inspect

import pytest
from google.rpc import error_details_pb2

from rerank_grpc import errors
from rerank_grpc.client.errors import exception_of
from rerank_grpc.errors import FieldViolation
from rerank_grpc.telemetry.ids import CHARGE_KEY, PROCESS_ID, PROCESS_KEY, CallIds
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import status

ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.RerankError) and cls is not errors.RerankError
]

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def test_the_table_names_every_error_and_every_reason_of_the_proto():
    assert set(status.CODES) == set(ERRORS)
    assert {cls.reason.value for cls in ERRORS} | {"ERROR_REASON_UNSPECIFIED"} == set(pb.ErrorReason.keys())
    assert set(errors.BY_REASON.values()) == set(ERRORS)


@pytest.mark.parametrize("cls", ERRORS)
def test_a_status_has_exactly_one_error_info_and_mirrors_its_retry(cls: type[errors.RerankError]):
    error = cls("text", metadata={"model": "m"}, retry_after=1.5)
    message = status.status_of(error)
    infos = [detail for detail in message.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    retries = [detail for detail in message.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    info = error_details_pb2.ErrorInfo.FromString(infos[0].value)
    assert (len(infos), len(retries)) == (1, 1)
    assert (info.reason, info.domain, dict(info.metadata)) == (cls.reason.value, "rerank.v1", {"model": "m"})
    assert message.code == status.CODES[cls].value[0]


@pytest.mark.parametrize("retry_after", [None, 0.1, 1.25, 3600.0])
@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_that_was_written_is_read_as_it_was(
    cls: type[errors.RerankError], retry_after: float | None
):
    violations = [
        FieldViolation("documents[3].text", "too long"),
        FieldViolation("query", "must not be empty"),
    ]
    of_fields = issubclass(cls, errors.InvalidRequest)
    error = cls(
        "text", metadata={"model": "m"}, retry_after=retry_after, violations=violations if of_fields else ()
    )
    trailers = status.trailers_of(error, remaining=None)
    read = exception_of(status.read_failure(status.CODES[cls], error.message, trailers))
    assert type(read) is cls
    assert vars(read) == vars(error)


@pytest.mark.parametrize("value", ["a", "order-66", "~" * 128])
def test_a_valid_request_id_is_read_as_it_is(value: str):
    assert CallIds.read({"x-request-id": value, "other": "x"}) == CallIds(request_id=value)


def test_a_valid_trace_is_read_as_it_is():
    ids = CallIds.read({"traceparent": TRACEPARENT})
    assert ids == CallIds(traceparent=TRACEPARENT)
    assert ids.trace_id == TRACE_ID


@pytest.mark.parametrize(
    ("value", "charge"), [("0", 0), ("1000", 1_000), ("", None), ("-1", None), ("9" * 10, None)]
)
def test_a_charge_of_this_process_is_read(value: str, charge: int | None):
    ids = CallIds.read({PROCESS_KEY: PROCESS_ID, CHARGE_KEY: value})
    assert ids == CallIds(told_by_rest=True, charge=charge)


FOREIGN_IDS = {
    "nothing": "",
    "zeros": "0" * 32,
    "shorter": PROCESS_ID[:-1],
    "longer": f"{PROCESS_ID} ",
    "not ASCII": f"{PROCESS_ID}\xe9",
    "bytes": b"\xff",
}


@pytest.mark.parametrize("value", FOREIGN_IDS.values(), ids=FOREIGN_IDS)
def test_a_charge_of_anybody_else_counts_as_absent(value: str | bytes):
    assert CallIds.read({PROCESS_KEY: value, CHARGE_KEY: "0"}) == CallIds()


@pytest.mark.parametrize("value", ["", "two words", "x" * 129, "tab\tbed"])
def test_a_request_id_of_another_form_counts_as_absent(value: str):
    assert CallIds.read({"x-request-id": value}) == CallIds()


@pytest.mark.parametrize(
    "value",
    [
        f"ff{TRACEPARENT[2:]}",
        f"00-{'0' * 32}-{TRACEPARENT[36:]}",
        f"{TRACEPARENT[:36]}{'0' * 16}-01",
        "",
        "00",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f" {TRACEPARENT}",
        b"00",
    ],
)
def test_a_trace_of_another_form_counts_as_absent(value: str | bytes):
    assert CallIds.read({"traceparent": value}) == CallIds()
