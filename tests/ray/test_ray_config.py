"""`rerank-grpc ray-config`, and the files in deploy/ray that it wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerank_grpc.limits import LIMITS
from rerank_grpc.ray import config
from rerank_grpc.ray.app import SHUTDOWN_SECONDS
from rerank_grpc.ray.arguments import ReplicaPlan
from tests.command import run

FILES = Path(__file__).resolve().parents[2] / "deploy" / "ray"
# How the files in deploy/ray were written.
_SIZE = ("--gpus", "1", "--min-replicas", "2", "--max-replicas", "8")
ARGUMENTS = ("ray-config", "--model", "BAAI/bge-reranker-v2-m3", *_SIZE)

pytestmark = pytest.mark.usefixtures("_ray")


@pytest.fixture
def _ray() -> None:
    pytest.importorskip("ray", exc_type=ImportError)


def written(*arguments: str, **variables: str) -> Any:
    done = run(*arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize(("name", "more"), [("serve.yaml", ()), ("ray-service.yaml", ("--ray-service",))])
def test_the_files_of_the_repository_are_what_it_writes(name: str, more: tuple[str, ...]):
    done = run(*ARGUMENTS, *more, RERANK_LOG_FORMAT="")
    assert done.stdout == (FILES / name).read_text("utf-8"), (
        f"write deploy/ray/{name} anew: {' '.join(ARGUMENTS)}"
    )


def test_settings_of_flags_variables_and_a_file_become_arguments(tmp_path: Path):
    file = tmp_path / "rerank.toml"
    file.write_text('device = "cpu"\nport = 6000\n')
    told = written(
        *("ray-config", "--config", str(file), "--alias", "tiny=embedded", "--cpus", "2", "--replicas", "3"),
        RERANK_MAX_CALLS="12",
        RERANK_TOKENS="canary",
    )
    (application,) = told["applications"]
    arguments = {"cpus": 2.0, "alias": ["tiny=embedded"], "device": "cpu", "max-calls": "12"}
    assert application["args"] == arguments | {"log-format": "text"}
    assert application["deployments"] == [{"name": "Rerank", "num_replicas": 3}]
    assert "canary" not in str(told)
    assert told["grpc_options"]["request_timeout_s"] > LIMITS.deadline_seconds


def test_models_that_may_change_between_two_starts_are_named(tmp_path: Path):
    commit = "0" * 40
    models = ("embedded", "BAAI/bge-reranker-base", "org/floating", "org/branch@main", f"org/fixed@{commit}")
    flags = [word for model in (*models, f"dir={tmp_path}") for word in ("--model", model)]
    lines = run("ray-config", *flags).stdout.splitlines()
    told = [line for line in lines if "revisions" in line]
    assert told == [
        f"# Replicas may load different revisions of {name}: write --model {name}@COMMIT."
        for name in ("org/floating", "org/branch")
    ]


def test_the_file_says_where_tokens_are_set(tmp_path: Path):
    line = "# And RERANK_TOKENS, or any caller is served."
    assert line in run("ray-config").stdout
    assert line not in run("ray-config", "--ray-service", "--image", "i").stdout, "a Secret has them"
    assert line not in run("ray-config", "--token-file", str(tmp_path / "on-the-nodes")).stdout


def test_serve_takes_the_file():
    code = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
for path in sys.argv[1:]:
    content = yaml.safe_load(open(path))
    if content.get("kind"):
        content = yaml.safe_load(content["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(content)
"""
    paths = [str(FILES / name) for name in ("serve.yaml", "ray-service.yaml")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *paths], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2_000:]


def test_a_ray_service_is_as_kuberay_wants_it():
    service = yaml.safe_load((FILES / "ray-service.yaml").read_text("utf-8"))
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == 8_000
        assert ports["serve-grpc"] == 9_000
        environment = {each["name"]: each.get("value") for each in container["env"]}
        assert environment.items() >= config.ENVIRONMENT.items(), "head and workers alike"
        assert pod["terminationGracePeriodSeconds"] > SHUTDOWN_SECONDS
        assert not pod["enableServiceLinks"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 8)
    assert groups[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no replica on the head"


def test_the_network_policy_selects_the_pods_and_leaves_callers_one_port():
    policy = yaml.safe_load((FILES / "network-policy.yaml").read_text("utf-8"))
    service = yaml.safe_load((FILES / "ray-service.yaml").read_text("utf-8"))
    labels = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    own, callers, operator = policy["spec"]["ingress"]
    assert "ports" not in own
    assert [port["port"] for port in callers["ports"]] == [config.GRPC_PORT]
    assert [port["port"] for port in operator["ports"]] == [config.HTTP_PORT, 8_265]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--gpus", "1.5"), "gpus: '1.5' is no share of one GPU, nor a whole number of them"),
        (("--replicas", "2", "--max-replicas", "3"), "replicas: not together with min-replicas"),
        (("--port", "6000"), "unknown option --port"),
        (("--grpc-port", "x"), "argument --grpc-port: 'x' is not a port"),
        (("--device", "tpu"), "--device: 'tpu'"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], error: str):
    done = run("ray-config", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"rerank-grpc: error: {error}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_another_ray_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("")
    (tmp_path / "ray-2.99.0.dist-info").mkdir()
    (tmp_path / "ray-2.99.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ray\nVersion: 2.99.0\n"
    )
    done = run("ray-config", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "rerank-grpc: error: Ray 2.99.0 was not tried with this release, 2.60 was: pip"
    )
    assert done.stderr.count("\n") == 1


def test_half_a_gpu_is_a_whole_one_of_the_pod():
    plan = ReplicaPlan(least=1, most=1, gpus=0.5)
    service = config.ray_service(config.serve_config({}, plan), plan, image="i", version="2.60.0")
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
