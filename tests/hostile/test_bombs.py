"""200 MB by every way in: refused, and the memory of a real server grows by at most 20 MB.

One server takes them all: what each leaves behind is bounded, too.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import grpc
import pytest

from benchmarks.attacks.service import Service
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.hostile.http import sent
from tests.rest.support import get, post
from tests.support import channel_of, request_of, stub_of

MB = 1_000_000
BOMB_BYTES, MOST_MIB = 200 * MB, 20 * MB / (1 << 20)
# From so many on, the server gives back what large messages have left in its heaps.
LEFT_MIB = 64.0
BODY = {"query": "reset my password", "documents": ["Closed today.", "Forgot password?"]}
BLOCK = b" " * MB


@dataclass
class Target:
    """The server under attack, and its resident memory once it was warm, in MiB."""

    service: Service
    metrics_port: int
    warm: float = 0.0

    @contextmanager
    def bombed(self) -> Iterator[None]:
        """Measures what a bomb costs and leaves, and whether good calls are answered after it."""
        self.service.forget_peak()
        before = self.service.peak()
        yield
        assert self.service.peak() - before <= MOST_MIB
        self.answer_well()
        assert self.service.memory() - self.warm <= LEFT_MIB + MOST_MIB

    def port(self, name: str) -> int:
        return self.metrics_port if name == "metrics" else int(getattr(self.service, name))

    def answer_well(self) -> None:
        """Makes a good call of each kind, and looks at the answers."""
        with stub_of(self.service.port) as stub:
            reply = stub.Rerank(request_of(str(BODY["query"]), *BODY["documents"]), timeout=20)
        best = [result.index for result in reply.results]
        replied = post(self.service.rest_port, "/v1/rerank", BODY)
        assert best == [result["index"] for result in replied.json["results"]] == [1, 0]
        assert get(self.metrics_port, "/metrics").status == 200


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    service = Service()
    try:
        found = re.search(rb"http://\S+:(\d+)/metrics", service.log)
        assert found, service.log
        target = Target(service, int(found[1]))
        for _ in range(5):
            target.answer_well()
        service.forget_peak()
        target.warm = service.peak()
        yield target
    finally:
        service.close()


# Over gRPC: 200 MB as one text, so that only the size is wrong.

CALLS = {
    "rerank.v1.RerankService/Rerank": "port",
    "rerank.v1.RerankService/StreamRerank": "port",
    "tei.v1.Rerank/Rerank": "port",
    "tei.v1.Rerank/RerankStream": "port",
    "inference.GRPCInferenceService/ModelInfer": "port",
    "grpc.health.v1.Health/Check": "port",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "port",
    "rerank.v1.ModelAdminService/LoadModel": "admin_port",
}


@cache
def message() -> bytes:
    return pb.RerankRequest(query=" " * BOMB_BYTES).SerializeToString()


@pytest.mark.parametrize("packed", [*grpc.Compression], ids=lambda packed: packed.name)
@pytest.mark.parametrize("method", CALLS)
def test_a_bomb_over_grpc_is_refused_and_costs_little(
    target: Target, method: str, packed: grpc.Compression
) -> None:
    unbounded = ("grpc.max_send_message_length", -1)
    with channel_of(target.port(CALLS[method]), unbounded) as channel, target.bombed():
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{method}"
        )  # on the wire, a call of any kind
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([message()]), timeout=60, compression=packed))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value.details()


# Over HTTP/1.1, on both ports.

PATHS = {
    "POST /v1/rerank": "rest_port",
    "POST /tei/rerank": "rest_port",
    "POST /v1/inference/embedded": "rest_port",
    "POST /rerank.v1.RerankService/Rerank": "rest_port",
    "POST /rerank.v1.RerankService/Health": "rest_port",
    "POST /rerank.v1.RerankService/StreamRerank": "rest_port",
    "GET /health": "rest_port",
    "GET /docs": "rest_port",
    "POST /nothing/here": "rest_port",
    "DELETE /v1/rerank": "rest_port",
    "GET /metrics": "metrics",
    "POST /metrics": "metrics",
}
REFUSED = (400, 404, 405, 408, 413, 415, 501)
# Connect tells RESOURCE_EXHAUSTED so.
REFUSED_BY_CONNECT = (429, *REFUSED)


# The headers that tell of a body, and its pieces.
Sent: TypeAlias = tuple[Callable[[], bytes], Callable[[], Iterator[bytes]]]


def blocks() -> Iterator[bytes]:
    yield from [BLOCK] * (BOMB_BYTES // len(BLOCK))


def chunks() -> Iterator[bytes]:
    yield from [b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK)] * (BOMB_BYTES // len(BLOCK))
    yield b"0\r\n\r\n"


@cache
def gzipped() -> bytes:
    return gzip.compress(bytes(BOMB_BYTES), 1)


@cache
def deflated() -> bytes:
    return zlib.compress(bytes(BOMB_BYTES), 1)


def whole(body: Callable[[], bytes]) -> Iterator[bytes]:
    yield body()


def length_of(size: int) -> bytes:
    return b"Content-Length: %d\r\n" % size


def packed(name: bytes, body: Callable[[], bytes]) -> Sent:
    return lambda: b"Content-Encoding: %b\r\n" % name + length_of(len(body())), partial(whole, body)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODIES: dict[str, Sent] = {
    "with its length": (lambda: length_of(BOMB_BYTES), blocks),
    "in chunks": (lambda: CHUNKED, chunks),
    "longer than it says": (lambda: length_of(10), blocks),
    "shorter than it says": (lambda: length_of(100 * BOMB_BYTES), blocks),
    "of no length": (lambda: b"", blocks),
    "of two lengths": (lambda: length_of(BOMB_BYTES) + length_of(10), blocks),
    "of a length below zero": (lambda: b"Content-Length: -1\r\n", blocks),
    "of a length and in chunks": (lambda: length_of(10) + CHUNKED, chunks),
    "one chunk of a terabyte": (lambda: CHUNKED, lambda: iter([b"fffffffffff\r\n", *blocks()])),
    "chunks of a byte": (lambda: CHUNKED, lambda: iter([b"1\r\n \r\n" * 200_000] * 100)),
    "gzip": packed(b"gzip", gzipped),
    "deflate": packed(b"deflate", deflated),
    "br": packed(b"br", lambda: b"\xcf\xff\xff\x7f\xf8" * 40_000),
    "zstd": packed(b"zstd", lambda: b"\x28\xb5\x2f\xfd" * 40_000),
    "gzip of gzip": packed(b"gzip, gzip", lambda: gzip.compress(gzipped())),
    "gzip by transfer": (lambda: b"Transfer-Encoding: gzip, chunked\r\n", lambda: whole(gzipped)),
    "gzip undeclared": (lambda: length_of(len(gzipped())), lambda: whole(gzipped)),
}
TYPES = {"/rerank.v1.": b"application/proto", "": b"application/json"}


# Every way of sending it to one path that reads bodies and to one that reads none, and three to all others.
EVERYWHERE = ("with its length", "in chunks", "gzip")
THOROUGH = ("POST /v1/rerank", "POST /metrics")
PAIRS = [(path, kind) for path in PATHS for kind in BODIES if path in THOROUGH or kind in EVERYWHERE]


@pytest.mark.parametrize(("operation", "kind"), PAIRS)
def test_a_bomb_over_http_is_refused_and_costs_little(target: Target, operation: str, kind: str) -> None:
    head, body = BODIES[kind]
    media_type = next(type_ for prefix, type_ in TYPES.items() if prefix in operation)
    line = b"%b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\n" % (operation.encode(), media_type)
    with target.bombed():
        status, answer = sent(target.port(PATHS[operation]), line + head() + b"\r\n", body())
    refused = REFUSED_BY_CONNECT if "/rerank.v1." in operation else REFUSED
    assert status in refused or (status == 200 and operation.startswith("GET")), answer[:500]


HEADS = {
    "one header": lambda: iter([b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", *blocks()]),
    "many headers": lambda: iter([b"GET /health HTTP/1.1\r\nHost: x\r\n", *[b"X: y\r\n" * 10_000] * 3_000]),
    "the path": lambda: iter([b"GET /", *[b"a" * MB] * 200]),
    "the method": lambda: iter([b"A" * MB] * 200),
    "nothing but lines": lambda: iter([b"\r\n" * 500_000] * 200),
}


@pytest.mark.parametrize("port", ["rest_port", "metrics"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_bomb_in_the_head_is_refused_and_costs_little(target: Target, port: str, kind: str) -> None:
    first, *rest = HEADS[kind]()
    with target.bombed():
        status, _ = sent(target.port(port), first, rest)
    assert status in (0, 400, 431)
