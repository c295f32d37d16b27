"""Every domain error has one status; every handler is answered at the rim."""

import logging
import math

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from rerank_grpc import errors
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import status
from tests.support import WAIT, CountingRunner, logged, request_of, serving, stub_of

CANARY = "canary-7f3a"


@pytest.mark.parametrize(
    ("retry_after", "timeout", "told_ms", "pushback_ms"),
    [
        (1.0, 60, 1000, 1000),
        (1.0, None, 1000, 1000),
        (60.0, 48, 60_000, -1),
        (60.0, 60.05, 60_000, -1),  # what is left after the delay is no time for an attempt
        (0.001, 60, 100, 100),
        (0.0, None, 100, 100),
        (None, 60, None, -1),
    ],
)
def test_the_delay_is_told_truly_and_grpc_retries_only_where_there_is_time(
    retry_after: float | None,
    timeout: float | None,
    told_ms: int | None,
    pushback_ms: int,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_args: object, **_options: object) -> None:
        raise errors.QueueFull("the queue is full", retry_after=retry_after)

    with serving(runner=CountingRunner()) as server, stub_of(server.port) as stub:
        monkeypatch.setattr(server.registry, "lease_now", refuse)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "d"), timeout=timeout)
    message, trailers = details_of(caught.value)
    assert delay_ms_of(message) == told_ms
    assert trailers["grpc-retry-pushback-ms"] == str(pushback_ms)


def delay_ms_of(message: status_pb2.Status) -> int | None:
    retry = error_details_pb2.RetryInfo()
    told = any(detail.Unpack(retry) for detail in message.details)
    return retry.retry_delay.ToMilliseconds() if told else None


def failure(port: int | None, request: pb.RerankRequest) -> grpc.RpcError:
    with stub_of(port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Rerank(request, timeout=WAIT)
    return caught.value


def details_of(error: grpc.RpcError) -> tuple[status_pb2.Status, dict[str, str | bytes]]:
    trailers: dict[str, str | bytes] = {item.key: item.value for item in error.trailing_metadata()}
    return status_pb2.Status.FromString(trailers[status.DETAILS_KEY]), trailers


def test_a_poison_pair_is_internal_with_a_fixed_text_and_must_not_be_retried(
    caplog: pytest.LogCaptureFixture,
):
    def score(_sequence: object) -> float:
        raise RuntimeError(CANARY)

    with caplog.at_level(logging.DEBUG), serving(runner=CountingRunner(score)) as server:
        error = failure(server.port, request_of(CANARY, CANARY))
    message, trailers = details_of(error)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error"
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    assert CANARY not in str(message) + logged(caplog)
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("method", ["Rerank", "StreamRerank", "ListModels", "Health"])
def test_an_exception_in_a_handler_never_reaches_the_caller_or_the_log_as_text(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fault(*_args: object, **_options: object) -> None:
        raise ValueError(CANARY)

    request = {
        "Rerank": request_of(CANARY, CANARY),
        "StreamRerank": pb.StreamRerankRequest(query=CANARY, documents=[pb.Document(text=CANARY)]),
        "ListModels": pb.ListModelsRequest(),
        "Health": pb.HealthRequest(),
    }[method]
    with (
        caplog.at_level(logging.DEBUG),
        serving(runner=CountingRunner()) as server,
        stub_of(server.port) as stub,
    ):
        for name in ("lease_now", "models", "health"):
            monkeypatch.setattr(server.registry, name, fault)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.StreamRerank(request)) if method == "StreamRerank" else getattr(stub, method)(request)
        monkeypatch.undo()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error"
    assert CANARY not in logged(caplog)
    assert f"{method} INTERNAL" in caplog.text


def test_an_unknown_model_is_not_found_and_the_known_ones_are_named():
    with serving(runner=CountingRunner()) as server:
        error = failure(server.port, request_of("q", "d", model="../etc/passwd"))
    message, _ = details_of(error)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    info = error_details_pb2.ErrorInfo.FromString(message.details[0].value)
    assert info.metadata["known_models"] == "embedded"


def test_an_instruction_for_a_model_that_takes_none_names_both():
    with serving() as server:
        error = failure(server.port, request_of("q", "d", instruction="judge"))
    info = error_details_pb2.ErrorInfo.FromString(details_of(error)[0].details[0].value)
    assert (error.code(), info.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "ERROR_REASON_UNSUPPORTED_OPTION",
    )
    assert dict(info.metadata) == {"model": "embedded", "option": "instruction"}


def test_a_nan_score_is_internal():
    with serving(runner=CountingRunner(lambda _: None)) as server:
        assert failure(server.port, request_of("q", "d")).code() is grpc.StatusCode.INTERNAL


def test_a_score_is_the_same_alone_and_among_others_and_finite():
    with serving() as server, stub_of(server.port) as stub:
        texts = [f"{word} about pandas and bears" * 3 for word in "abcdefghij"]
        together = stub.Rerank(request_of("what is a panda?", *texts)).results
        for result in together:
            alone = stub.Rerank(request_of("what is a panda?", texts[result.index])).results[0]
            assert math.isclose(alone.logit, result.logit, abs_tol=1e-5)
