"""Bodies in chunks: a writer's usual pieces are read; single bytes, and a length beside them, are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rerank_grpc.http.chunks import BYTES_PER_CHUNK, FREE_CHUNKS
from tests.hostile.http import sent
from tests.rest.support import post, rest_server
from tests.support import CountingRunner, serving

HEAD = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = {"query": "q", "documents": ["word " * 20] * 1_000}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(runner=CountingRunner()) as server, rest_server(server.port) as port:
        yield port


def chunked(content: bytes, size: int) -> bytes:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [BYTES_PER_CHUNK, 1_000, 1 << 20])
def test_a_body_in_the_pieces_of_a_writer_is_read(port: int, size: int) -> None:
    status, answer = sent(port, HEAD, [chunked(json.dumps(BODY).encode(), size)])
    assert status == 200, answer[:500]


def test_a_small_body_may_come_byte_by_byte(port: int) -> None:
    content = json.dumps({"query": "q", "documents": ["d" * (FREE_CHUNKS - 100)]}).encode()
    assert sent(port, HEAD, [chunked(content, 1)])[0] == 200


def test_a_large_body_of_single_bytes_is_refused_with_the_remedy(port: int) -> None:
    status, answer = sent(port, HEAD, [chunked(json.dumps(BODY).encode(), 1)])
    assert status == 400
    assert b"too many small chunks: write it in larger pieces" in answer
    assert post(port, "/v1/rerank", {"query": "q", "documents": ["d"]}).status == 200


@pytest.mark.parametrize("order", [1, -1])
def test_a_body_with_a_length_and_in_chunks_is_refused_and_nothing_behind_it_is_read(
    port: int, order: int
) -> None:
    two = [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n" + b"".join(two) + b"\r\n0\r\n\r\n"
    status, answer = sent(port, head, [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
    assert status == 400
    assert b"200 OK" not in answer
    assert b"connection: close" in answer.lower()
