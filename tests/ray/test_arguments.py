"""The arguments of an application, each error in one line that names the argument."""

from __future__ import annotations

from typing import Any

import pytest

from rerank_grpc.config.options import OptionError
from rerank_grpc.ray.arguments import ReplicaPlan, lacking, read_arguments, settings_of


def test_nothing_is_one_replica_of_the_embedded_model():
    plan, flags = read_arguments({})
    assert (plan, flags) == (ReplicaPlan(), {})
    assert settings_of(flags).models[0].name == "embedded"


def test_names_are_those_of_a_file_of_settings_and_values_those_of_yaml_or_a_command_line():
    arguments = {"model": ["embedded", "b=/models/b"], "device": "cpu", "max-calls": 12, "replicas": "2"}
    plan, flags = read_arguments({**arguments, "gpus": 0.5, "cpus": 2})
    assert plan == ReplicaPlan(least=2, most=2, cpus=2.0, gpus=0.5)
    assert plan.resources == {"CPU": 2.0, "GPU": 0.5}
    settings = settings_of(flags)
    assert [model.name for model in settings.models] == ["embedded", "b"]
    assert (settings.device, settings.max_calls) == ("cpu", 12)
    assert read_arguments({"model": "embedded"})[1] == {"model": ["embedded"]}


def test_bounds_have_replicas_follow_the_work():
    plan, _ = read_arguments({"min-replicas": 1, "max-replicas": 4, "queued-seconds": 0.5})
    assert (plan.least, plan.most, plan.queued_seconds) == (1, 4, 0.5)
    assert read_arguments({"max-replicas": 4})[0].least == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"modle": "embedded"}, "modle: unknown argument; did you mean model?"),
        ({"replica": 2}, "replica: unknown argument; did you mean replicas?"),
        ({"replicas": 0}, "replicas: '0' is not a whole number from 1 to 10,000"),
        ({"replicas": 1.5}, "replicas: '1.5' is not a whole number"),
        ({"replicas": 2, "max-replicas": 3}, "replicas: not together with min-replicas and max-replicas"),
        ({"min-replicas": 3, "max-replicas": 2}, "max-replicas: 2 is below min-replicas, which is 3"),
        ({"gpus": 1.5}, "gpus: '1.5' is no share of one GPU"),
        ({"cpus": "nan"}, "cpus: 'nan' is not a number from 0"),
        ({"queued-seconds": 0}, "queued-seconds: '0' is not a time above 0"),
        ({"device": True}, "device: takes a string or a number, not bool"),
        ({"model-memory": False}, 'model-memory: takes a string or a number, not bool: write "off"'),
        ({"model": {"name": "embedded"}}, "model: takes a string or a number, not dict"),
        ({"port": 6_000}, "port: not an argument on Ray: Serve listens"),
        ({"rest-port": 6_000}, "rest-port: not an argument on Ray: Serve listens"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: dict[str, Any], error: str):
    with pytest.raises(OptionError) as caught:
        read_arguments(arguments)
    assert str(caught.value).startswith(error)
    assert "\n" not in str(caught.value)


def test_what_the_server_would_refuse_is_refused_before_a_replica_starts():
    _, flags = read_arguments({"device": "tpu"})
    with pytest.raises(OptionError, match="--device: 'tpu'"):
        settings_of(flags)


def test_only_replicas_need_the_file_of_tokens():
    _, flags = read_arguments({"token-file": "/run/secrets/tokens"})
    assert settings_of(flags).access_tokens == ()


def test_a_replica_larger_than_every_node_is_told_with_what_there_is():
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert lacking({"CPU": 4.0, "GPU": 1.0}, nodes) == ""
    assert lacking({"CPU": 4.0}, []) == ""
    line = lacking({"CPU": 16.0, "GPU": 1.0}, nodes)
    assert "takes 16 CPU and 1 GPU: the most that one has is 64 CPU, 1 GPU" in line
    assert "\n" not in line
