"""The ports of a cluster of tests, which no other cluster on the machine may share."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from benchmarks import ray_cluster
from benchmarks.ray_cluster import ADDRESS, BLOCK, FIRST_PORT, PortBlock


def only(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves one block to choose."""
    monkeypatch.setattr(ray_cluster, "FIRST_PORT", first)
    monkeypatch.setattr(ray_cluster, "BELOW_EPHEMERAL", first + BLOCK)


def test_ports_are_held_before_anything_listens_on_them(monkeypatch: pytest.MonkeyPatch):
    with closing(PortBlock()) as block:
        assert (block.first - FIRST_PORT) % BLOCK == 0, "blocks do not overlap"
        only(block.first, monkeypatch)
        with pytest.raises(RuntimeError, match="no free ports"):
            PortBlock()
    PortBlock().close()


def test_a_block_with_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    with closing(PortBlock()) as block:
        first = block.first
    only(first, monkeypatch)
    with socket.create_server((ADDRESS, first + 204)), pytest.raises(RuntimeError, match="no free ports"):
        PortBlock()
    PortBlock().close()
