"""How much memory a device's models take, and giving it back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
RESIDENT = 1  # the field of statm: pages that are resident

HOST = torch.device("cpu")
# The C library keeps what large messages took; beyond this it is given back, and no sooner than that.
MOST_KEPT_BYTES = 64 << 20
TRIM_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 640.0


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


class Trimmer:
    """Tells when this process has grown so much that memory should be given back; times are arguments.

    Growth counts from the least that was in use after any trim. Where a trim
    frees little, the memory is needed, and the next one comes after twice the time.
    """

    def __init__(self, used_bytes: Callable[[], int] = lambda: used(HOST)) -> None:
        self._used_bytes = used_bytes
        self._least = used_bytes()
        self._pause = TRIM_SECONDS
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether the process has grown by MOST_KEPT_BYTES; looks now and then."""
        if now < self._next:
            return False
        self._next = now + self._pause
        return self._used_bytes() > self._least + MOST_KEPT_BYTES

    def trim(self) -> None:
        """Gives back what is free."""
        before = self._used_bytes()
        give_back(HOST)
        after = self._used_bytes()
        self._least = min(self._least, after)
        freed_much = before - after > MOST_KEPT_BYTES
        self._pause = TRIM_SECONDS if freed_much else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
