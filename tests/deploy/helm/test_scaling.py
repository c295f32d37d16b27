"""The chart's autoscalers and monitors: what they ask, and of which pods."""

from __future__ import annotations

import re

import pytest

from rerank_grpc.telemetry.families import FAMILIES
from tests.deploy.files import ROOT
from tests.deploy.kubernetes import KUBERNETES, WORKLOADS, one, render, validate


@pytest.mark.parametrize(
    ("kind", "own", "others"),
    [
        (
            "Deployment",
            ["rerank-grpc-7d9f8b6c5-x2x4z", "rerank-grpc-7d9f8b6c5x2x4z"],
            ["rerank-grpc-gpu-7d9f8b6c5-x2x4z", "rerank-grpc-gpu-0", "my-rerank-grpc-7d9f8b6c5-x2x4z"],
        ),
        ("StatefulSet", ["rerank-grpc-0", "rerank-grpc-12"], ["rerank-grpc-gpu-0", "rerank-grpc-gpu-12"]),
    ],
)
def test_a_release_scales_by_its_own_pods_alone(kind, own, others):
    objects = render({"kind": kind, "autoscaling": {"kind": "keda", "keepBusy": 0.8}}, "rerank-grpc")
    for trigger in one(objects, "ScaledObject")["spec"]["triggers"]:
        (selector,) = re.findall(r'pod=~"(.*?)"', trigger["metadata"]["query"])
        assert [pod for pod in own + others if re.fullmatch(selector, pod)] == own


def test_a_query_with_quotes_reaches_keda_as_it_is():
    query = "sum(rerank_queue_seconds{job='rerank', pod!=\"a\"}) > 0"
    objects = render({"autoscaling": {"kind": "keda", "keda": {"query": query}}})
    (trigger,) = one(objects, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == query


def test_a_million_replicas_are_a_whole_number():
    objects = render({"autoscaling": {"kind": "hpa", "maxReplicas": 1_000_000}})
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] == 1_000_000


def test_both_autoscalers_read_the_one_metric_with_one_target(rendered):
    names = {family.name for family in FAMILIES}
    hpa = one(rendered["many-models"], "HorizontalPodAutoscaler")["spec"]
    (metric,) = hpa["metrics"]
    assert metric["pods"]["metric"]["name"] == "rerank_queue_seconds"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "0.5"}
    keda = one(rendered["gpu"], "ScaledObject")["spec"]
    (trigger,) = keda["triggers"]
    assert set(re.findall(r"rerank_\w+", trigger["metadata"]["query"])) == {"rerank_queue_seconds"} <= names
    assert trigger["metadata"]["threshold"] == "1"
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for each in (hpa, keda):
        assert each["scaleTargetRef"]["name"] == "demo-rerank-grpc"
    for name in ("many-models", "gpu"):
        assert "replicas" not in one(rendered[name], *WORKLOADS)["spec"]


def test_busy_devices_keep_their_pods_where_that_is_asked_for():
    names = {family.name for family in FAMILIES}
    for kind, found in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        objects = render({"autoscaling": {"kind": kind, "keepBusy": 0.8}})
        for each in objects:
            validate(each, KUBERNETES[0])
        spec = one(objects, found)["spec"]
        _, second = spec["metrics" if kind == "hpa" else "triggers"]
        if kind == "hpa":
            assert second["pods"]["target"]["averageValue"] == "0.8"
            page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
            assert f"as: {second['pods']['metric']['name']}" in page
        else:
            assert second["metadata"]["threshold"] == "0.8"
            assert set(re.findall(r"rerank_\w+_total", second["metadata"]["query"])) < names


def test_prometheus_knows_the_servers_by_the_job_of_the_rules(rendered):
    for name, kind, key in (
        ("gpu", "PodMonitor", "podMetricsEndpoints"),
        ("many-models", "ServiceMonitor", "endpoints"),
    ):
        (endpoint,) = one(rendered[name], kind)["spec"][key]
        assert endpoint["relabelings"] == [
            {"targetLabel": "job", "replacement": "rerank", "action": "replace"}
        ]
    assert 'up{job="rerank"}' in (ROOT / "deploy/prometheus/rules.yml").read_text("utf-8")
