"""The chart's Services and NetworkPolicy: the ports they name, and whom they let in."""

from __future__ import annotations

from tests.deploy.helm.common import every_file
from tests.deploy.kubernetes import KUBERNETES, Object, notes, one, pod_of, render, validate, values_of


@every_file
def test_services_and_the_policy_name_ports_of_the_container(rendered, name):
    objects = rendered[name]
    ports = {port["name"] for each in pod_of(objects)["containers"] for port in each.get("ports", ())}
    for service in (each for each in objects if each["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    headless = one(objects, "Service", name="-headless")["spec"]
    assert headless["clusterIP"] == "None"
    rules = one(objects, "NetworkPolicy")["spec"]["ingress"]
    allowed = {port["port"] for rule in rules for port in rule["ports"]}
    # Nobody calls the admin port but the kubelet of the pod's node; nor, beside a sidecar, those without TLS.
    plain = {"grpc", "rest"} if "grpcs" in ports else set()
    assert allowed == ports - {"admin"} - plain
    assert {port["targetPort"] for port in headless["ports"]} == allowed


def test_an_empty_list_of_peers_lets_nobody_in():
    policies: list[Object] = [{"from": [], "metricsFrom": []}, {"metricsFrom": None}, {"from": []}]
    found = [one(render({"networkPolicy": each}), "NetworkPolicy") for each in policies]
    for policy in found:
        validate(policy, KUBERNETES[0])
        assert all(rule["from"] for rule in policy["spec"]["ingress"])
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    both, alone, other = found
    assert both["spec"]["ingress"] == []
    (rule,) = alone["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["grpc", "rest"]
    (rule,) = other["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["metrics"]


def test_a_sidecars_port_is_in_both_services_and_the_plain_ones_in_neither(rendered):
    services = [each for each in rendered["statefulset-tokens"] if each["kind"] == "Service"]
    assert len(services) == 2
    for service in services:
        found = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        found.pop("metrics", None)
        assert found == {"grpcs": 50443}
    told = notes(values_of("statefulset-tokens"))
    assert "namespace:\n\n  demo-rerank-grpc.search.svc:50443   (grpcs)\n" in told
    assert ".svc:50051" not in told
    assert ":6006" not in told


def test_a_sidecars_port_may_be_a_number_beside_the_plain_ones():
    objects = render({"service": {"extraPorts": [{"name": "https", "port": 443, "targetPort": 8443}]}})
    for each in objects:
        validate(each, KUBERNETES[0])
    (allowed, _) = one(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in allowed["ports"]] == ["grpc", "rest", 8443]
