"""Which CPUs a thread may use.

The threads that answer calls take turns at Python's lock anyway. Spread over
CPUs, each turn ends in waking another CPU, and in a virtual machine that takes
longer than the turn; on one CPU the next thread just goes on, and finds warm
caches. So they can be bound to one, and what computes is left to all: ADR 016.
A thread begins where the one that started it is bound.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from rerank_grpc.errors import ConfigurationError

log = logging.getLogger(__name__)

CpuChoice: TypeAlias = int | Literal["auto"] | None

_BINDS = hasattr(os, "sched_setaffinity")
_ALL = frozenset(os.sched_getaffinity(0)) if _BINDS else frozenset[int]()


class OneCpu:
    """A CPU to bind threads to; `number` is None where they may use all.

    "auto" draws one of those this process may use, so that several servers on
    one machine spread. Raises ConfigurationError for a CPU it may not use.
    """

    def __init__(self, choice: CpuChoice) -> None:
        self.number: int | None = None
        if choice == "auto":
            self.number = random.choice(sorted(_ALL)) if len(_ALL) > 1 else None
        elif choice is not None:
            if choice not in _ALL:
                usable = ", ".join(map(str, sorted(_ALL))) or "none, on this system"
                raise ConfigurationError(
                    f"--call-cpu: CPU {choice} is not one that this process may use ({usable})"
                )
            self.number = choice

    def bind(self) -> None:
        """Binds the calling thread."""
        if self.number is not None:
            _bind({self.number})

    @contextmanager
    def binding(self) -> Iterator[None]:
        """Binds the threads that are started in a `with` statement, and not the one that starts them."""
        before = os.sched_getaffinity(0) if self.number is not None else set()
        self.bind()
        try:
            yield
        finally:
            if before:
                _bind(before)


def use_all() -> None:
    """Frees the calling thread, which one that is bound may have started."""
    if _BINDS:
        _bind(set(_ALL))


def _bind(cpus: set[int]) -> None:
    """Binds the calling thread; where that is forbidden, or the CPU has gone, it stays as it is."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        log.warning("cannot bind a thread to CPUs %s: %s", sorted(cpus), error.strerror)
