"""The manifests by hand: valid, locked down, of one piece; their own commands fetch a model and serve it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc import __version__
from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.process import ALARM_SECONDS
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.kept import cache_folder
from tests import hub, random_models
from tests.command import Served, run
from tests.deploy.files import ROOT
from tests.deploy.kubernetes import (
    KUBERNETES,
    Object,
    documents,
    environment_of,
    render,
    server_of,
    validate,
    values_of,
    violations,
)
from tests.stubs import HealthStub
from tests.support import channel_of, request_of, stub_of

FOLDER = ROOT / "deploy/kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
OBJECTS = [each for path in FILES for each in documents(path)]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MODEL = "BAAI/bge-reranker-base"
IMAGE = f"registry.example.com/rerank-grpc:{__version__}"


def one(kind: str, name: str = "rerank") -> Object:
    (found,) = (each for each in OBJECTS if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


DEPLOYMENT, JOB = one("Deployment"), one("Job", "rerank-models")
COPYING = one("Pod", "rerank-copy")
POD: Object = DEPLOYMENT["spec"]["template"]["spec"]
FETCHING: Object = JOB["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
(DOWNLOAD,) = FETCHING["containers"]
(COPY,) = COPYING["spec"]["containers"]
PODS: tuple[Object, ...] = (POD, FETCHING, COPYING["spec"])


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_every_object_is_valid(each, version):
    validate(each, version)


def test_pods_keep_to_restricted_pod_security():
    for pod in PODS:
        assert list(violations(pod)) == []
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_image_is_this_release_and_its_user_is_the_images():
    assert SERVER["image"] == DOWNLOAD["image"] == COPY["image"] == IMAGE
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (user,) = {pod["securityContext"]["runAsUser"] for pod in PODS}
    assert f"USER {user}:{user}" in dockerfile
    assert {pod["securityContext"]["fsGroup"] for pod in PODS} == {user}
    assert f"EXPOSE {' '.join(str(port['containerPort']) for port in SERVER['ports'])}" in dockerfile


def test_selectors_find_the_servers_pods_and_no_others():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    others = [each["metadata"]["labels"] for each in (JOB["spec"]["template"], COPYING)]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    selectors += [each["spec"]["selector"] for each in OBJECTS if each["kind"] == "Service"]
    selectors.append(one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= each.items() for each in others)


def test_services_the_policy_and_probes_name_ports_of_the_container():
    ports = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    settings = ServerSettings()
    assert ports == {"grpc": settings.port, "rest": settings.rest.port, "metrics": settings.metrics_port}
    for service in (each for each in OBJECTS if each["kind"] == "Service"):
        assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    assert one("Service", "rerank-headless")["spec"]["clusterIP"] == "None"
    rules = one("NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(ports)
    assert {SERVER[probe]["grpc"]["port"] for probe in PROBES} == {settings.port}


def test_volumes_and_mounts_belong_together():
    for pod in PODS:
        (container,) = pod["containers"]
        assert {each["name"] for each in pod["volumes"]} == {
            each["name"] for each in container["volumeMounts"]
        }
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in SERVER["volumeMounts"]}
    home = environment_of(SERVER)["HOME"]
    assert not mounts[home]
    assert not mounts["/tmp"]
    assert mounts["/models"]
    # What the job has written is where the servers look.
    assert environment_of(SERVER)["HF_HOME"] == environment_of(DOWNLOAD)["HF_HOME"]
    # Of a file that is mounted by itself a change is never seen.
    assert not any("subPath" in each for each in SERVER["volumeMounts"])


def test_the_job_and_the_pod_for_copies_fill_the_claim_that_servers_read():
    claim = one("PersistentVolumeClaim", "rerank-models")["metadata"]
    for pod in PODS:
        (volume,) = (each for each in pod["volumes"] if each["name"] == "models")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["name"]
        (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "models")
        assert mount["mountPath"] == "/models"
        assert mount.get("readOnly", False) == (pod is POD)
    # By its label the page applies the claim without the job, where models are copied.
    assert claim["labels"] == {"app": "rerank"} != JOB["metadata"]["labels"]


def test_an_update_is_not_given_up_while_a_pod_may_load():
    probe, deployment = SERVER["startupProbe"], DEPLOYMENT["spec"]
    loading = probe["periodSeconds"] * probe["failureThreshold"]
    assert deployment["progressDeadlineSeconds"] > loading + deployment["minReadySeconds"]


def test_the_user_may_read_the_tokens_and_no_stranger_may():
    (secret,) = (each["secret"] for each in POD["volumes"] if each["name"] == "tokens")
    mode = secret["defaultMode"]
    assert mode & 0o040, "read by the group, which fsGroup is"
    assert mode & 0o007 == 0


def test_the_kubelet_waits_for_the_pause_and_the_grace():
    pause = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = read_settings(
        parse(local_arguments(SERVER, Path("/nowhere"))).flags | {"token-file": None}, {}
    ).grace_seconds
    assert POD["terminationGracePeriodSeconds"] > pause + grace + ALARM_SECONDS


def test_the_chart_does_the_same_in_what_both_decide():
    values = {"storage": {"kind": "existing", "existingClaim": "rerank-models", "readOnly": True}}
    objects = render(values)
    charts = server_of(objects)
    for field in (*PROBES, "lifecycle", "securityContext"):
        assert SERVER[field] == charts[field], field
    workload = next(each for each in objects if each["kind"] == "Deployment")["spec"]
    for field in ("minReadySeconds", "progressDeadlineSeconds", "strategy", "replicas"):
        assert DEPLOYMENT["spec"][field] == workload[field]
    pod = workload["template"]["spec"]
    for field in ("securityContext", "terminationGracePeriodSeconds", "enableServiceLinks"):
        assert POD[field] == pod[field]
    assert values_of("") == {}


def local_arguments(container: Object, folder: Path) -> list[str]:
    """Returns a container's arguments, with a folder in place of the Secret's, and a model of the tests."""
    assert any(MODEL in each for each in container["args"])
    return [
        each.replace("/run/secrets/rerank", str(folder)).replace(MODEL, "org/tiny")
        for each in container["args"]
    ]


def local_environment(container: Object, folder: Path) -> dict[str, str]:
    """Returns a container's variables, and what the image sets, with a folder in place of the volumes."""
    variables = environment_of(container) | {"RERANK_MODELS_DIR": "/models"}
    moved = {name: re.sub(r"^/(models|home)", rf"{folder}/\1", text) for name, text in variables.items()}
    return moved | {"HF_HUB_CACHE": f"{moved['HF_HOME']}/hub", "NO_PROXY": "localhost"}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Makes the volumes, filled by the job's own command from a hub of the tests."""
    (tmp_path / "models").mkdir()
    (tmp_path / "home/rerank").mkdir(parents=True)
    (tmp_path / "tokens").write_text("s3cret\n")
    with hub.running(tiny=random_models.bert(tmp_path / "bert")) as there:
        own = local_environment(DOWNLOAD, tmp_path) | {"HF_ENDPOINT": there.endpoint}
        done = run(*local_arguments(DOWNLOAD, tmp_path), **own)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_what_the_job_has_fetched_is_served_read_only_without_a_hub(volume):
    for path in [volume / "models", *(volume / "models").rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    arguments = [*local_arguments(SERVER, volume)[1:], "--host=127.0.0.1"]
    server = Served(*arguments, **local_environment(SERVER, volume))
    try:
        port = int(server.target.rpartition(":")[2])
        for probe in (SERVER[each]["grpc"] for each in PROBES):
            with channel_of(port) as channel:
                # The probes' own three and five seconds are for a pod's processors.
                asked = health_pb2.HealthCheckRequest(service=probe["service"])
                answer = HealthStub(channel).Check(asked, timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with stub_of(port) as stub:
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.Rerank(request_of("query", "document"), timeout=30)
            metadata = (("authorization", "Bearer s3cret"),)
            reply: Any = stub.Rerank(request_of("query", "document"), timeout=30, metadata=metadata)
            assert reply.model == "tiny"
        assert server.stop(signal.SIGTERM) == 0
    finally:
        server.close()
    assert list((volume / "home").rglob("*.json")), "a start keeps what it has found out in the home"


def test_a_home_as_fs_group_makes_it_keeps_what_starts_find_out(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    # A volume's root as the kubelet leaves it: the group's, and its mark is handed on to new folders.
    home.chmod(0o2775)
    monkeypatch.setenv("HOME", str(home))
    previous = os.umask(0o022)
    try:
        assert cache_folder() == home / ".cache/rerank-grpc"
        # "Always" goes over all files at each mount.
        (home / ".cache/rerank-grpc").chmod(0o2770)
        assert cache_folder() != home / ".cache/rerank-grpc"
    finally:
        os.umask(previous)
