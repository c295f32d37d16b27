"""The names of Serve's own that the package relies on, and the releases it was tried with."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.ray import pins

SOURCES = {pins.DEAD_REPLICA: "ray.exceptions", pins.FULL_REPLICA: "ray.serve._private.replica"}


def in_a_process(code: str) -> str:
    """Runs Python in a process of its own: Ray's import warns, and takes seconds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_every_private_name_is_there():
    pytest.importorskip("ray", exc_type=ImportError)
    code = """
import inspect
from rerank_grpc.ray import pins
from ray.serve._private.grpc_util import gRPCGenericServer
print(*pins.missing_names(), sep="\\n")
if pins.FACTORY not in inspect.signature(gRPCGenericServer.__init__).parameters:
    print(f"gRPCGenericServer has no {pins.FACTORY}")
"""
    gone = in_a_process(code).strip()
    assert gone == "", f"Ray {metadata.version('ray')} has changed what rerank_grpc/ray relies on:\n{gone}"


def test_serve_still_writes_the_texts_by_which_its_errors_are_told():
    pytest.importorskip("ray", exc_type=ImportError)
    for text, module in SOURCES.items():
        code = f"import importlib, inspect; print(inspect.getsource(importlib.import_module({module!r})))"
        assert text in in_a_process(code), (
            f"{module} no longer writes {text!r}: replicas' deaths are not told"
        )


def test_a_name_that_is_gone_is_told_with_what_relied_on_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        pins, "NAMES", {"json:JSONDecoder.decode": "a", "json:Gone.decode": "b", "no_module:x": "c"}
    )
    assert list(pins.missing_names()) == [
        "json:Gone.decode is gone, and with it: b",
        "no_module:x is gone, and with it: c",
    ]


def test_another_release_or_none_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins, "installed_ray", lambda: "2.60.1")
    assert pins.check_ray() == "2.60.1"
    for version in ("2.61.0", "2.6.0", "3.0"):
        monkeypatch.setattr(pins, "installed_ray", lambda version=version: version)
        with pytest.raises(
            ConfigurationError, match=rf"^Ray {version} was not tried .* 2\.60 was: pip install"
        ):
            pins.check_ray()
    monkeypatch.setattr(pins, "installed_ray", lambda: None)
    with pytest.raises(ConfigurationError, match=r"^Ray is not installed: pip install"):
        pins.check_ray()
