"""The kernels of each level that this machine's processor has."""

from __future__ import annotations

import platform

import pytest

from rerank_grpc.kernels import native
from rerank_grpc.kernels.device import onednn_int8
from rerank_grpc.kernels.levels import LEVELS, levels_of, processor_features
from rerank_grpc.kernels.native import Kernels

NAMES = [level.name for level in LEVELS]
HERE = levels_of(platform.machine(), processor_features())
# Whether torch's own int8 products are exact here: without VNNI their sums of 16 bits overflow.
EXACT_INT8 = onednn_int8()


def kernels_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Lets this test run at a level alone; skips it where the level does not run."""
    if name not in [level.name for level in HERE]:
        pytest.skip(f"the processor has no {name}")
    monkeypatch.setenv("RERANK_KERNELS", name)
    found = native.kernels()
    if found is None or found.level != name:
        pytest.skip(f"{name} is neither built in nor compiled here")
    return found
