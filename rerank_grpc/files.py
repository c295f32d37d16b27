"""How many files and sockets this process may have open, and how many of them connections may take."""

from __future__ import annotations

import contextlib
import resource

# As many as are ever asked for, and what is assumed where a system sets no limit.
UNLIMITED = 65_536


def raise_limit() -> None:
    """Raises the limit that the process was started with to the one that it may set itself; for a command."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, UNLIMITED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else int(soft)


def connections(most: int) -> int:
    """How many connections one port may hold: a quarter of the open files, so that three ports leave some."""
    return max(1, min(most, limit() // 4))
