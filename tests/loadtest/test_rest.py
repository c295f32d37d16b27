"""The transport of REST against sockets that behave and sockets that do not."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from rerank_grpc.config.options import OptionError
from rerank_grpc.loadtest.texts import CallTexts
from rerank_grpc.loadtest.transports.base import CallFailed
from rerank_grpc.loadtest.transports.over_rest import RestEndpoint, RestTransport
from tests.support import WAIT

TEXTS = CallTexts("q", ["a", 'b "quoted" 茶'], "find")
GOOD = b'{"results":[{"index":0},{"index":1}],"usage":{"total_tokens":9}}'


def http(body, status="200 OK", more=b""):
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n" % (status.encode(), len(body), more) + body


def asked(answers, calls=1, first_timeout=WAIT):
    """Serves each request by the next bytes and closes behind None; returns bodies, connections, results."""
    seen, connections, serving = [], 0, set[Any]()

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                seen.append((head, await reader.readexactly(length)))
                answer = answers[len(seen) - 1]
                if answer is None:
                    break
                writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = RestEndpoint.of(f"http://127.0.0.1:{port}")
        transport = RestTransport(endpoint, "m", "s3cret", first_timeout, None)
        results: list[Any] = []
        for _ in range(calls):
            try:
                results.append(transport.read(await transport.send(transport.body(TEXTS))))
            except CallFailed as error:
                results.append(error.reason)
            transport._timeout = WAIT
        await transport.close()
        server.close()
        await asyncio.wait(serving)
        return results

    results = asyncio.run(main())
    return seen, connections, results


def test_a_call_is_posted_with_its_token_and_read():
    ((head, body),), _, (result,) = asked([http(GOOD)])
    assert head.startswith(b"POST /v1/rerank HTTP/1.1\r\n")
    assert b"authorization: bearer s3cret" in head.lower()
    documents = ["a", 'b "quoted" 茶']
    assert json.loads(body) == {"query": "q", "documents": documents, "model": "m", "instruction": "find"}
    assert (result.results, result.tokens, result.cached) == (2, 9, None)


def test_a_connection_is_used_again():
    _, connections, results = asked([http(GOOD)] * 3, calls=3)
    assert connections == 1
    assert len(results) == 3


def test_a_connection_that_the_server_wants_closed_is_not():
    _, connections, results = asked([http(GOOD, more=b"connection: close\r\n")] * 2, calls=2)
    assert connections == 2
    assert [each.results for each in results] == [2, 2]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http(b'{"error":{"message":"m","code":"queue_full"}}', "429 Too Many"), "HTTP 429 queue_full"),
        (http(b"<html>", "502 Bad Gateway"), "HTTP 502"),
        (http(b"{}"), "unreadable reply"),
        (http(b"not JSON"), "unreadable reply"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf", "timeout"),
        (None, "connection closed"),
    ],
)
def test_each_failure_has_its_reason(answer, reason):
    seconds = 1.0 if reason == "timeout" else WAIT
    _, _, results = asked([answer, http(GOOD)], calls=2, first_timeout=seconds)
    assert results[0] == reason
    assert results[1].results == 2  # the next call is well


def test_a_url_is_read():
    assert RestEndpoint.of("http://h:81") == ("h", 81, "/v1/rerank", False)
    assert RestEndpoint.of("https://h/v2/rerank") == ("h", 443, "/v2/rerank", True)
    assert RestEndpoint.of("http://[::1]:9/").authority == "[::1]:9"
    for url in ("h:81", "ftp://h", "http://", "http://u:p@h", "http://h:x", "http://h/?a=b"):
        with pytest.raises(OptionError, match="is no URL such as"):
            RestEndpoint.of(url)
