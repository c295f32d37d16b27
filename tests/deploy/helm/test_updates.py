"""The chart's probes, pauses and grace: no update loses a call, or is given up too early."""

from __future__ import annotations

from rerank_grpc.cli.process import ALARM_SECONDS
from rerank_grpc.config.settings import ServerSettings
from tests.deploy.files import ROOT, read_yaml
from tests.deploy.helm.common import PROBES, every_file, settings_of
from tests.deploy.kubernetes import CHART, WORKLOADS, one, pod_of, render, server_of


@every_file
def test_the_kubelet_waits_for_the_pause_and_the_grace(rendered, name, tokens):
    pod, server = pod_of(rendered[name]), server_of(rendered[name])
    pause = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = settings_of(server, tokens)
    # The process itself ends so long after the grace, whatever hangs.
    assert pod["terminationGracePeriodSeconds"] > pause + settings.grace_seconds + ALARM_SECONDS
    readiness = server["readinessProbe"]
    assert pause >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_the_default_grace_is_the_servers():
    assert read_yaml(CHART / "values.yaml")["shutdown"]["graceSeconds"] == ServerSettings().grace_seconds


def test_a_pod_that_loads_has_the_time_that_the_alerts_leave_it():
    probe = server_of(render({}))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 900
    assert "> 900" in (ROOT / "deploy/prometheus/rules.yml").read_text("utf-8")


@every_file
def test_probes_ask_ports_that_the_kubelet_reaches(rendered, name):
    server = server_of(rendered[name])
    ports = {each["containerPort"] for each in server["ports"]}
    for probe in PROBES:
        asked = server[probe].get("grpc") or server[probe].get("httpGet")
        if asked is None:
            assert server[probe]["exec"]["command"] == ["rerank-grpc", "health", "--here"]
        else:
            assert asked["port"] in ports


def test_names_are_cached_for_less_time_than_a_new_pod_is_ready_before_an_old_one_stops(rendered):
    assert one(rendered[""], *WORKLOADS)["spec"]["minReadySeconds"] >= 30  # CoreDNS
    assert one(render({"minReadySeconds": 0}), *WORKLOADS)["spec"]["minReadySeconds"] == 0


def test_an_update_is_not_given_up_while_a_pod_may_load():
    for given in ({}, {"probes": {"startupSeconds": 1800}, "minReadySeconds": 60}):
        objects = render(given)
        probe, workload = server_of(objects)["startupProbe"], one(objects, *WORKLOADS)["spec"]
        loading = probe["periodSeconds"] * probe["failureThreshold"]
        assert workload["progressDeadlineSeconds"] > loading + workload["minReadySeconds"]
    # A StatefulSet has no such field.
    assert "progressDeadlineSeconds" not in one(render({"kind": "StatefulSet"}), *WORKLOADS)["spec"]
