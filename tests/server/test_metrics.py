"""A scrape of a server under real load: every documented metric moves as it should, and no other is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rerank_grpc import __version__
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import OnDeath
from rerank_grpc.registry import eviction, loading
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.server import rpc_metrics
from rerank_grpc.server.rpc_metrics import RpcMetrics
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry import families
from rerank_grpc.telemetry.families import CODES, VALUES
from rerank_grpc.telemetry.metrics import Metrics
from rerank_grpc.telemetry.records import BatchRecord
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.telemetry.state import StateCollector
from rerank_grpc.types import Call, State
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.rest.support import get, post, rest_server
from tests.server.test_tei import TeiStub, pair
from tests.stubs import HealthStub
from tests.support import (
    LONG,
    WAIT,
    ScriptedLoader,
    channel_of,
    own_deadline,
    request_of,
    wait_for,
)

TOKEN = "first-token"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
MODELS = "embedded", "second"
FAMILIES = {family.name: family for family in (*families.FAMILIES, *rpc_metrics.FAMILIES)}
# Of prometheus-client's own collectors.
OF_PROCESS = ("process_", "python_")


class SizedLoader(ModelLoader):
    """Loads the embedded model as one of 100 bytes, so that a budget of 150 holds one at a time."""

    def prepare(self, spec: ModelSpec) -> int:
        return 100

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        return replace(super().load(spec, on_death), memory_bytes=100)


@dataclass
class Scrape:
    """All samples of one moment, by name and labels."""

    values: dict[str, dict[frozenset[tuple[str, str]], float]] = field(default_factory=dict)
    families: set[str] = field(default_factory=set)

    def get(self, name: str, **labels: str) -> float:
        """Adds up the series that have these labels."""
        found = self.values.get(name, {})
        return sum(value for own, value in found.items() if frozenset(labels.items()) <= own)

    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(name, labels) for name, own in self.values.items() for labels in own}


def scraped(registry: MetricsRegistry) -> Scrape:
    """Reads what Prometheus would."""
    scrape = Scrape()
    for metric in text_string_to_metric_families(generate_latest(registry).decode()):
        scrape.families.add(metric.name + ("_total" if metric.type == "counter" else ""))
        for sample in metric.samples:
            own = scrape.values.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in own, "each series stands once"
            own[labels] = sample.value
    return scrape


class Watched:
    """A server that is watched; its device stands still after a batch for as long as `running` is not set."""

    def __init__(self, loader: ScriptedLoader | SizedLoader, settings: ServerSettings) -> None:
        self.registry = MetricsRegistry()
        self.metrics = Metrics(self.registry, MODELS)
        self.running = threading.Event()
        self.running.set()
        self.held = threading.Event()
        self.dropped = 0
        self.server = RerankServer(
            settings,
            loader=loader,
            sinks=[self.metrics.call],
            on_batch=self._on_batch,
            interceptors=[RpcMetrics(self.registry)],
        )
        self.methods = {path[1:] for path in self.server._methods}
        StateCollector(
            self.registry,
            models=self.server.registry.snapshots,
            devices=self.server.registry.devices,
            build=self.server.registry.build,
            dropped_lines=lambda: self.dropped,
        )

    def _on_batch(self, record: BatchRecord) -> None:
        self.metrics.batch(record)
        if not self.running.is_set():
            self.held.set()
            assert self.running.wait(LONG)

    def scrape(self) -> Scrape:
        return scraped(self.registry)

    def calls(self, **labels: str) -> float:
        return self.scrape().get("rerank_calls_total", **labels)


@contextmanager
def watching(loader: ScriptedLoader | SizedLoader | None = None, **options: object) -> Iterator[Watched]:
    models = ModelSpec("embedded", "embedded"), ModelSpec("second", "embedded", lazy=True)
    settings = ServerSettings(models=models, port=0, admin_port=None, access_tokens=(TOKEN,))
    settings = replace(settings, **options)  # type: ignore[arg-type]
    watched = Watched(loader or SizedLoader(settings), settings)
    watched.server.start()
    try:
        assert watched.server.wait_until_loaded(60)
        yield watched
    finally:
        watched.running.set()
        watched.server.stop(5)


def refused(call: Callable[[], object]) -> grpc.StatusCode:
    """Makes a call that fails, and returns its code."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def undocumented(watched: Watched, scrape: Scrape) -> list[str]:
    """Lists what a scrape has beyond the table: families, labels and their values."""
    values = {**VALUES, "model": frozenset((*MODELS, "other")), "grpc_status": CODES}
    values["grpc_method"] = frozenset((*watched.methods, "other"))
    beyond = [name for name in scrape.families - FAMILIES.keys() if not name.startswith(OF_PROCESS)]
    for name, own in scrape.values.items():
        family = FAMILIES.get(name) or FAMILIES.get(name.rpartition("_")[0])
        if family is None:
            continue
        for labels in own:
            given = dict(labels)
            if family.kind == "histogram":
                given.pop("le", None)
            if given.keys() != set(family.labels):
                beyond.append(f"{name} {given}")
            for label, value in given.items():
                if value not in values.get(label, (value,)):
                    beyond.append(f"{name} {label}={value}")
    return beyond


def load_of_calls(watched: Watched, channel: grpc.Channel) -> None:
    """Makes calls that are answered: with three documents, with a long one, a stream, a pair."""
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    assert len(stub.Rerank(request_of("q", "one", "two", "three"), metadata=BEARER).results) == 3
    assert stub.Rerank(request_of("q", "long " * 2_000), metadata=BEARER).results[0].truncated
    stream = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="streamed")])
    assert list(stub.StreamRerank(stream, metadata=BEARER))
    assert TeiStub(channel).PredictPair(pair("q", "pair"), metadata=BEARER).predictions
    assert stub.Health(pb.HealthRequest(), metadata=BEARER).serving
    wait_for(lambda: watched.calls(code="OK") == 5)


def load_of_refusals(watched: Watched, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> Scrape:
    """Makes calls that fail, each in its own way, beside a device that stands still; scrapes meanwhile."""
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    watched.running.clear()
    inside = stub.Rerank.future(request_of("q", "inside"), metadata=BEARER)
    assert watched.held.wait(WAIT)
    waiting = stub.Rerank.future(request_of("q", "a queued document"), metadata=BEARER)
    wait_for(lambda: watched.scrape().get("rerank_queue_tokens", model="embedded") > 0)
    wait_for(lambda: watched.scrape().get("rerank_queue_oldest_seconds", model="embedded") > 0.01)
    meanwhile = watched.scrape()
    cancelled = stub.Rerank.future(request_of("another", "cancelled"), metadata=BEARER)
    wait_for(lambda: watched.scrape().get("rerank_calls_inside", model="embedded") == 3)
    # Only so many may be inside.
    call = lambda: stub.Rerank(request_of("further", "refused"), metadata=BEARER)  # noqa: E731
    assert refused(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    cancelled.cancel()
    wait_for(lambda: watched.calls(code="CANCELLED") == 1)
    with monkeypatch.context() as patch:
        own_deadline(patch, 1.0)
        assert refused(call) is grpc.StatusCode.DEADLINE_EXCEEDED
    unknown = request_of("q", "d", model="canary")
    assert refused(lambda: stub.Rerank(unknown, metadata=BEARER)) is grpc.StatusCode.NOT_FOUND
    assert refused(lambda: stub.Rerank(request_of("q", "d"))) is grpc.StatusCode.UNAUTHENTICATED
    watched.running.set()
    assert len(inside.result(WAIT).results) == len(waiting.result(WAIT).results) == 1
    wait_for(lambda: watched.calls() == watched.scrape().get("grpc_server_call_duration_seconds_count") == 12)
    return meanwhile


def evict(watched: Watched) -> None:
    """Has the second model called, for which the first has to leave."""
    with channel_of(watched.server.port) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        assert stub.Rerank(request_of("q", "d", model="second"), metadata=BEARER).model == "second"
    wait_for(lambda: watched.calls(model="second") == 1)


def check_calls(before: Scrape, after: Scrape) -> set[str]:
    """Checks the metrics of calls after both loads; returns their names."""
    outcomes = {
        ("Rerank", "OK", ""): 4,
        ("StreamRerank", "OK", ""): 1,
        ("tei.PredictPair", "OK", ""): 1,
        ("Health", "OK", ""): 1,
        ("Rerank", "RESOURCE_EXHAUSTED", "queue_full"): 1,
        ("Rerank", "CANCELLED", "cancelled"): 1,
        ("Rerank", "DEADLINE_EXCEEDED", "deadline_exceeded"): 1,
        ("Rerank", "NOT_FOUND", "unknown_model"): 1,
        ("Rerank", "UNAUTHENTICATED", "unauthenticated"): 1,
    }
    for (method, code, reason), count in outcomes.items():
        labels = {"method": method, "code": code, "reason": reason}
        assert after.get("rerank_calls_total", **labels) == count, labels
    assert after.get("rerank_calls_total") == sum(outcomes.values())
    assert after.get("rerank_calls_total", protocol="tei", method="tei.PredictPair") == 1
    # Neither an unknown name nor a call without a model has another's.
    assert after.get("rerank_calls_total", model="other") == 3
    assert after.get("rerank_call_duration_seconds_count") == sum(outcomes.values())
    assert after.get("rerank_call_duration_seconds_sum", model="embedded") > 0.2
    stages = {"admission": 8, "tokenize": 8, "queue": 6, "inference": 6, "answer": 6}
    for stage, count in stages.items():
        labels = {"stage": stage, "model": "embedded"}
        assert after.get("rerank_stage_duration_seconds_count", **labels) == count, stage
        assert after.get("rerank_stage_duration_seconds_sum", **labels) > 0
    for reason in ("queue_full", "unauthenticated"):
        assert after.get("rerank_refusals_total", reason=reason) == 1
    assert after.get("rerank_refusals_total") == 2
    assert after.get("rerank_authentication_failures_total", protocol="grpc") == 1
    assert after.get("rerank_authentication_failures_total") == 1
    assert before.get("rerank_calls_total") == 0
    return {
        "rerank_calls_total",
        "rerank_call_duration_seconds",
        "rerank_stage_duration_seconds",
        "rerank_refusals_total",
        "rerank_authentication_failures_total",
    }


def check_rpcs(before: Scrape, after: Scrape) -> set[str]:
    """Checks gRPC's own metrics; returns their names."""
    prefix = "grpc_server_call"
    assert before.get(f"{prefix}_started_total") == 0
    assert after.get(f"{prefix}_started_total") == 12
    failed = ("RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED", "NOT_FOUND", "UNAUTHENTICATED")
    for status, count in ({"OK": 7} | dict.fromkeys(failed, 1)).items():
        assert after.get(f"{prefix}_duration_seconds_count", grpc_status=status) == count, status
    rerank = "rerank.v1.RerankService/Rerank"
    for size in ("sent", "rcvd"):
        name = f"{prefix}_{size}_total_compressed_message_size_bytes"
        assert after.get(f"{name}_count") == 12
        assert after.get(f"{name}_sum", grpc_method=rerank, grpc_status="OK") > 0
    return {family.name for family in rpc_metrics.FAMILIES}


def check_work(before: Scrape, after: Scrape) -> set[str]:
    """Checks the metrics of what the calls brought, and of the batches; returns their names."""
    # Those that were cancelled, or too late, had reached the queue. The embedded model reads the query of
    # each of the eight requests apart; the queued one's was on the device already.
    counts = {"documents": 10, "pairs": 18, "truncated_documents": 1, "shared_pairs": 1}
    for name, count in counts.items():
        assert after.get(f"rerank_{name}_total", model="embedded") == count, name
    tokens = after.get("rerank_tokens_total", model="embedded")
    assert 256 < tokens < 512
    batches = after.get("rerank_batch_tokens_count", model="embedded")
    assert batches == 6
    for name in ("fill_ratio", "duration_seconds"):
        assert after.get(f"rerank_batch_{name}_count", model="embedded") == batches
        assert after.get(f"rerank_batch_{name}_sum", model="embedded") > 0
    assert 256 < after.get("rerank_batch_tokens_sum", model="embedded") < tokens
    name = "rerank_device_busy_seconds_total"
    busy = after.get(name, model="embedded") - before.get(name, model="embedded")
    assert 0 < busy <= after.get("rerank_batch_duration_seconds_sum", model="embedded") + 0.001
    return {
        *(f"rerank_{name}_total" for name in (*counts, "tokens")),
        *(f"rerank_batch_{name}" for name in ("tokens", "fill_ratio", "duration_seconds")),
        name,
    }


def check_state(before: Scrape, meanwhile: Scrape, after: Scrape, evicted: Scrape) -> set[str]:
    """Checks the metrics of models, devices, log and release; returns their names."""
    queues = {
        "rerank_queue_tokens": (0, 6, 0),
        "rerank_calls_inside": (0, 2, 0),
        "rerank_queue_capacity_tokens": (ServerSettings().engine.max_queue_tokens,) * 3,
    }
    for name, expected in queues.items():
        found = tuple(scrape.get(name, model="embedded") for scrape in (before, meanwhile, after))
        assert found == expected, name
    assert before.get("rerank_queue_oldest_seconds") == after.get("rerank_queue_oldest_seconds") == 0
    assert 0 < meanwhile.get("rerank_queue_oldest_seconds", model="embedded") < WAIT
    assert before.get("rerank_queue_seconds") == after.get("rerank_queue_seconds") == 0
    # Six tokens, at the rate of the batches before.
    assert 0 < meanwhile.get("rerank_queue_seconds", model="embedded") < WAIT
    for scrape, ready in ((after, "embedded"), (evicted, "second")):
        for model in MODELS:
            state = State.READY if model == ready else State.UNLOADED
            assert scrape.get("rerank_model_state", model=model) == 1
            assert scrape.get("rerank_model_state", model=model, state=state.value) == 1
            assert scrape.get("rerank_model_memory_bytes", model=model) == 100 * (model == ready)
    name = "rerank_model_evictions_total"
    assert (after.get(name), evicted.get(name, model="embedded"), evicted.get(name)) == (0, 1, 1)
    assert "second" not in repr(after.values["rerank_model_load_duration_seconds"])
    assert evicted.get("rerank_model_load_duration_seconds", model="second") > 0
    name = "rerank_model_last_used_timestamp_seconds"
    assert before.get(name, model="embedded") < after.get(name, model="embedded") <= time.time() + 1
    # What the evicted model's engine has cost is not lost with it.
    name = "rerank_device_busy_seconds_total"
    assert evicted.get(name, model="embedded") == after.get(name, model="embedded")
    for memory in ("used", "free"):
        assert after.get(f"rerank_device_memory_{memory}_bytes", device="cpu") > 1 << 20
    assert (before.get("rerank_log_dropped_lines_total"), after.get("rerank_log_dropped_lines_total")) == (
        0,
        3,
    )
    build = {"version": __version__, "torch": torch.__version__, "device": "cpu", "precision": "fp32"}
    assert after.values["rerank_build_info"] == {frozenset(build.items()): 1}
    return {
        *(name for name in FAMILIES if name.startswith(("rerank_model_", "rerank_device_memory"))),
        *queues,
        "rerank_queue_oldest_seconds",
        "rerank_queue_seconds",
        "rerank_log_dropped_lines_total",
        "rerank_build_info",
    }


def test_under_real_load_every_documented_metric_moves_as_it_should_and_no_other_is_there(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(eviction, "MOST_STAY_SECONDS", 0.0)
    # It takes long where other tests run, and would be repeated once the device is idle.
    monkeypatch.setattr(loading, "warm_up", lambda *_: None)
    with watching(model_memory=150, max_calls=3, device="cpu") as watched:
        before = watched.scrape()
        with channel_of(watched.server.port) as channel:
            load_of_calls(watched, channel)
            meanwhile = load_of_refusals(watched, channel, monkeypatch)
        watched.dropped = 3
        after = watched.scrape()
        evict(watched)
        evicted = watched.scrape()
    checked = check_calls(before, after) | check_work(before, after) | check_rpcs(before, after)
    checked |= check_state(before, meanwhile, after, evicted)
    of_tls = {name for name in FAMILIES if name.startswith("rerank_tls_")}  # tests/tls has a server with TLS
    assert checked == FAMILIES.keys() - of_tls
    for scrape in (before, meanwhile, after, evicted):
        assert undocumented(watched, scrape) == []
        assert "canary" not in repr(scrape)
        assert TOKEN not in repr(scrape)
    assert after.families >= FAMILIES.keys() - of_tls
    assert after.get("process_cpu_seconds_total") > before.get("process_cpu_seconds_total")


def test_calls_over_rest_are_counted_once_and_their_work_by_the_grpc_server():
    with (
        watching(ScriptedLoader(), access_tokens=()) as watched,
        rest_server(watched.server.port, sinks=[watched.metrics.call]) as port,
    ):
        body = {"query": "q", "documents": ["one", "two"]}
        assert post(port, "/v1/rerank", body).status == 200
        assert post(port, "/v1/rerank", body | {"model": "canary"}).status == 404
        assert post(port, "/nim/v1/ranking", {}).status >= 400
        assert get(port, "/health").status == 200
        wait_for(lambda: watched.calls(protocol="rest") == 4)
        wait_for(lambda: watched.scrape().get("rerank_pairs_total") == 2)
        scrape = watched.scrape()
    assert scrape.get("rerank_calls_total", protocol="grpc") == 0
    labels = {"method": "rerank", "dialect": "superset", "model": "embedded", "code": "OK", "reason": ""}
    assert scrape.get("rerank_calls_total", **labels) == 1
    wrong = {"code": "NOT_FOUND", "reason": "unknown_model", "model": "other"}
    assert scrape.get("rerank_calls_total", **wrong) == 1
    assert scrape.get("rerank_calls_total", dialect="nim", code="INVALID_ARGUMENT") == 1
    assert scrape.get("rerank_calls_total", method="health", dialect="") == 1
    assert scrape.get("rerank_call_duration_seconds_count", protocol="rest") == 4
    for stage in ("admission", "tokenize", "queue", "inference", "answer"):
        assert scrape.get("rerank_stage_duration_seconds_count", stage=stage) >= 1
    assert scrape.get("rerank_documents_total", model="embedded") == 2
    assert undocumented(watched, scrape) == []
    assert "canary" not in repr(scrape)


def test_a_call_over_rest_without_a_token_is_one_authentication_failure():
    with (
        watching(ScriptedLoader()) as watched,
        rest_server(
            watched.server.port, tokens=(TOKEN,), upstream_token=TOKEN, sinks=[watched.metrics.call]
        ) as port,
    ):
        assert post(port, "/v1/rerank", {"query": "q", "documents": ["d"]}).status == 401
        wait_for(lambda: watched.calls(protocol="rest") == 1)
        scrape = watched.scrape()
    assert scrape.get("rerank_authentication_failures_total", protocol="rest") == 1
    assert scrape.get("rerank_authentication_failures_total") == 1
    assert scrape.get("rerank_refusals_total", reason="unauthenticated") == 1
    assert scrape.get("rerank_calls_total", code="UNAUTHENTICATED", model="other") == 1


def test_a_thousand_names_that_callers_made_up_make_no_series():
    def strange(channel: grpc.Channel, rest: int, number: int) -> None:
        text = f"canary-{number}"
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        assert refused(lambda: stub.Rerank(request_of("q", "d", model=text), metadata=BEARER))
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{text}/{text}")
        assert refused(lambda: method(b"", metadata=BEARER)) is grpc.StatusCode.UNIMPLEMENTED
        assert refused(lambda: method(b"")) is grpc.StatusCode.UNAUTHENTICATED
        if number % 10 == 0:
            body = {"query": "q", "documents": ["d"], "model": text}
            header = {"authorization": f"Bearer {TOKEN}"}
            assert post(rest, f"/{text}/v1/rerank", body, **header).status == 404
            assert post(rest, f"/{text}", body, **header).status == 404
            assert post(rest, "/v1/rerank", body).status == 401

    with (
        watching(ScriptedLoader()) as watched,
        channel_of(watched.server.port) as channel,
        rest_server(
            watched.server.port, tokens=(TOKEN,), upstream_token=TOKEN, sinks=[watched.metrics.call]
        ) as rest,
    ):
        strange(channel, rest, 0)
        # A record may come after the answer that it is of.
        wait_for(lambda: watched.calls(protocol="rest") == 3 and watched.calls(protocol="grpc") == 2)
        wait_for(lambda: watched.scrape().get("grpc_server_call_duration_seconds_count") >= 4)
        before = watched.scrape()
        for number in range(1, 1_000):
            strange(channel, rest, number)
        wait_for(lambda: watched.calls(protocol="rest") == 300 and watched.calls(protocol="grpc") == 2_000)
        after = watched.scrape()
    assert after.series() == before.series()
    assert "canary" not in repr(after)
    assert undocumented(watched, after) == []
    assert after.get("rerank_calls_total", method="other", code="UNAUTHENTICATED") == 1_000
    assert after.get("rerank_calls_total", method="Rerank", code="NOT_FOUND", model="other") == 1_000


def test_a_scrape_keeps_no_call_waiting_and_no_call_a_scrape():
    with watching(ScriptedLoader()) as watched, channel_of(watched.server.port) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        ended = threading.Event()

        def scrape() -> None:
            while not ended.is_set():
                watched.scrape()

        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            for number in range(100):
                assert stub.Rerank(request_of("q", f"document {number}"), metadata=BEARER, timeout=WAIT)
            assert HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
        finally:
            ended.set()
            scraper.join(WAIT)
        assert not scraper.is_alive()


def test_what_a_registry_call_does_by_itself_is_no_call():
    with watching(ScriptedLoader()) as watched:
        with watched.server.registry.lease("second", Call(time.monotonic() + WAIT)):
            assert watched.scrape().get("rerank_calls_inside", model="second") == 1
        assert watched.calls() == 0
