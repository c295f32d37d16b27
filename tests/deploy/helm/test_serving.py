"""Servers run with the chart's own commands."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.cli import ask, main
from tests import hub, random_models
from tests.command import Served, run
from tests.deploy.helm.common import PROBES, TOKEN, placed
from tests.deploy.kubernetes import Object, environment_of, pod_of, render, server_of, values_of
from tests.ports import free_port
from tests.stubs import HealthStub
from tests.support import channel_of, request_of, stub_of


def local(variables: dict[str, str], models: Path) -> dict[str, str]:
    """Puts a folder in place of the volume, but for the home: that of the tests has what starts have kept."""
    moved = {key: text.replace("/models", str(models)) for key, text in variables.items() if key != "HOME"}
    return moved | {"HF_HUB_CACHE": f"{moved['HF_HOME']}/hub", "HF_HUB_OFFLINE": "0", "NO_PROXY": "localhost"}


@contextlib.contextmanager
def running(container: Object, tokens: Path) -> Iterator[tuple[Served, dict[int, int]]]:
    """Runs a container's command on free ports; yields it, and its ports by those of the container."""
    ports = {port: free_port() for port in (50051, 50052, 9090, 6006)}
    arguments = []
    for each in container["args"][1:]:
        text = placed(each, tokens).replace("/models", str(tokens.parent))
        number = re.search(r"port=(\d+)$", text)
        arguments.append(text.replace(number[1], str(ports[int(number[1])])) if number else text)
    server = Served(*arguments, **local(environment_of(container), tokens.parent))
    try:
        yield server, ports
    finally:
        server.close()


@pytest.mark.parametrize("name", ["cpu-small", "statefulset-tokens"])
def test_a_server_with_the_rendered_command_answers_the_probes_and_ends_by_sigterm(name, tokens):
    values = values_of(name) | {"models": [{"source": "embedded"}], "download": {"enabled": False}}
    container = server_of(render(values))
    with running(container, tokens) as (server, ports):
        for probe in (container[each]["grpc"] for each in PROBES):
            request = health_pb2.HealthCheckRequest(service=probe.get("service", ""))
            with channel_of(ports[probe["port"]]) as channel:
                answer = HealthStub(channel).Check(
                    request, timeout=container["readinessProbe"]["timeoutSeconds"]
                )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with stub_of(ports[50051]) as stub:
            call = request_of("query", "document")
            if container["args"].count("--token-file=/run/secrets/rerank/tokens"):
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    stub.Rerank(call, timeout=30)
            metadata = (("authorization", f"Bearer {TOKEN}"),)
            assert stub.Rerank(call, timeout=30, metadata=metadata).results
        scraped = http.client.HTTPConnection("127.0.0.1", ports[9090], timeout=10)
        with contextlib.closing(scraped):
            scraped.request("GET", "/metrics")
            assert b'rerank_queue_seconds{model="embedded"} 0.0' in scraped.getresponse().read()
        assert server.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"tls": {"existingSecret": "tls"}},
        {"tls": {"existingSecret": "tls"}, "rest": {"enabled": False}},
        {"tls": {"existingSecret": "tls", "clientCAKey": "ca.crt"}},
    ],
    ids=["HTTPS", "without REST", "mutual"],
)
def test_the_probes_of_a_server_with_tls_find_it_well(values, tokens, monkeypatch):
    container = server_of(render(values))
    probes = [container[each] for each in PROBES]
    asked = {"httpGet": by_https, "exec": by_command}
    with running(container, tokens) as (server, ports):
        # This machine runs other servers too; in a container there is one.
        command = server.process.args
        assert isinstance(command, list)
        monkeypatch.setattr(ask, "server_command", lambda: command[3:])
        for probe in probes:
            (way,) = asked.keys() & probe.keys()
            assert asked[way](probe[way], ports)
        with stub_of(ports[50051]) as stub, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            stub.Rerank(request_of("query", "document"), timeout=30)
        assert server.stop(signal.SIGTERM) == 0
    assert by_command({"command": ["rerank-grpc", "health", "--here"]}, ports) is False, "it has ended"


def by_https(probe: Object, ports: dict[int, int]) -> bool:
    """Asks as the kubelet does, which takes any certificate."""
    assert probe["scheme"] == "HTTPS"
    any_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    any_certificate.check_hostname, any_certificate.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        "127.0.0.1", ports[probe["port"]], timeout=10, context=any_certificate
    )
    with contextlib.closing(connection):
        connection.request("GET", probe["path"])
        return connection.getresponse().status == 200


def by_command(probe: Object, _ports: dict[int, int]) -> bool:
    """Runs a probe's command, in this process."""
    return main(probe["command"][1:]) == 0


def test_what_the_init_container_fetches_is_served_without_the_hub(tokens):
    with hub.running(tiny=random_models.bert(tokens.parent / "bert")) as there:
        download = {"enabled": True, "endpoint": there.endpoint}
        objects = render({"models": [{"source": "org/tiny"}], "download": download})
        (first,) = pod_of(objects)["initContainers"]
        done = run(*first["args"], **local(environment_of(first), tokens.parent))
        assert done.returncode == 0, done.stderr
    with running(server_of(objects), tokens) as (_, ports), stub_of(ports[50051]) as stub:
        assert stub.Rerank(request_of("query", "document"), timeout=30).model == "tiny"
