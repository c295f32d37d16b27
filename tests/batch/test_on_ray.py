"""The parts of a cluster that actors take, and an address at which nothing answers; no cluster runs."""

from dataclasses import replace

import pytest

from rerank_grpc import __version__
from rerank_grpc.batch.workers import Task
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError
from tests.batch.files import rerank

on_ray = pytest.importorskip("rerank_grpc.batch.on_ray")
ClusterShare = on_ray.ClusterShare


def test_each_gpu_has_an_actor_and_else_each_machine():
    assert ClusterShare.of({"GPU": 4, "CPU": 64}, "auto", 2, None) == ClusterShare(4, 1, 0, 0)
    assert ClusterShare.of({"GPU": 4, "CPU": 64}, "cuda", 2, 3) == ClusterShare(3, 1, 0, 0)
    assert ClusterShare.of({"GPU": 4, "CPU": 64}, "cpu", 2, None) == ClusterShare(2, 0, 0.5, 32)
    assert ClusterShare.of({"CPU": 8}, "auto", 1, 4) == ClusterShare(4, 0, 0.5, 2)


@pytest.mark.parametrize(
    ("device", "workers", "reason"),
    [("cuda:0", None, "has no GPU"), ("auto", 8, "too few for 8 actors")],
)
def test_a_cluster_without_room_is_refused(device, workers, reason):
    with pytest.raises(ConfigurationError, match=reason):
        ClusterShare.of({"CPU": 4}, device, 1, workers)


def test_an_address_at_which_no_cluster_answers_is_one_line(tmp_path, source, model):
    done = rerank(source, tmp_path / "out.jsonl", model, "--ray", "127.0.0.2:1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--ray: no cluster answers at 127.0.0.2:1" in line


def test_an_actor_with_another_model_or_version_than_the_first_says_so(model):
    settings = ServerSettings(device="cpu", precision="fp32")
    task = Task(str(model), settings, "jsonl", whole_ids=False)
    facts = on_ray.BlockActor(task, 1).facts()
    assert on_ray.BlockActor(task, 1, facts, 1024).facts().version == __version__
    for change in ({"revision": "other"}, {"version": "0.0.1"}):
        failed = on_ray.BlockActor(task, 1, replace(facts, **change)).facts()
        (name, value) = next(iter(change.items()))
        assert f"has the {name} " in failed.text
        assert f"and the first one has '{value}': all must have the same version" in failed.text
