"""The limit of the process's open files and sockets, and the share of it that connections may take."""

from __future__ import annotations

import contextlib
import resource

UNLIMITED = 65_536  # the most that is asked for, and the assumption where a system sets no limit


def raise_limit() -> None:
    """Raises the process's limit as far as the process itself may; for a command."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, UNLIMITED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Returns how many files the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else int(soft)


def connections(most: int) -> int:
    """Returns how many connections a port may hold: a quarter of the open files, as there are three ports."""
    return max(1, min(most, limit() // 4))
