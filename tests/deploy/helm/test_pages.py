"""What the chart's users read: its page, and what an install says."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.files import ROOT
from tests.deploy.kubernetes import KUBERNETES, notes, one, render, validate, values_of


def test_an_install_says_where_the_service_is_and_who_can_call_it():
    told = notes({})
    assert "demo-rerank-grpc.search.svc:50051" in told
    assert "WARNING: no token is set" in told
    closed_to_strangers = notes(values_of("statefulset-tokens"))
    assert "WARNING" not in closed_to_strangers
    assert "rollout status statefulset/demo-rerank-grpc" in closed_to_strangers
    assert "with one replica" in notes(values_of("cpu-small"))
    assert "ipBlock" in notes({"service": {"type": "LoadBalancer"}})


def test_the_pages_client_is_there():
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    namespace["client"].close()
    service = one(render({}), "Service", name="-headless")["metadata"]["name"]
    assert service.replace("demo", "rerank") in text


def test_the_pages_values_render():
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n# values\n(.*?)```", page, re.DOTALL)]
    assert len(blocks) == 3
    for values in blocks:
        for each in render(values):
            validate(each, KUBERNETES[0])
