"""Row 19: bytes that are no message, and texts that are no UTF-8, to every method over gRPC."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.server.methods import ADMIN_SERVICE, RERANK_SERVICE
from rerank_grpc.server.probes.health import HEALTH_SERVICE, V1, V1ALPHA
from rerank_grpc.server.server import RerankServer
from tests.server.test_errors import details_of
from tests.support import CountingRunner, channel_of, serving

LATIN_1 = b"caf\xe9"
# Each method, and fields of it that hold texts; those of a document lie in field 3.
METHODS: dict[str, tuple[bytes, ...]] = {
    f"{RERANK_SERVICE}/Rerank": (b"\x0a", b"\x12", b"\x3a", b"\x1a\x06\x0a", b"\x1a\x06\x12"),
    f"{RERANK_SERVICE}/StreamRerank": (b"\x0a", b"\x12", b"\x3a", b"\x1a\x06\x0a", b"\x1a\x06\x12"),
    f"{RERANK_SERVICE}/ListModels": (),
    f"{RERANK_SERVICE}/Health": (b"\x0a",),
    f"{HEALTH_SERVICE}/Check": (b"\x0a",),
    f"{HEALTH_SERVICE}/Watch": (b"\x0a",),
    f"{V1}/ServerReflectionInfo": (b"\x0a", b"\x1a", b"\x22"),
    f"{V1ALPHA}/ServerReflectionInfo": (b"\x0a", b"\x1a", b"\x22"),
    f"{ADMIN_SERVICE}/LoadModel": (b"\x0a",),
    f"{ADMIN_SERVICE}/UnloadModel": (b"\x0a",),
}
NO_MESSAGES = {
    "noise": b"\xff\xff\xff",
    "cut": b"\x12\x7fabc",
    "a wrong wire type": b"\x0f",
    "an open group": b"\x0b",
    "JSON": b'{"query": "q"}',
}
NOT_UTF_8 = [(method, tag) for method, tags in METHODS.items() for tag in tags]


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(ServerSettings(), runner=CountingRunner()) as server:
        yield server


def refused(server: RerankServer, method: str, data: bytes) -> grpc.RpcError:
    """Sends bytes to a method, whatever its kind: one with a single request takes a stream of one."""
    port = server.admin_port if ADMIN_SERVICE in method else server.port
    with channel_of(port) as channel:
        method_of: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{method}")
        call = method_of(iter([data]), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    return caught.value


def check(error: grpc.RpcError, method: str, logged: str) -> None:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status, trailers = details_of(error)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert (info.reason, info.domain) == (Reason.INVALID_REQUEST, "rerank.v1")
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    assert f"{method.rpartition('/')[2]} INVALID_ARGUMENT" in logged


@pytest.mark.case(19)
@pytest.mark.parametrize("kind", NO_MESSAGES)
@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_refused_and_logged(
    server: RerankServer, method: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        error = refused(server, method, NO_MESSAGES[kind])
    check(error, method, caplog.text)
    assert "the message is no " in str(error.details())


@pytest.mark.case(19)
@pytest.mark.parametrize(("method", "tag"), NOT_UTF_8)
def test_a_text_that_is_no_utf_8_is_told_apart(
    server: RerankServer, method: str, tag: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        error = refused(server, method, tag + bytes([len(LATIN_1)]) + LATIN_1)
    check(error, method, caplog.text)
    assert "is not UTF-8" in str(error.details())
    assert "caf" not in str(error.details()) + caplog.text


PURE_PYTHON = """
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.server.lanes import parser
from rerank_grpc.v1 import rerank_pb2 as pb
for data in (b"\\x12\\x04caf\\xe9", b"\\xff\\xff\\xff"):
    try:
        parser(pb.RerankRequest)(data)
    except InvalidRequest as error:
        print(error)
"""


@pytest.mark.case(19)
def test_protobuf_in_pure_python_is_understood_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    done = subprocess.run([sys.executable, "-c", PURE_PYTHON], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "is not UTF-8" in first
    assert "the message is no rerank.v1.RerankRequest" in second
