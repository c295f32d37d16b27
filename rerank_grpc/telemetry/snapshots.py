"""The state of models, devices and the release at one moment, for a scrape."""

from __future__ import annotations

from typing import NamedTuple

from rerank_grpc.types import State


class ModelSnapshot(NamedTuple):
    """One configured model, and its queue."""

    name: str
    state: State
    load_seconds: float  # of the last load, 0 before the first
    memory_bytes: int  # 0 while it is not in memory
    last_used: float | None  # as Unix time
    evictions: int  # times that it left memory without being told to
    calls_inside: int
    queued_tokens: int
    queued_seconds: float  # the device's time for these tokens, 0 where its rate is not known
    capacity_tokens: int
    oldest_seconds: float  # the age of the oldest call in the queue, 0 without one
    busy_seconds: float  # of the device, for all engines that the model has had


class DeviceSnapshot(NamedTuple):
    """The memory of a device, in bytes, for all processes."""

    device: str  # as torch names it, such as "cuda:0" or "cpu"
    used_bytes: int
    free_bytes: int


class BuildSnapshot(NamedTuple):
    """The release, and what the default model runs on; "" for what is not known yet."""

    version: str
    torch: str = ""
    device: str = ""
    precision: str = ""
