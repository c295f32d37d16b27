"""Line ends and terminal sequences of a caller's in the log: each record stays one printable line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.cli.logs import json_formatter, people_formatter
from rerank_grpc.protocols import tei_pb2
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.rest.support import call, rest_server
from tests.server.test_kserve import inference
from tests.support import CountingRunner, channel_of, request_of, serving

FORGED = "a\r\n2026-01-01 INFO forged\n\x1b[2J\x1b]0;title\x07\x08\x00\u2028\u0085\u202ez"
# What may stand in a header: no line end, and over gRPC no character beyond ASCII.
IN_HEADER = "a\\r\\nforged %0d%0a \\x1b[31m %s%n{}z"
CALLS = {
    "/rerank.v1.RerankService/Rerank": request_of(FORGED, FORGED, model=FORGED, instruction=FORGED),
    "/rerank.v1.RerankService/StreamRerank": pb.StreamRerankRequest(query=FORGED, model=FORGED),
    "/rerank.v1.RerankService/Health": pb.HealthRequest(model=FORGED),
    "/tei.v1.Rerank/Rerank": tei_pb2.RerankRequest(query=FORGED, texts=[FORGED]),
    "/inference.GRPCInferenceService/ModelInfer": inference(
        [FORGED], [FORGED], model_name=FORGED, model_version=FORGED, id=FORGED
    ),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service=FORGED),
    f"/no.such.Service/{'x' * 100}": health_pb2.HealthCheckRequest(),
}
ADMIN_CALLS = {
    "/rerank.v1.ModelAdminService/LoadModel": pb.LoadModelRequest(model=FORGED),
    "/rerank.v1.ModelAdminService/UnloadModel": pb.UnloadModelRequest(model=FORGED),
}
METADATA = tuple(
    (name, IN_HEADER) for name in ("x-request-id", "traceparent", "tracestate", "authorization", "x-odd")
)


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


def check(caplog: pytest.LogCaptureFixture) -> None:
    """Writes each record in both forms of a server's log, and sees one printable line of either."""
    own = [each for each in caplog.records if each.name.startswith(("rerank_grpc", "uvicorn"))]
    assert own
    for form in (people_formatter(), json_formatter()):
        for record in own:
            line = form.format(record)
            assert line.isprintable(), repr(line)
            assert "forged" not in line, "a caller's text has no business in the log"


def test_nothing_of_a_grpc_call_forges_a_line(server: RerankServer, caplog: pytest.LogCaptureFixture):
    for port, calls in ((server.port, CALLS), (server.admin_port, ADMIN_CALLS)):
        with channel_of(port, ("grpc.primary_user_agent", IN_HEADER)) as channel:
            for path, message in calls.items():
                ask: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path)
                ended = ask.future(iter([message.SerializeToString()]), metadata=METADATA, timeout=20)
                ended.exception()
                assert (ended.details() or "").isprintable()
    check(caplog)


def test_nothing_of_a_rest_call_forges_a_line(server: RerankServer, caplog: pytest.LogCaptureFixture):
    bodies = [
        {"query": FORGED, "documents": [FORGED], "model": FORGED},
        {"query": "q", "documents": ["d"], "top_n": FORGED},
        {"query": FORGED, "documents": [{"text": FORGED, "id": FORGED}], FORGED: FORGED},
    ]
    names = ("user-agent", "x-request-id", "traceparent", "referer", "x-request-timeout", "content-type")
    headers = dict.fromkeys(names, IN_HEADER)
    with rest_server(server.port) as port:
        for path in ("/v1/rerank", "/tei/rerank", "/v1/inference/%0d%0aforged%1b[2J", "/forged%0a%1b[31m"):
            for body in bodies:
                for sent in ({}, headers):
                    reply = call(port, "POST", path, body, sent)
                    assert json.loads(reply.raw) is not None
        call(port, "GET", "/v1/models/%0d%0aforged")
        call(port, "FORGED", "/v1/rerank")
    check(caplog)
