"""Targets are completed or refused, and the proxy before one is the one that gRPC itself goes through."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator

import grpc
import pytest

from rerank_grpc.config.environment import proxy_of
from rerank_grpc.config.targets import (
    EXCEPTION_VARIABLES,
    PROXY_VARIABLES,
    endpoints_of,
    is_local,
    is_loopback,
    read_target,
)
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.support import WAIT, wait_for

FAR = "192.0.2.7:50051"  # of a net for documentation: nobody answers there
NO_TARGETS = (
    *("", " ", "http://127.0.0.1:50051", "https://host", "grpc://host:1", "tcp:host:1", "host:"),
    *("host:http", "host:0", "host:65536", "host:1/path", "user@host:1", "host 1", "a:1,b:1"),
    *("[host]:1", "::1:50051", "host:1\n", "\x00:1", "host:\u0661"),
)
LOCAL = (
    *("localhost:1", "LOCALHOST:1", "localhost.:1", "rerank.localhost:1", "127.0.0.1:1", "127.9.9.9:1"),
    *("127.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "0.0.0.0:1", "[::]:1", "unix:/run/rerank.sock"),
    *("unix:rerank.sock", "unix-abstract:rerank", "dns:///localhost:1", "dns:localhost:1"),
    *("dns:///[::1]:1", "dns://8.8.8.8/127.0.0.1:1", "ipv4:127.0.0.1:1"),
    *("ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "dns:///localhost"),
)
OTHERS = (
    *("host:1", "10.0.0.1:1", "[2001:db8::1]:1", "127.0.0.1.example:1", "localhost.example:1"),
    *("notlocalhost:1", "dns:///host:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "xds:///localhost:1", "128.1:1"),
)
REFUSING = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("host", "host:50051"),
        ("rerank.internal", "rerank.internal:50051"),
        ("rerank_1", "rerank_1:50051"),
        ("127.0.0.1", "127.0.0.1:50051"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("fe80::1%eth0", "[fe80::1%eth0]:50051"),
        ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:50051"),
        ("host:1", "host:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("unix:/run/rerank.sock", "unix:/run/rerank.sock"),
        ("unix:///run/rerank.sock", "unix:///run/rerank.sock"),
        ("unix-abstract:rerank", "unix-abstract:rerank"),
        ("dns:///host", "dns:///host"),
        ("dns://8.8.8.8/host:1", "dns://8.8.8.8/host:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("ipv6:[::1]:1", "ipv6:[::1]:1"),
    ],
)
def test_a_target_without_a_port_has_the_default_one(text: str, target: str) -> None:
    assert read_target(text) == read_target(target) == target


@pytest.mark.parametrize(
    "text",
    NO_TARGETS,
)
def test_what_is_no_target_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not HOST:PORT[^\n]*$"):
        read_target(text)


@pytest.mark.parametrize(
    ("target", "endpoints"),
    [
        ("host:1", [("host", 1)]),
        ("[::1]:2", [("::1", 2)]),
        ("dns:///host", [("host", 443)]),
        ("dns://8.8.8.8/host:3", [("host", 3)]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", [("10.0.0.1", 1), ("10.0.0.2", 2)]),
        ("ipv6:%5B::1%5D:4", [("::1", 4)]),
        ("unix:/run/rerank.sock", ["/run/rerank.sock"]),
        ("unix:///run/rerank.sock", ["/run/rerank.sock"]),
        ("unix:rerank.sock", ["rerank.sock"]),
        ("unix-abstract:rerank", ["@rerank"]),
        ("xds:///rerank", []),
    ],
)
def test_a_target_leads_to_endpoints(target: str, endpoints: list[tuple[str, int] | str]) -> None:
    assert endpoints_of(target) == endpoints


@pytest.mark.parametrize(
    "target",
    LOCAL,
)
def test_loopback_and_unix_sockets_are_this_machine(target: str) -> None:
    assert is_local(target)
    assert proxy_of(target, environment={"https_proxy": "http://proxy:1"}) is None


@pytest.mark.parametrize(
    "target",
    OTHERS,
)
def test_all_others_are_not(target: str) -> None:
    assert not is_local(target)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost.", "unix:/run/rerank.sock"])
def test_a_host_that_no_other_machine_reaches_is_loopback(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0")


def test_the_credentials_of_a_proxy_are_nowhere() -> None:
    proxy = proxy_of("host:1", environment={"http_proxy": "http://user:s3cret@proxy:3128/"})
    assert str(proxy) == "through the proxy proxy:3128 of http_proxy: add host to no_proxy to go without it"
    assert "s3cret" not in repr(proxy)


@pytest.mark.parametrize("url", ["http://[", "http://", "socks5://proxy:1", "proxy:1"])
def test_what_grpc_takes_for_no_proxy_is_none(url: str) -> None:
    assert proxy_of("host:1", environment={"https_proxy": url}) is None


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=r"^is not HOST:PORT with a port from 1 to 65535$"):
        read_target(f"host:{port}")


class RefusingProxy:
    """Listens on loopback, counts the CONNECTs, and refuses each."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(OSError):
                    self.asked.put(connection.recv(4096).partition(b"\r\n")[0])
                    connection.sendall(REFUSING)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def proxy() -> Iterator[RefusingProxy]:
    proxy = RefusingProxy()
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    ("environment", "through"),
    [
        ({"grpc_proxy": "P"}, "grpc_proxy"),
        ({"https_proxy": "P"}, "https_proxy"),
        ({"http_proxy": "P"}, "http_proxy"),
        ({"http_proxy": "P", "https_proxy": ""}, None),
        ({"http_proxy": "http://127.0.0.1:9", "grpc_proxy": "P"}, "grpc_proxy"),
        ({"https_proxy": "P", "no_proxy": "192.0.2.7"}, None),
        ({"https_proxy": "P", "no_proxy": "a.example, .0.2.7"}, None),
        ({"https_proxy": "P", "no_proxy": "192.0.2.0/24"}, None),
        ({"https_proxy": "P", "no_proxy": "*"}, "https_proxy"),
        ({"https_proxy": "P", "no_proxy": "192.0.2.7", "no_grpc_proxy": "other"}, "https_proxy"),
        ({"https_proxy": "P", "no_grpc_proxy": "192.0.2.7"}, None),
        ({"HTTPS_PROXY": "P"}, None),
        ({"https_proxy": "socks5://127.0.0.1:9"}, None),
    ],
)
def test_the_proxy_told_is_the_one_that_grpc_goes_through(
    proxy: RefusingProxy,
    environment: dict[str, str],
    through: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {name: text.replace("P", f"http://{proxy.address}") for name, text in environment.items()}
    for name in (*PROXY_VARIABLES, *EXCEPTION_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    told = proxy_of(FAR, environment=os.environ)
    assert (told and (told.address, told.variable)) == (through and (proxy.address, through))
    # An attempt to connect ends at once, wherever the packets go.
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
    with (
        grpc.insecure_channel(FAR, [*options, ("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        with pytest.raises(grpc.RpcError) as failed:
            rerank_pb2_grpc.RerankServiceStub(channel).Health(pb.HealthRequest(), timeout=WAIT)
        if through:  # which may be asked later than a call waits for it; then it is asked again
            wait_for(lambda: not proxy.asked.empty())
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert proxy.asked.empty() is (through is None)
