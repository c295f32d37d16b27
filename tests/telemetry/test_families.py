"""The table of metrics: names by Prometheus' conventions, and sets of labels that are the service's own."""

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.tokens import SentToken
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.rest import dialects
from rerank_grpc.rest.app import RerankEndpoint
from rerank_grpc.rest.connect.stream import StreamEndpoint
from rerank_grpc.rest.connect.unary import METHODS, ConnectEndpoint
from rerank_grpc.rest.discovery import Discovery
from rerank_grpc.rest.forms.decoded import Dialect
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.families import (
    CODES,
    DIALECTS,
    FAMILIES,
    GRPC_METHODS,
    REST_METHODS,
    SECONDS,
    TOKENS,
    VALUES,
    MetricFamily,
)
from tests import command
from tests.support import ScriptedLoader

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_name_says_the_service_the_kind_and_the_unit(family: MetricFamily):
    assert family.name.startswith("rerank_")
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert bool(family.buckets) == (family.kind == "histogram")
    if family.unit.partition(" ")[0] in ("seconds", "bytes", "ratio", "tokens"):
        assert f"_{family.unit.partition(' ')[0]}" in family.name
    assert family.meaning.endswith(".")
    by_configuration = {"model", "caller", "device", "version", "torch", "precision"}
    assert set(family.labels) <= VALUES.keys() | by_configuration


def test_buckets_rise_from_half_a_millisecond_to_two_minutes_and_to_the_largest_batch():
    assert (SECONDS[0], SECONDS[-1], TOKENS[-1]) == (0.0005, 120, 131_072)
    for family in FAMILIES:
        assert list(family.buckets) == sorted(set(family.buckets))


def test_the_methods_are_those_of_the_server():
    settings = replace(ServerSettings(), port=0, admin_port=0)
    server = RerankServer(settings, loader=ScriptedLoader())
    server.stop(0)
    assert set(server._methods.values()) == set(GRPC_METHODS)


def test_the_dialects_are_those_of_rest():
    rules = {rule for rule in vars(dialects).values() if isinstance(rule, Dialect)}
    rules.add(dialects.presumed("", "/rerank"))
    assert {dialect.name for dialect in rules} == DIALECTS - {"connect"}


def test_the_methods_of_rest_are_those_of_its_routes():
    upstream = Upstream(("127.0.0.1:1",), token=SentToken(None))
    routes = {method for _, method, _, _ in Discovery(upstream, AccessList(()), None).routes()}
    assert routes | {RerankEndpoint.method} == set(REST_METHODS)
    assert ConnectEndpoint.method == "other"  # it finds the name of a method of gRPC
    assert {method.name for method in METHODS.values()} | {StreamEndpoint.method} <= set(GRPC_METHODS)


def test_the_codes_are_grpcs():
    assert {code.name for code in grpc.StatusCode} == CODES


def test_the_page_of_metrics_is_the_tables():
    done = subprocess.run(
        [sys.executable, "scripts/metrics_doc.py", "--check"],
        cwd=ROOT,
        env=command.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_differs_is_written_anew():
    written = runpy.run_path(str(ROOT / "scripts/metrics_doc.py"))["written"]
    with pytest.raises(ValueError, match="no <!-- metrics: rerank -->"):
        written("no markers")
    page = (ROOT / "docs/metrics.md").read_text("utf-8")
    other = page.replace("| `rerank_pairs_total` | counter", "| `rerank_pairs_total` | gauge")
    assert other != page
    assert written(other) == page
