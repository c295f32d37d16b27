"""The chart's pods: their volumes, variables, Secret and GPU."""

from __future__ import annotations

from tests.deploy.helm.common import every_file
from tests.deploy.kubernetes import WORKLOADS, containers_of, environment_of, one, pod_of, render, server_of


@every_file
def test_what_the_server_writes_lies_on_a_volume(rendered, name):
    for container in containers_of(pod_of(rendered[name])):
        if "args" not in container or container["image"].split(":")[0] != "rerank-grpc":
            continue
        mounts = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
        variables = environment_of(container)
        assert "/tmp" in mounts
        assert variables["HOME"] in mounts
        assert any(variables["HF_HOME"].startswith(f"{mount}/") for mount in mounts)


@every_file
def test_volumes_and_mounts_belong_together(rendered, name):
    pod = pod_of(rendered[name])
    workload = one(rendered[name], *WORKLOADS)["spec"]
    volumes = {each["name"] for each in pod["volumes"]}
    volumes |= {each["metadata"]["name"] for each in workload.get("volumeClaimTemplates", ())}
    mounted = {mount["name"] for each in containers_of(pod) for mount in each.get("volumeMounts", ())}
    assert mounted == volumes


def test_a_read_only_volume_leaves_the_home_elsewhere():
    storage = {"kind": "existing", "existingClaim": "models", "readOnly": True}
    objects = render({"storage": storage})
    server = server_of(objects)
    assert environment_of(server)["HOME"] == "/home/rerank"
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in server["volumeMounts"]}
    assert mounts == {"/models": True, "/home/rerank": False, "/tmp": False}


def test_tokens_of_values_make_a_secret_and_new_ones_renew_the_pods():
    checksums = set()
    for tokens in (["one", "two"], ["three"]):
        objects = render({"auth": {"tokens": tokens}})
        assert one(objects, "Secret")["stringData"]["tokens"].splitlines() == tokens
        annotations = one(objects, *WORKLOADS)["spec"]["template"]["metadata"]["annotations"]
        checksums.add(annotations["checksum/tokens"])
        assert not any(token in str(annotations) for token in tokens)
    assert len(checksums) == 2


def test_a_variable_of_the_values_takes_the_place_of_the_charts():
    variable = {"name": "OMP_NUM_THREADS", "value": "3"}
    server = server_of(render({"extraEnv": [variable]}))
    assert [each for each in server["env"] if each["name"] == "OMP_NUM_THREADS"] == [variable]


def test_threads_are_those_of_the_request_unless_there_is_a_limit_which_the_server_follows():
    for limits, told in (({"memory": "2Gi"}, True), ({"memory": "2Gi", "cpu": "2"}, False)):
        server = server_of(render({"resources": {"requests": {"cpu": "2"}, "limits": limits}}))
        assert any(each["name"] == "OMP_NUM_THREADS" for each in server["env"]) is told


def test_a_gpu_is_asked_for_tolerated_and_used(rendered):
    pod, server = pod_of(rendered["gpu"]), server_of(rendered["gpu"])
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in pod["initContainers"][0]["resources"]["limits"]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
