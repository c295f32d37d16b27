"""How many files and sockets this process may have open, and how many of them connections may take."""

from __future__ import annotations

import contextlib

# Where a system sets no limit, or has none.
UNLIMITED = 65_536


def raise_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns the limit that holds then."""
    try:
        import resource
    except ImportError:  # Windows
        return UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, UNLIMITED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def connections(most: int) -> int:
    """How many connections one port may hold: a third of the open files, so that two ports leave some."""
    return max(1, min(most, raise_limit() // 3))
