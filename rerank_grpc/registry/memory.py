"""How much memory a device's models take, and giving it back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
RESIDENT = 1  # the field of statm: pages that are resident


def used(device: torch.device) -> int:
    """Bytes that this process has in use: torch's on a GPU, else the resident set (0 where unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        return int(STATM.read_text().split()[RESIDENT]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back(device: torch.device) -> None:
    """Returns what is free to the system, so that other processes, and the next measurement, see it.

    glibc keeps freed memory for itself unless told; other C libraries have no
    such call, and return large blocks by themselves. No garbage is collected:
    a model is in no cycle, and with torch loaded that would stop every thread
    for half a second.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
