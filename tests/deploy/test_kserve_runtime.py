"""KServe's runtime: valid, locked down, and its command line answers KServe's protocol and its own probe."""

from __future__ import annotations

import copy
import json
import re
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc import __version__
from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.process import ALARM_SECONDS
from rerank_grpc.config.reading import read_settings
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.server.kserve.service import SERVICE
from tests import random_models
from tests.command import Served
from tests.deploy.files import ROOT, read_yaml
from tests.deploy.kubernetes import (
    CHART,
    KSERVE,
    KUBERNETES,
    Object,
    environment_of,
    package,
    validate,
    violations,
)
from tests.ports import free_port
from tests.stubs import HealthStub
from tests.support import channel_of

FILES = [*sorted(KSERVE.glob("*.yaml"))]
RUNTIME = read_yaml(KSERVE / "serving-runtime.yaml")
KNATIVE, KEDA = SERVICES = [
    read_yaml(KSERVE / name) for name in ("inference-service.yaml", "inference-service-keda.yaml")
]
MONITOR = read_yaml(KSERVE / "pod-monitor.yaml")
# KServe puts a model's files there, and the InferenceService's name in place of this.
MODEL, NAME = "/mnt/models", "{{.Name}}"


@pytest.fixture
def container() -> Object:
    (found,) = RUNTIME["spec"]["containers"]
    return dict(found)


def test_the_runtime_and_its_services_have_the_fields_of_kserve():
    assert [each["kind"] for each in [RUNTIME, *SERVICES]] == ["ServingRuntime", *["InferenceService"] * 2]
    for path in FILES:
        validate(read_yaml(path), KUBERNETES[0])


@pytest.mark.parametrize("version", KUBERNETES)
def test_its_container_and_volumes_make_a_valid_pod(container, version):
    spec = {"containers": [container], "volumes": RUNTIME["spec"]["volumes"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": spec}
    validate(pod, version)
    assert list(violations(spec)) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_knative_takes_the_container_as_it_is(container):
    # One port, no hooks, and no security context of the pod, which takes a feature flag.
    assert [each["name"] for each in container["ports"]] == ["h2c"]
    assert "lifecycle" not in container
    assert all(set(each) - {"name"} == {"emptyDir"} for each in RUNTIME["spec"]["volumes"])


def test_the_command_line_is_the_servers(container):
    arguments = [each.replace(NAME, "reranker") for each in container["args"]]
    settings = read_settings(parse(arguments).flags, environment_of(container))
    (model,) = settings.models
    assert (model.name, model.source) == ("reranker", MODEL)
    assert [each["containerPort"] for each in container["ports"]] == [settings.port]
    assert str(settings.metrics_port) == RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"]
    assert {settings.host, settings.metrics_host} == {"0.0.0.0"}
    assert settings.rest.port is settings.admin_port is None
    assert container["image"] == f"rerank-grpc:{__version__}"
    home = environment_of(container)["HOME"]
    assert {each["mountPath"] for each in container["volumeMounts"]} == {home, "/tmp"}


def test_the_page_tells_the_starts_that_were_measured():
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    measured = json.loads((ROOT / "benchmarks/results/starting.json").read_text("utf-8"))
    for model, name in (("embedded", "embedded"), ("base", "one of base's size, bf16")):
        first, later = (measured[model][start]["seconds"] for start in ("first", "median"))
        assert f"| {name} | {first:.1f} | {later:.1f} |" in page


@pytest.mark.parametrize("service", SERVICES, ids=["knative", "keda"])
def test_a_service_names_the_runtime_with_a_format_and_a_protocol_that_it_has(service):
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = [(each["name"], each["version"]) for each in RUNTIME["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_only_knative_goes_down_to_nothing_and_the_other_scales_by_the_queue(container):
    knative, keda = (each["spec"]["predictor"] for each in SERVICES)
    assert (knative["minReplicas"], "autoScaling" in knative) == (0, False)
    (metric,) = keda["autoScaling"]["metrics"]
    query = metric["external"]["metric"]["query"]
    assert re.findall(r"rerank_\w+", query) == ["rerank_queue_seconds"]
    # A reranker of that name in another namespace has a queue of its own.
    (namespace,) = re.findall(r'namespace="(\w+)"', query)
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    applied = re.findall(r"kubectl (.*) apply -f deploy/kserve/", page)
    assert applied == [f"--namespace {namespace}"] * 4
    assert 'model="reranker"' in query
    assert KEDA["metadata"]["name"] == "reranker"
    assert metric["external"]["target"]["value"] == "1"
    pause = keda["model"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    arguments = [each.replace(NAME, "reranker") for each in container["args"]]
    grace = read_settings(parse(arguments).flags, {}).grace_seconds
    assert keda["terminationGracePeriodSeconds"] > pause + grace + ALARM_SECONDS


def test_pods_leave_as_late_as_kserve_can_make_them():
    behavior = KEDA["spec"]["predictor"]["autoScaling"]["behavior"]
    chart = read_yaml(CHART / "values.yaml")["autoscaling"]["scaleDown"]
    assert behavior == {"scaleDown": {"stabilizationWindowSeconds": chart["stabilizationSeconds"]}}


def test_policies_which_kserve_drops_are_refused():
    jsonschema = package("jsonschema", "jsonschema")
    wrong = copy.deepcopy(KEDA)
    down = wrong["spec"]["predictor"]["autoScaling"]["behavior"]["scaleDown"]
    down["policies"] = [{"type": "Pods", "value": 1, "periodSeconds": 600}]
    with pytest.raises(jsonschema.ValidationError, match="policies"):
        validate(wrong, KUBERNETES[0])


def test_prometheus_finds_the_pods_by_the_containers_port_and_reads_the_one_with_metrics(container):
    spec = MONITOR["spec"]
    assert spec["selector"]["matchLabels"]["serving.kserve.io/inferenceservice"] == KEDA["metadata"]["name"]
    (endpoint,) = spec["podMetricsEndpoints"]
    (port,) = container["ports"]
    assert endpoint["port"] == port["name"]
    moved, job = endpoint["relabelings"]
    told = RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"]
    for host in ("10.0.0.7", "[fd00::7]"):
        address = f"{host}:{port['containerPort']}"
        assert re.sub(f"^{moved['regex']}$", r"\1", address) == host
    assert moved["replacement"] == f"$1:{told}"
    assert job["replacement"] == "rerank"


def test_a_pod_whose_device_broke_is_started_anew_and_one_that_loads_is_left(container):
    liveness, readiness = container["livenessProbe"], container["readinessProbe"]
    assert liveness["grpc"] == readiness["grpc"]
    patience = liveness["periodSeconds"] * liveness["failureThreshold"]
    assert patience >= 60
    chart = read_yaml(CHART / "values.yaml")["probes"]
    assert liveness["initialDelaySeconds"] + patience >= chart["startupSeconds"]


def infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Calls ModelInfer."""
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    answer: pb.ModelInferResponse = call(request, timeout=30)
    return answer


def texts(name: str, *values: str) -> pb.ModelInferRequest.InferInputTensor:
    """Makes a tensor of texts."""
    contents = pb.InferTensorContents(bytes_contents=[value.encode() for value in values])
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype="BYTES", shape=[len(values)], contents=contents
    )


def test_with_a_model_where_kserve_puts_it_the_command_answers_the_probe_and_kserves_protocol(
    container, tmp_path: Path
):
    model, port = random_models.bert(tmp_path / "model"), free_port()
    arguments = [
        each.replace(NAME, "reranker").replace(MODEL, str(model)).replace("50051", str(port))
        for each in container["args"][1:]
    ]
    arguments = [re.sub(r"^(--metrics-port)=.*", r"\1=0", each) for each in arguments]
    server = Served(*arguments)
    try:
        with channel_of(port) as channel:
            asked = health_pb2.HealthCheckRequest(service=container["readinessProbe"]["grpc"]["service"])
            answer = HealthStub(channel).Check(asked, timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            request = pb.ModelInferRequest(
                model_name="reranker",
                inputs=[texts("QUERY", "what is a panda?"), texts("PASSAGE", "a bear", "a bird")],
            )
            answered = infer(channel, request)
        assert answered.model_name == "reranker"
        assert server.stop(signal.SIGTERM) == 0
    finally:
        server.close()
