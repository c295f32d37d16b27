"""What the tests of Kubernetes' files share: the rendered chart, the schemas, and what `restricted` asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
import yaml

from tests.deploy.files import ROOT

Object: TypeAlias = dict[str, Any]

CHART = ROOT / "deploy/helm/rerank-grpc"
KSERVE = ROOT / "deploy/kserve"
VALUES = {path.stem.removesuffix("-values"): path for path in sorted((CHART / "ci").glob("*.yaml"))}
# The oldest that the chart installs on, one between, and the newest whose schemas are there.
KUBERNETES = ("1.30", "1.33", "1.37")
RELEASE, NAMESPACE = "demo", "search"
WORKLOADS = ("Deployment", "StatefulSet")
# The types of volumes that `restricted` allows.
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def package(name: str, distribution: str) -> ModuleType:
    """Imports a package of the tests' own; a machine without it skips the test."""
    if os.environ.get("CI"):
        return __import__(name)
    return pytest.importorskip(name, reason=f"{distribution} is missing: pip install {distribution}")  # type: ignore[no-any-return]


def values_of(name: str) -> Object:
    """Reads one of the chart's files of values; "" is none, for the defaults."""
    return yaml.safe_load(VALUES[name].read_text("utf-8")) if name else {}


def render(values: Object, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """Renders the chart, and returns its objects."""
    helm = package("helm_python", "helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name=release, namespace=namespace)
    files = {path: text for path, text in texts.items() if not path.endswith("NOTES.txt")}
    return [each for text in files.values() for each in yaml.safe_load_all(text) if each]


def notes(values: Object) -> str:
    """Renders what an install says at its end."""
    helm = package("helm_python", "helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        texts: dict[str, str] = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return texts["rerank-grpc/templates/NOTES.txt"]


def refusal(values: Object, release: str = RELEASE) -> list[str]:
    """Returns the lines by which Helm refuses values."""
    helm = package("helm_python", "helm-python-sdk")
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError) as refused:
        chart.render(values, name=release, namespace=NAMESPACE)
    return [line.strip() for line in str(refused.value).splitlines() if line.strip()]


def one(objects: list[Object], *kinds: str, name: str = "") -> Object:
    """Returns the only object of some kinds, whose name ends in `name`."""
    (found,) = (each for each in objects if each["kind"] in kinds and each["metadata"]["name"].endswith(name))
    return found


def pod_of(objects: list[Object]) -> Object:
    """Returns the pod's spec of the workload."""
    spec: Object = one(objects, *WORKLOADS)["spec"]["template"]["spec"]
    return spec


def containers_of(pod: Object) -> list[Object]:
    """Returns all containers of a pod's spec, those that run first too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def server_of(objects: list[Object]) -> Object:
    """Returns the container that serves."""
    server: Object = next(each for each in pod_of(objects)["containers"] if each["name"] == "rerank")
    return server


def environment_of(container: Object) -> dict[str, str]:
    """Returns the variables of a container but those from Secrets and from the kubelet."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def violations(pod: Object) -> Iterator[str]:
    """Yields what `restricted` (Kubernetes' Pod Security Standards) forbids in a pod's spec."""
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(flag):
            yield flag
    for volume in pod.get("volumes", ()):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']}"
    own = pod.get("securityContext", {})
    if own.get("sysctls") or own.get("windowsOptions"):
        yield "sysctls or windowsOptions"
    for container in containers_of(pod):
        yield from (f"{container['name']}: {each}" for each in _violations(container, own))


def _violations(container: Object, pods: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = pods | own
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "privileges"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    if "procMount" in own or "seLinuxOptions" in both:
        yield "procMount or seLinuxOptions"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if any("host" in action for action in container.get(probe, {}).values() if isinstance(action, dict)):
            yield f"{probe}: host"


def documents(path: Path) -> list[Object]:
    """Reads a file of YAML that may hold several documents."""
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]


def closed(*required: str, **properties: Object) -> Object:
    """Makes the schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


def listed(item: Object) -> Object:
    """Makes the schema of a list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


TEXT: Object = {"type": "string"}
NUMBER: Object = {"type": "integer", "minimum": 0}
TEXTS: Object = {"type": "object", "additionalProperties": TEXT}
POD: Object = {"type": "object"}  # the pods' own fields, which Kubernetes' schemas check
RULES = closed(
    stabilizationWindowSeconds=NUMBER,
    selectPolicy={"enum": ["Min", "Max", "Disabled"]},
    policies=listed(
        closed(
            "type",
            "value",
            "periodSeconds",
            type={"enum": ["Pods", "Percent"]},
            value=NUMBER,
            periodSeconds=NUMBER,
        )
    ),
)
SCRAPE = closed(
    "port",
    port=TEXT,
    interval={"type": "string", "pattern": "^[0-9]+s$"},
    relabelings=listed(
        closed(
            sourceLabels=listed(TEXT),
            regex=TEXT,
            targetLabel=TEXT,
            replacement=TEXT,
            action={"enum": ["replace"]},
        )
    ),
)
SELECTOR = closed("matchLabels", matchLabels=TEXTS)
MODEL = closed(
    "modelFormat",
    modelFormat=closed("name", name=TEXT, version=TEXT),
    runtime=TEXT,
    protocolVersion={"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
    storageUri=TEXT,
    lifecycle=POD,
)
EXTERNAL = closed(
    "metric",
    "target",
    metric=closed(backend={"enum": ["prometheus", "graphite"]}, serverAddress=TEXT, query=TEXT),
    # KServe's own schema also has averageValue, which its controller does not hand to KEDA.
    target=closed("type", "value", type={"enum": ["Value"]}, value=TEXT),
)
# KServe's controller hands the window on to KEDA, and drops policies, which its own schema has.
WINDOW = closed("stabilizationWindowSeconds", stabilizationWindowSeconds=NUMBER)
# Of other people's objects the fields that are used here, as their documentation has them, and no others:
# their own schemas are not among Kubernetes'.
CUSTOM: dict[str, Object] = {
    "ScaledObject": closed(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=closed("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
        pollingInterval=NUMBER,
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        fallback=closed(
            "failureThreshold",
            "replicas",
            failureThreshold=NUMBER,
            replicas=NUMBER,
            behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher"]},
        ),
        advanced=closed(
            horizontalPodAutoscalerConfig=closed(behavior=closed(scaleUp=RULES, scaleDown=RULES))
        ),
        triggers=listed(
            closed(
                "type",
                "metadata",
                type={"enum": ["prometheus"]},
                metricType={"enum": ["AverageValue"]},
                metadata=TEXTS,
            )
        ),
    ),
    "PodMonitor": closed(
        "selector", "podMetricsEndpoints", selector=SELECTOR, podMetricsEndpoints=listed(SCRAPE)
    ),
    "ServiceMonitor": closed("selector", "endpoints", selector=SELECTOR, endpoints=listed(SCRAPE)),
    "ServingRuntime": closed(
        "containers",
        annotations=TEXTS,
        supportedModelFormats=listed(
            closed("name", name=TEXT, version=TEXT, autoSelect={"type": "boolean"}, priority=NUMBER)
        ),
        protocolVersions=listed(MODEL["properties"]["protocolVersion"]),
        containers=listed(POD),
        volumes=listed(POD),
    ),
    "InferenceService": closed(
        "predictor",
        predictor=closed(
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
            scaleTarget=NUMBER,
            containerConcurrency=NUMBER,
            timeout=NUMBER,
            terminationGracePeriodSeconds=NUMBER,
            autoScaling=closed(
                metrics=listed(closed("type", type={"enum": ["External"]}, external=EXTERNAL)),
                behavior=closed(scaleUp=WINDOW, scaleDown=WINDOW),
            ),
            model=MODEL,
        ),
    ),
}
VERSIONS = {
    "ScaledObject": "keda.sh/v1alpha1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
    "InferenceService": "serving.kserve.io/v1beta1",
}


def validate(each: Object, version: str) -> None:
    """Checks an object by the schemas of a version of Kubernetes, or those above; unknown fields fail."""
    if each["kind"] in CUSTOM:
        jsonschema = package("jsonschema", "jsonschema")
        assert each["apiVersion"] == VERSIONS[each["kind"]]
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.validate(each["spec"], CUSTOM[each["kind"]])
    else:
        package("kubernetes_validate", "kubernetes-validate").validate(each, version, strict=True)
