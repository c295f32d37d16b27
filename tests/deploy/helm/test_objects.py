"""The chart's objects: valid, of one piece, locked down, under names that hold."""

from __future__ import annotations

import re

import pytest

from rerank_grpc import __version__
from tests.deploy.files import ROOT, read_yaml
from tests.deploy.helm.common import every_file
from tests.deploy.kubernetes import (
    CHART,
    KUBERNETES,
    NAMESPACE,
    VALUES,
    WORKLOADS,
    containers_of,
    one,
    package,
    pod_of,
    refusal,
    render,
    server_of,
    validate,
    values_of,
    violations,
)


@every_file
def test_the_chart_passes_helms_own_lint(name):
    helm = package("helm_python", "helm-python-sdk")
    report = helm.lint(CHART, values_of(name), strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
@every_file
def test_every_object_is_valid(rendered, name, version):
    assert len(rendered[name]) > 5
    for each in rendered[name]:
        validate(each, version)


@every_file
def test_every_object_is_in_the_releases_namespace_under_a_name_of_its_own(rendered, name):
    objects = rendered[name]
    assert {each["metadata"]["namespace"] for each in objects} == {NAMESPACE}
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


def test_the_files_of_values_together_render_every_kind():
    kinds = {each["kind"] for name in VALUES for each in render(values_of(name))}
    templates = " ".join(path.read_text("utf-8") for path in (CHART / "templates").glob("*.yaml"))
    told = set(re.findall(r"(?m)^kind: (\w+)$", templates)) | {*WORKLOADS, "PodMonitor", "ServiceMonitor"}
    # Only tokens in values make a Secret.
    assert kinds == told - {"Secret"}


@every_file
def test_selectors_find_the_pods(rendered, name):
    objects = rendered[name]
    labels = one(objects, *WORKLOADS)["spec"]["template"]["metadata"]["labels"]
    for each in objects:
        spec = each.get("spec", {})
        found = spec.get("podSelector") or spec.get("selector")
        if found is None:
            continue
        if each["kind"] == "ServiceMonitor":
            labels_there = one(objects, "Service", name="-headless")["metadata"]["labels"]
            assert found["matchLabels"].items() <= labels_there.items()
            continue
        assert found.get("matchLabels", found).items() <= labels.items(), each["kind"]


@every_file
def test_pods_keep_to_restricted_pod_security(rendered, name):
    pod = pod_of(rendered[name])
    assert list(violations(pod)) == []
    assert pod["automountServiceAccountToken"] is False
    assert all(each["securityContext"]["readOnlyRootFilesystem"] is True for each in containers_of(pod))


def test_a_pod_that_is_not_locked_is_found_out():
    pod = {
        "hostPID": True,
        "volumes": [{"name": "node", "hostPath": {"path": "/"}}],
        "containers": [
            {
                "name": "open",
                "ports": [{"hostPort": 80}],
                "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}},
                "livenessProbe": {"httpGet": {"host": "10.0.0.1"}},
            }
        ],
    }
    found = [
        "hostPID",
        "volume node",
        *(f"open: {each}" for each in ("root", "seccomp", "privileges", "capabilities", "hostPort")),
        "open: livenessProbe: host",
    ]
    assert list(violations(pod)) == found


def test_names_that_look_like_numbers_stay_texts():
    values = {
        "nameOverride": "7",
        "fullnameOverride": "true",
        "storage": {"kind": "existing", "existingClaim": "123"},
        "auth": {"existingSecret": "456", "key": "1"},
        "download": {"enabled": True, "tokenSecret": "1e3", "tokenKey": "2"},
        "models": [{"source": "org/a"}],
        "serviceAccount": {"create": False, "name": "789"},
        "priorityClassName": "true",
        "runtimeClassName": "12",
        "autoscaling": {"kind": "keda"},
        "monitor": {"kind": "PodMonitor"},
    }
    own_claims = {"kind": "StatefulSet", "storage": {"kind": "pvc", "storageClass": "1", "size": "10"}}
    for each in (*render(values, "2026", "2027"), *render(values | own_claims, "2026", "2027")):
        validate(each, KUBERNETES[0])
        assert each["metadata"]["namespace"] == "2027"


def test_a_releases_dots_are_not_in_names_and_its_number_needs_another():
    names = {each["metadata"]["name"] for each in render({}, "search.v2")}
    assert names == {"search-v2-rerank-grpc", "search-v2-rerank-grpc-headless"}
    (line,) = refusal({}, "2026")
    assert line.endswith("release 2026: a Service's name begins with a letter: set fullnameOverride")


def test_the_chart_is_of_this_release_and_fits_its_image():
    chart = read_yaml(CHART / "Chart.yaml")
    assert chart["appVersion"] == __version__
    assert chart["kubeVersion"] == f">={KUBERNETES[0]}.0-0"
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert f"USER {read_yaml(CHART / 'values.yaml')['user']}:" in dockerfile
    server = server_of(render({}))
    exposed = re.findall(r"(?m)^EXPOSE (.*)$", dockerfile)[0].split()
    assert {str(each["containerPort"]) for each in server["ports"]} == set(exposed)
    assert "command" not in server
    assert 'ENTRYPOINT ["rerank-grpc"]' in dockerfile
