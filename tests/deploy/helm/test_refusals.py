"""The chart's schema and checks refuse values in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.files import read_yaml
from tests.deploy.helm.common import TOKEN
from tests.deploy.kubernetes import CHART, NAMESPACE, Object, package, refusal


def test_the_schema_has_every_value_and_values_has_every_one_of_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))

    def compare(told: Object, values: Object, path: str) -> None:
        if "properties" not in told or path in ("/settings", "/resources", "/affinity"):
            return
        assert set(told["properties"]) - {"global"} == set(values), path
        assert told["additionalProperties"] is False
        for key, value in values.items():
            if isinstance(value, dict):
                compare(told["properties"][key], value, f"{path}/{key}")

    compare(schema, read_yaml(CHART / "values.yaml"), "")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"replica": 2}, "at '': additional properties 'replica' not allowed"),
        ({"models": []}, "at '/models': minItems: got 0, want 1"),
        ({"models": [{"name": "bge"}]}, "at '/models/0': missing property 'source'"),
        ({"settings": {"max-call": 3}}, "at '/settings': additional properties 'max-call' not allowed"),
        ({"settings": {"max-calls": "many"}}, "at '/settings/max-calls': got string, want integer"),
        (
            {"settings": {"idle-timeout": "soon"}},
            "at '/settings/idle-timeout': 'soon' does not match pattern '^([0-9]+(\\\\.[0-9]+)?|off)$'",
        ),
        ({"kind": "DaemonSet"}, "at '/kind': value must be one of 'Deployment', 'StatefulSet'"),
        ({"gpu": {"count": "1"}}, "at '/gpu/count': got string, want integer"),
        ({"user": 0}, "at '/user': minimum: got 0, want 1"),
        ({"image": {"tag": 1.2}}, "at '/image/tag': got number, want string"),
        ({"auth": {"tokens": TOKEN}}, "at '/auth/tokens': got string, want array"),
        ({"autoscaling": {"minReplicas": 0}}, "at '/autoscaling/minReplicas': minimum: got 0, want 1"),
        (
            {"resources": {"requests": {"memory": -5}}},
            "at '/resources/requests/memory': minimum: got -5, want 0",
        ),
        (
            {"resources": {"requests": {"cpu": ["x"]}}},
            "at '/resources/requests/cpu': got array, want number or string",
        ),
        ({"auth": None}, "at '': missing property 'auth'"),
        ({"autoscaling": {"keda": None}}, "at '/autoscaling': missing property 'keda'"),
        ({"extraContainers": [{"nam": "x"}]}, "at '/extraContainers/0': missing property 'name'"),
        ({"extraVolumes": [{"emptyDir": {}}]}, "at '/extraVolumes/0': missing property 'name'"),
        ({"affinity": {"x": 1}}, "at '/affinity': additional properties 'x' not allowed"),
        ({"networkPolicy": {"from": [{}]}}, "at '/networkPolicy/from/0': minProperties: got 0, want 1"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(values, line):
    assert refusal(values) == [
        "values don't meet the specifications of the schema(s) in the following chart(s):",
        "rerank-grpc:",
        f"- {line}",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"resources": {"requests": {"cpu": "two"}}},
        {"fullnameOverride": "2026"},
        {"fullnameOverride": "a.b"},
        *({"auth": {"tokens": [token]}} for token in (" ", "# c", "a b", "#c")),
    ],
)
def test_a_text_of_a_wrong_form_is_refused_in_one_line(values):
    _, _, line = refusal(values)
    assert "does not match pattern" in line


def test_null_in_place_of_any_value_takes_it_away_or_is_refused_in_one_line():
    helm = package("helm_python", "helm-python-sdk")
    refused = re.compile(r"[^\n]*\n[^\n]*\n- at '.*': missing property '.*'")
    with helm.Chart.load(CHART) as chart:
        for path in paths_of(read_yaml(CHART / "values.yaml")):
            values: Any = None
            for key in reversed(path):
                values = {key: values}
            told = ""
            try:
                chart.render(values, name="demo", namespace=NAMESPACE)
            except helm.HelmError as error:
                told = str(error).strip()
            assert not told or refused.fullmatch(told), path


def paths_of(values: Object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of each value, and of each group of values."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict) and key != "settings":
            yield from paths_of(value, (*above, key))


CONTRADICTIONS: list[tuple[Object, str]] = [
    (
        {"models": [{"source": "org/a", "lazy": True}, {"source": "embedded"}]},
        "models: the first is the default and cannot be lazy",
    ),
    (
        {"models": [{"source": "org/a"}, {"source": "other/a@main"}]},
        "models: the name a is given twice",
    ),
    (
        {"models": [{"source": "org/a", "aliases": ["b"]}, {"source": "org/c", "name": "b"}]},
        "models: the name b is given twice",
    ),
    (
        {"models": [{"source": "BAAI/bge@refs/pr/1"}]},
        "models: BAAI/bge@refs/pr/1: the part after its last / would be its name: give it a name",
    ),
    *(
        (
            {"rollingUpdate": {"maxSurge": zero, "maxUnavailable": 0}},
            "rollingUpdate: with maxSurge 0 and maxUnavailable 0 no pod could be renewed: set one of them",
        )
        for zero in (0, "0%")
    ),
    ({"service": {"restPort": 50051}}, "service: two ports have one number"),
    ({"service": {"metricsPort": 50051}}, "service: two ports have one number"),
    (
        {"service": {"extraPorts": [{"name": "grpc", "port": 443}]}},
        "service.extraPorts: two ports have one name",
    ),
    (
        {"service": {"plain": False}},
        "service.plain: without it the Service has no port: name the sidecar's in service.extraPorts",
    ),
    (
        {
            "service": {"plain": False, "extraPorts": [{"name": "grpcs", "port": 443}]},
            "networkPolicy": {"enabled": False},
        },
        "service.plain: only the NetworkPolicy closes the plain ports: set networkPolicy.enabled",
    ),
    (
        {"podLabels": {"app.kubernetes.io/instance": "other"}},
        "podLabels: app.kubernetes.io/instance is the chart's own",
    ),
    (
        {
            "autoscaling": {"kind": "keda"},
            "monitor": {"kind": "PodMonitor", "intervalSeconds": 60},
        },
        "monitor.intervalSeconds is above 30: KEDA's query looks at one minute, which wants two readings: "
        "lower it, or set autoscaling.keda.query",
    ),
]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        *CONTRADICTIONS,
        (
            {"storage": {"kind": "pvc"}},
            "storage.kind pvc: the pods of a Deployment share one claim: "
            "set storage.accessModes to [ReadWriteMany], or kind to StatefulSet",
        ),
        ({"storage": {"kind": "existing"}}, "storage.kind existing: name the claim in storage.existingClaim"),
        (
            {"storage": {"readOnly": True}},
            "storage.readOnly: only a claim that others fill can be read-only: set storage.kind to existing",
        ),
        (
            {
                "storage": {"kind": "existing", "existingClaim": "models", "readOnly": True},
                "download": {"enabled": True},
            },
            "download.enabled: storage.readOnly leaves nowhere to put models: turn one of them off",
        ),
        (
            {"download": {"enabled": True}},
            "download.enabled: no model in models is on the hub, such as BAAI/bge-reranker-v2-m3",
        ),
        (
            {"admin": {"open": True}},
            "admin.open: whoever reaches the admin port unloads models, so the server wants tokens there: "
            "set auth",
        ),
        (
            {"auth": {"existingSecret": "callers", "tokens": [TOKEN]}},
            "auth: set existingSecret or tokens, not both",
        ),
        (
            {"tls": {"clientCAKey": "ca.crt"}},
            "tls.clientCAKey: it is a key of the server's own Secret: set tls.existingSecret",
        ),
        (
            {"autoscaling": {"minReplicas": 11}},
            "autoscaling.minReplicas is above autoscaling.maxReplicas",
        ),
        (
            {"monitor": {"kind": "ServiceMonitor"}, "service": {"headless": False}},
            "monitor.kind ServiceMonitor: it finds pods by the headless Service: "
            "set service.headless, or take PodMonitor",
        ),
        (
            {"kind": "StatefulSet", "service": {"headless": False}},
            "kind StatefulSet: its pods' names need the headless Service: set service.headless",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_one_line(values, line):
    (told,) = refusal(values)
    assert told.endswith(f": {line}")
