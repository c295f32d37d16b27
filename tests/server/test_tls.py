"""TLS on the gRPC ports: which clients come in, under which name, and by which certificate."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.server.listening.credentials import credentials_of
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.tls.pair import TlsFiles
from rerank_grpc.tls.serving import Certificates
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.authority import HERE, Authority, Issued
from tests.stubs import HealthStub, message_of
from tests.support import NO_PROXY, WAIT, CountingRunner, channel_of, request_of, serving, wait_for

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    return authority.issue("server", *HERE)


@contextmanager
def channel_by_tls(
    port: int | None, authority: Authority, own: Issued | None = None
) -> Iterator[grpc.Channel]:
    """Opens a channel of a connection of its own, perhaps with a certificate."""
    key, cert = (own.key.read_bytes(), own.cert.read_bytes()) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes(), key, cert)
    options = [("grpc.use_local_subchannel_pool", 1), NO_PROXY]
    with grpc.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        yield channel


def rerank(channel: grpc.Channel, *metadata: tuple[str, str]) -> pb.RerankResponse:
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    response: pb.RerankResponse = stub.Rerank(request_of("q", "d"), metadata=metadata, timeout=WAIT)
    return response


def refused(channel: grpc.Channel, *metadata: tuple[str, str]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        rerank(channel, *metadata)
    return caught.value


@contextmanager
def server_of(
    shown: Issued, client_ca: Path | None = None, **settings: Any
) -> Iterator[tuple[RerankServer, list[CallRecord]]]:
    """Serves by TLS; yields the records of its calls too."""
    records: list[CallRecord] = []
    own = replace(ServerSettings(), tls=TlsFiles(shown.cert, shown.key, client_ca), **settings)
    with serving(own, runner=CountingRunner(), sinks=[records.append]) as server:
        yield server, records


@pytest.fixture(scope="module")
def by_tls(shown: Issued) -> Iterator[RerankServer]:
    with server_of(shown) as (server, _):
        yield server


@pytest.fixture(scope="module")
def mutual(authority: Authority, shown: Issued) -> Iterator[tuple[RerankServer, list[CallRecord]]]:
    with server_of(shown, authority.cert, access_tokens=("t0ken",)) as served:
        yield served


def test_the_main_and_the_admin_port_speak_tls(by_tls: RerankServer, authority: Authority):
    for port in (by_tls.port, by_tls.admin_port):
        with channel_by_tls(port, authority) as channel:
            assert HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
        with channel_of(port) as channel, pytest.raises(grpc.RpcError) as caught:
            HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT)
        assert caught.value.code() is CODE.UNAVAILABLE


def test_the_port_that_only_rest_calls_is_plain_and_of_this_machine(by_tls: RerankServer):
    with channel_of(by_tls.local_port) as channel:
        assert rerank(channel).results


def test_a_client_that_trusts_another_authority_stays_out(by_tls: RerankServer, strangers: Authority):
    with channel_by_tls(by_tls.port, strangers) as channel:
        assert refused(channel).code() is CODE.UNAVAILABLE


def test_a_name_that_goes_on_behind_a_nul_is_nobodys(
    mutual: tuple[RerankServer, list[CallRecord]], authority: Authority
):
    """gRPC would end it there, and take it for another's."""
    name = b"search\0.example"
    element = bytes([0x82, len(name)]) + name  # a DNS name, in DER
    cut = authority.issue("forged", f"DER:{bytes([0x30, len(element)]).hex()}{element.hex()}")
    with channel_by_tls(mutual[0].port, authority, cut) as channel:
        assert refused(channel).code() is CODE.UNAUTHENTICATED
    well = authority.issue("well", "DNS:search")
    with channel_by_tls(mutual[0].port, authority, well) as channel:
        assert rerank(channel).results


@pytest.mark.parametrize(("version", "comes_in"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_tls_is_1_2_or_later(by_tls: RerankServer, authority: Authority, version: str, comes_in: bool):
    command = ["openssl", "s_client", version, "-cipher", "DEFAULT@SECLEVEL=0", "-alpn", "h2"]
    command += ["-connect", f"127.0.0.1:{by_tls.port}", "-CAfile", str(authority.cert)]
    said = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=30
    )
    assert ("ALPN protocol: h2" in said.stdout) is comes_in
    assert ("Cipher is (NONE)" in said.stdout) is not comes_in


def test_without_a_client_ca_a_certificate_names_nobody(
    by_tls: RerankServer, authority: Authority, shown: Issued
):
    with channel_by_tls(by_tls.port, authority, authority.issue("curious")) as channel:
        assert rerank(channel).results
    with (
        server_of(shown, access_tokens=("t0ken",)) as (server, _),
        channel_by_tls(server.port, authority, authority.issue("curious")) as channel,
    ):
        assert refused(channel).code() is CODE.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("alternatives", "name"),
    [
        (("DNS:search.example", "URI:spiffe://example/search"), "spiffe://example/search"),
        (("DNS:search.example", "email:q@a.example"), "search.example"),
        ((), "search"),
    ],
)
def test_a_certificate_names_its_caller(
    mutual: tuple[RerankServer, list[CallRecord]],
    authority: Authority,
    alternatives: tuple[str, ...],
    name: str,
):
    server, records = mutual
    with channel_by_tls(server.port, authority, authority.issue("search", *alternatives)) as channel:
        assert rerank(channel).results
        wait_for(lambda: bool(records))
        assert records.pop().caller.name == name
        # What the file of tokens does not name may rerank and ask, and is no operator.
        stub = rerank_pb2_grpc.ModelAdminServiceStub(channel)
        assert rerank_pb2_grpc.RerankServiceStub(channel).ListModels(pb.ListModelsRequest()).models
    records.clear()
    with channel_by_tls(server.admin_port, authority, authority.issue("search", *alternatives)) as channel:
        stub = rerank_pb2_grpc.ModelAdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.UnloadModel(pb.UnloadModelRequest(model="embedded"))
        assert caught.value.code() is CODE.PERMISSION_DENIED
    records.clear()


def test_a_token_that_is_sent_has_to_be_right_and_wins(
    mutual: tuple[RerankServer, list[CallRecord]], authority: Authority
):
    server, records = mutual
    with channel_by_tls(server.port, authority, authority.issue("search")) as channel:
        assert rerank(channel, ("authorization", "Bearer t0ken")).results
        wait_for(lambda: bool(records))
        assert records.pop().caller.name == "token-1"
        assert refused(channel, ("authorization", "Bearer wrong")).code() is CODE.UNAUTHENTICATED
        assert refused(channel, ("authorization", "")).code() is CODE.UNAUTHENTICATED
    records.clear()


def test_without_a_certificate_of_the_client_ca_nobody_comes_in(
    mutual: tuple[RerankServer, list[CallRecord]], authority: Authority, strangers: Authority
):
    server, records = mutual
    intruders = {
        "none": None,
        "another authority's": strangers.issue("search"),
        "expired": authority.issue("expired", begins=-2, ends=-1),
    }
    for port in (server.port, server.admin_port):
        for own in intruders.values():
            with channel_by_tls(port, authority, own) as channel:
                token = ("authorization", "Bearer t0ken")
                assert refused(channel, token).code() is CODE.UNAVAILABLE
                with pytest.raises(grpc.RpcError) as caught:
                    HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT)
                assert caught.value.code() is CODE.UNAVAILABLE
    assert not records


def test_a_certificate_that_names_nobody_is_told_so(
    mutual: tuple[RerankServer, list[CallRecord]], authority: Authority
):
    server, records = mutual
    nameless = authority.issue("x y\tz")
    with channel_by_tls(server.port, authority, nameless) as channel:
        error = refused(channel)
        assert error.code() is CODE.UNAUTHENTICATED
        assert message_of(error).startswith("the certificate names nobody: ")
    records.clear()


def test_the_name_that_rest_passes_on_cannot_be_forged(
    mutual: tuple[RerankServer, list[CallRecord]], authority: Authority
):
    server, records = mutual
    real = server.access.token_of("spiffe://example/search")
    own, _, name = real.partition(".")
    forged = [f"{own[:-1]}.{name}", f"{own[:-1]}x.{name}", f".{name}", name, f"t0ken.{name}", f"{own}{name}"]
    with channel_of(server.local_port) as channel:
        assert refused(channel).code() is CODE.UNAUTHENTICATED  # the local port has no certificates
        for token in forged:
            error = refused(channel, ("authorization", f"Bearer {token}"))
            assert error.code() is CODE.UNAUTHENTICATED, token
        records.clear()
        assert rerank(channel, ("authorization", f"Bearer {real}")).results
        wait_for(lambda: bool(records))
        assert records.pop().caller.name == "spiffe://example/search"
    with serving(ServerSettings(access_tokens=("t0ken",)), runner=CountingRunner()) as plain:
        assert plain.access.find(plain.access.token_of("anybody")) is None


def test_grpc_is_handed_a_pair_again_only_when_it_has_changed(
    shown: Issued, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    """gRPC asks on a thread of its own, which no measure of coverage sees."""
    asked = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda _, renewed, **__: asked.append(renewed)
    )
    certificates = Certificates(TlsFiles(shown.cert, shown.key))
    credentials_of(certificates)
    assert asked[0]() is None
    other = authority.issue("another", *HERE)
    certificates.pair = TlsFiles(other.cert, other.key).read()
    assert asked[0]() is not None
    assert asked[0]() is None


def test_without_certificates_there_are_no_credentials():
    assert credentials_of(None) is None
