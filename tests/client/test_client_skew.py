"""Servers that are not what the client was made for: another version, another service, or no gRPC."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from rerank_grpc import __version__
from rerank_grpc.client import (
    AsyncClient,
    MessageTooLarge,
    RerankError,
    RerankRequest,
    ServerUnavailable,
    State,
    TlsError,
    Unauthenticated,
    UnexpectedStatus,
)
from rerank_grpc.client import Document as Text
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.authority import HERE, Authority
from tests.client.scripted_server import ScriptedServer, reply, results, shown
from tests.ports import refusing_port

FUTURE = b"\xfa\x3f\x03new"  # field 1,023, of a text


@contextmanager
def grpc_server(*adders):
    """Serves services by gRPC; yields the port."""
    server = grpc.server(ThreadPoolExecutor(4))
    for add in adders:
        add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextmanager
def http1_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def older(server):
    """Serves the contract as it was before StreamRerank and Health, which the server does not even know."""
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "documents: must not be empty"
        ),
        pb.RerankRequest.FromString,
        pb.RerankResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("rerank.v1.RerankService", {"Rerank": handler})]
    )


def elsewhere(server):
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)


def error_of(call) -> RerankError:
    with pytest.raises(RerankError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_each_kind_of_wrong_server_is_told_apart(connect, tmp_path):
    """A wrong address (three of them), a wrong token, TLS, a large message, another version."""
    tls = ScriptedServer(shown(Authority(tmp_path / "ca").issue("here", *HERE)))
    locked = RerankServer(ServerSettings(host="127.0.0.1", port=0, admin_port=None, access_tokens=("right",)))
    with ExitStack() as stack:
        for each in (tls, locked):
            each.start()
            stack.callback(each.stop, *([5] if each is locked else []))
        nobody = stack.enter_context(refusing_port())
        port_of = {
            "http1": stack.enter_context(http1_server()),
            "service": stack.enter_context(grpc_server(elsewhere)),
            "older": stack.enter_context(grpc_server(older)),
        }
        large = RerankRequest("q", [Text("x" * (9 << 20))])

        def asking(port, **arguments):
            return connect(f"127.0.0.1:{port}", **arguments)

        told = {
            "nobody": error_of(lambda: asking(nobody).rerank("q", ["a"])),
            "http1": error_of(lambda: asking(port_of["http1"]).rerank("q", ["a"])),
            "service": error_of(lambda: asking(port_of["service"]).rerank("q", ["a"])),
            "token": error_of(lambda: asking(locked.port, token="wrong").rerank("q", ["a"])),
            "tls": error_of(lambda: asking(tls.port).rerank("q", ["a"])),
            "large": error_of(lambda: asking(locked.port, token="right").send(large)),
            "older": error_of(lambda: asking(port_of["older"]).list_models()),
        }
    classes = {name: type(error) for name, error in told.items()}
    assert classes == {
        "nobody": ServerUnavailable,
        "http1": ServerUnavailable,
        "service": UnexpectedStatus,
        "token": Unauthenticated,
        "tls": TlsError,
        "large": MessageTooLarge,
        "older": UnexpectedStatus,
    }
    said = {
        "nobody": "no server listens there: start it, or name its address and port",
        "http1": "an HTTP/1 server listens there, not gRPC: name the port of gRPC",
        "service": "is a gRPC server of another service: name the address of the rerank server",
        "token": "token",
        "tls": "TLS",
        "large": "send shorter documents, or fewer in a call",
        "older": f"has no ListModels: it is of another version than this client ({__version__})",
    }
    for name, words in said.items():
        assert [other for other, error in told.items() if words in str(error)] == [name], str(told[name])


@pytest.mark.parametrize("method", ["health", "stream_rerank", "list_models"])
def test_a_method_that_the_server_lacks_is_told_with_its_name(connect, method):
    with grpc_server(older) as port:
        client = connect(f"127.0.0.1:{port}")
        arguments = ("q", ["a"]) if method == "stream_rerank" else ()

        def call():
            answer = getattr(client, method)(*arguments)
            next(answer)

        assert "it is of another version than this client" in str(error_of(call))


def test_a_relayed_method_is_told_by_the_contracts_name():
    async def ask(port):
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            await client.relay("Health", b"")

    with grpc_server(older) as port:
        assert f"127.0.0.1:{port} has no Health: " in str(error_of(lambda: asyncio.run(ask(port))))


def test_a_newer_servers_values_and_fields_are_survived(client, server):
    model = pb.Model(name="new", state=99, scoring=98, serving=True)  # type: ignore[arg-type]
    models = pb.ListModelsResponse.FromString(
        pb.ListModelsResponse(models=[model]).SerializeToString() + FUTURE
    )
    server.script.append(reply(models))
    (info,) = client.list_models()
    assert (info.name, info.state, info.scoring, info.serving) == ("new", State.UNLOADED, None, True)
    response = pb.RerankResponse(results=results(pb.RerankRequest(documents=[pb.Document(text="a")])))
    server.script.append(reply(pb.RerankResponse.FromString(response.SerializeToString() + FUTURE)))
    assert len(client.rerank("q", ["a"]).results) == 1
    server.script.append(reply(pb.HealthResponse(model="new", state=99)))  # type: ignore[arg-type]
    assert client.health().state is State.UNLOADED
