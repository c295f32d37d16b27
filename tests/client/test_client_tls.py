"""TLS between a client and a server: what comes about, and what each failure is told as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from rerank_grpc.client import AsyncClient, Client, ServerUnavailable, TlsError, TlsProblem, unavailable
from rerank_grpc.client.here import named
from rerank_grpc.client.unavailable import Inquiry
from rerank_grpc.config.targets import Proxy
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.authority import HERE, Authority, Issued
from tests.client.scripted_server import ScriptedServer, fail, health, reply
from tests.ports import refusing_port

Serve = Callable[..., ScriptedServer]


class Papers(NamedTuple):
    """Two CAs, the second one unknown to the other side, and certificates of both."""

    ca: Path
    other_ca: Path
    issued: dict[str, Issued]

    def presenting(self, name: str, ca: Path | None = None) -> dict[str, Any]:
        """Makes the arguments of a client that presents a certificate."""
        return {"ca": ca or self.ca, "cert": self.issued[name].cert, "key": self.issued[name].key}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    ca, other = Authority(folder / "ca"), Authority(folder / "other")
    issued = {
        "here": ca.issue("here", *HERE),
        "named": ca.issue("named", "DNS:rerank.internal", "DNS:*.rerank.internal"),
        "nameless": ca.issue("rerank.old"),
        "expired": ca.issue("expired", *HERE, begins=-2, ends=-1),
        "future": ca.issue("future", *HERE, begins=1, ends=2),
        "alice": ca.issue("alice", "DNS:alice"),
        "eve": other.issue("eve", "DNS:eve"),
    }
    return Papers(ca.cert, other.cert, issued)


@pytest.fixture
def serve(papers: Papers) -> Iterator[Serve]:
    """Starts servers: with a certificate by its name, or in plaintext; some want one of the caller's."""
    with ExitStack() as stack:

        def serve(name: str | None, *, mutual: bool = False) -> ScriptedServer:
            server = ScriptedServer(credentials=name and credentials(papers, name, mutual))  # type: ignore[arg-type]
            server.start()
            stack.callback(server.stop)
            return server

        yield serve


def credentials(papers: Papers, name: str, mutual: bool) -> grpc.ServerCredentials:
    pair = [(papers.issued[name].key.read_bytes(), papers.issued[name].cert.read_bytes())]
    return grpc.ssl_server_credentials(pair, papers.ca.read_bytes() if mutual else None, mutual)


def test_files_and_their_contents_are_as_good_as_each_other(connect, papers: Papers, serve: Serve):
    server = serve("here", mutual=True)
    given = papers.presenting("alice")
    texts = {name: str(path) for name, path in given.items()}
    contents = {name: path.read_bytes() for name, path in given.items()}
    for arguments in (given, texts, contents):
        assert connect(server.target, **arguments).health().version == "1.2.3"


def test_a_certificate_of_another_name_is_good_for_the_caller_who_names_it(connect, papers, serve):
    for certificate, name in (("named", "rerank.internal"), ("named", "a.rerank.internal")):
        client = connect(serve(certificate).target, ca=papers.ca, server_name=name)
        assert client.health().version == "1.2.3"


class Failure(NamedTuple):
    """A server, a client's arguments, and what the client says of the two."""

    problem: TlsProblem
    server: str | None
    client: Callable[[Papers], dict[str, Any]]
    says: str
    mutual: bool = False


def ours(papers: Papers) -> dict[str, Any]:
    """Trusts the CA, as it should."""
    return {"ca": papers.ca}


FAILURES = {
    "wrong CA": Failure(
        TlsProblem.UNKNOWN_CA,
        "here",
        lambda papers: {"ca": papers.other_ca},
        r"is signed by none of the CAs of '.*other/ca.pem' \(unable to get local issuer certificate\): "
        "name its CA by --ca",
    ),
    "only public CAs": Failure(
        TlsProblem.UNKNOWN_CA, "here", lambda _: {"tls": True}, "is signed by none of the "
    ),
    "wrong name": Failure(
        TlsProblem.WRONG_NAME,
        "named",
        ours,
        r"is for rerank.internal, \*.rerank.internal, not for 127.0.0.1: call it by its name",
    ),
    "wrong name in the old place": Failure(
        TlsProblem.WRONG_NAME, "nameless", ours, "is for rerank.old, not for 127.0.0.1"
    ),
    "wrong override": Failure(
        TlsProblem.WRONG_NAME,
        "here",
        lambda papers: {"ca": papers.ca, "server_name": "other.internal"},
        "is for localhost, 127.0.0.1, not for other.internal",
    ),
    "expired": Failure(
        TlsProblem.EXPIRED, "expired", ours, r"has expired on 20\d\d-.* UTC: have it renewed \(this machine's"
    ),
    "not yet valid": Failure(
        TlsProblem.NOT_YET_VALID, "future", ours, r"is not valid before 20\d\d-.* UTC: set the clock"
    ),
    "TLS to a plaintext port": Failure(
        TlsProblem.PLAINTEXT_PORT, None, ours, "it speaks no TLS there: call it without --tls and --ca"
    ),
    "plaintext to a TLS port": Failure(
        TlsProblem.TLS_PORT, "here", lambda _: {}, "it speaks TLS there: call it with --tls"
    ),
    "plaintext to a port of mutual TLS": Failure(
        TlsProblem.TLS_PORT, "here", lambda _: {}, "it speaks TLS there: call it with --tls", mutual=True
    ),
    "no certificate": Failure(
        TlsProblem.CLIENT_CERTIFICATE_MISSING,
        "here",
        ours,
        "it wants a certificate from its callers: give yours by --cert and --key",
        mutual=True,
    ),
    "a certificate of another CA": Failure(
        TlsProblem.CLIENT_CERTIFICATE_REFUSED,
        "here",
        lambda papers: papers.presenting("eve"),
        "it refuses the caller's certificate, for eve, as of a CA that it does not know",
        mutual=True,
    ),
    "an expired certificate": Failure(
        TlsProblem.CLIENT_CERTIFICATE_REFUSED,
        "here",
        lambda papers: papers.presenting("expired"),
        r"the certificate of --cert \(cert=\) has expired on 20\d\d-",
        mutual=True,
    ),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_each_failure_is_told_apart_in_one_line(name: str, connect, papers: Papers, serve: Serve):
    failure = FAILURES[name]
    server = serve(failure.server, mutual=failure.mutual)
    with pytest.raises(TlsError) as caught:
        connect(server.target, **failure.client(papers)).health(timeout=20)
    assert caught.value.problem is failure.problem
    assert str(caught.value).startswith(f"{server.target}: ")
    assert re.search(failure.says, str(caught.value))
    assert str(caught.value).count("\n") == 0
    assert server.calls == []
    assert isinstance(caught.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize("name", ["wrong CA", "no certificate", "plaintext to a TLS port"])
def test_a_wait_for_the_server_ends_where_waiting_does_not_help(name: str, connect, papers, serve):
    failure = FAILURES[name]
    server = serve(failure.server, mutual=failure.mutual)
    with pytest.raises(TlsError, match=failure.says):
        connect(server.target, **failure.client(papers)).wait_until_ready(60)


def test_a_stream_is_told_the_same(connect, papers: Papers, serve: Serve):
    with pytest.raises(TlsError, match="it speaks TLS there"):
        list(connect(serve("here").target).stream_rerank("q", ["a"]))


def test_credentials_of_the_callers_own_are_told_by_grpcs_words_alone(connect, papers: Papers, serve: Serve):
    given = grpc.ssl_channel_credentials(papers.other_ca.read_bytes())
    with pytest.raises(TlsError) as caught:
        connect(serve("here").target, credentials=given).health()
    assert caught.value.problem is TlsProblem.UNKNOWN_CA


@pytest.mark.parametrize("secure", [False, True])
def test_nobody_listening_and_no_such_name_are_told_as_before(secure: bool, connect, papers: Papers):
    arguments = {"ca": papers.ca} if secure else {}
    with refusing_port() as port, pytest.raises(ServerUnavailable, match="no server listens there") as caught:
        connect(f"127.0.0.1:{port}", **arguments).health()
    assert type(caught.value) is ServerUnavailable
    with pytest.raises(ServerUnavailable, match="no such host"):
        connect("nowhere.invalid", **arguments).health()
    with pytest.raises(ServerUnavailable, match="no such socket"):
        connect("unix:/none/such.sock", **arguments).health()


def test_a_server_is_looked_at_once_for_many_failed_calls(papers: Papers, serve: Serve, monkeypatch):
    """And each of them is told the reason."""
    monkeypatch.setattr(unavailable, "BELIEVED_SECONDS", 600.0)
    server = serve("here", mutual=True)
    with Client(server.target, ca=papers.ca, retries=0) as client:
        for _ in range(3):
            with pytest.raises(TlsError, match="wants a certificate"):
                client.health()
        server.stop()
        # What was found is believed for some seconds, so nothing connects again.
        assert client._replicas.first.inquiry.look(1) is not None


def test_a_socket_of_another_user_is_told():
    error = ServerUnavailable("last error: unix:/run/r.sock: connect failed: error: Permission denied")
    told = Inquiry("unix:/run/r.sock", None, None, opaque=False).explain(error, 1)
    assert str(told) == "unix:/run/r.sock: this user may not call it: run as one of the socket's group"


def test_what_another_opens_or_stands_between_is_not_connected_to():
    error = ServerUnavailable("last error: ipv4:192.0.2.7:1: Socket closed")
    proxy = Proxy("proxy.example:3128", "192.0.2.7", "https_proxy", "no_proxy")
    for inquiry in (
        Inquiry("192.0.2.7:1", None, None, opaque=True),
        Inquiry("192.0.2.7:1", None, proxy, opaque=False),
    ):
        assert inquiry.look(1) is None
        assert not inquiry.needs_time(error)
        assert str(error) in str(inquiry.explain(error, 1))


def test_a_server_of_another_chain_than_the_one_here_is_told(papers: Papers, serve: Serve):
    server = serve("here")
    assert named(server.target, TlsSources(ca=papers.ca), 20).server_name
    with pytest.raises(TlsError) as caught:
        named(server.target, TlsSources(ca=papers.other_ca), 20)
    assert caught.value.problem is not None


def test_a_name_with_an_address_that_refuses_is_looked_at_by_its_others(papers: Papers, serve: Serve):
    target = f"localhost:{serve('here').target.rpartition(':')[2]}"
    error = ServerUnavailable(f"last error: ipv6:[::1]:{target[10:]}: connect: Connection refused (111)")
    told = Inquiry(target, None, None, opaque=False).explain(error, 20)
    assert isinstance(told, TlsError)
    assert told.problem is TlsProblem.TLS_PORT
    with refusing_port() as port:
        told = Inquiry(f"localhost:{port}", None, None, opaque=False).explain(error, 20)
    assert str(told).startswith(f"localhost:{port}: no server listens there")


@pytest.mark.parametrize("kind", ["serving", "not yet"])
def test_a_server_that_answers_is_never_looked_at(
    kind: str, connect, papers: Papers, serve: Serve, monkeypatch
):
    monkeypatch.setattr(unavailable, "probe", lambda *_: pytest.fail("it connects once more"))
    server = serve("here")
    if kind == "not yet":
        server.script.append(reply(health(pb.MODEL_STATE_LOADING)))
    server.otherwise = reply(health(pb.MODEL_STATE_READY, True))
    assert connect(server.target, ca=papers.ca).wait_until_ready(20).serving
    server.script.append(fail(grpc.StatusCode.UNAVAILABLE, "overloaded"))
    with pytest.raises(ServerUnavailable, match="overloaded"):
        connect(server.target, ca=papers.ca, retries=0).health()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "cert alone": ({"cert": "alice.pem"}, "cert: needs its private key"),
    "key alone": ({"key": "alice.key"}, "key: needs the certificate"),
    "another's key": (
        {"cert": "alice.pem", "key": "here.key"},
        "cert: 'alice.pem': the certificate does not fit the key 'here.key'",
    ),
    "a key for a CA": ({"ca": "alice.key"}, "ca: 'alice.key': it holds a key and no certificate"),
    "a certificate for a key": (
        {"cert": "alice.pem", "key": "alice.pem"},
        "key: 'alice.pem': it holds a certificate and no private key",
    ),
    "no file": ({"ca": "none.pem"}, "ca: cannot read .*: no such file or directory: check the path"),
    "a folder": ({"ca": "."}, "ca: cannot read .* is a directory"),
    "no PEM": ({"ca": b"\x30\x82"}, "ca: it holds no certificate in PEM"),
    "damaged": (
        {"ca": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        "ca: a certificate in it is damaged or cut off",
    ),
    "encrypted": (
        {"cert": "alice.pem", "key": b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"},
        "key: the key needs a passphrase",
    ),
    "TLS off": ({"tls": False, "ca": "ca.pem"}, "tls: is off, and ca is for TLS"),
    "a name alone": ({"server_name": "a"}, "server_name: is for TLS"),
    "no name": ({"tls": True, "server_name": "a b"}, "server_name: is no name of a host"),
}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_used_is_refused_by_the_arguments_name(name: str, kind, papers: Papers, monkeypatch):
    monkeypatch.chdir(papers.ca.parent)
    arguments, says = BAD[name]
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        kind("rerank.internal", **arguments)
    assert "\n" not in str(caught.value)


def test_a_text_of_pem_is_told_to_be_bytes_and_not_repeated(papers: Papers):
    text = papers.issued["alice"].key.read_text()
    with pytest.raises(ValueError, match="key: a str is a path: give PEM as bytes") as caught:
        Client(cert=papers.issued["alice"].cert, key=text)
    assert text.splitlines()[1] not in str(caught.value)


def test_no_description_of_a_client_shows_its_key(papers: Papers):
    with Client("rerank.internal", **papers.presenting("alice")) as client:
        secret = papers.issued["alice"].key.read_text().splitlines()[1]
        assert secret not in repr(vars(client)) + repr(vars(client._replicas.first.inquiry))
