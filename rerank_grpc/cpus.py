"""Which CPUs a thread may use; Linux only, elsewhere nothing is bound.

The threads that answer calls take turns at Python's lock anyway. Spread over
CPUs, each turn ends in waking another CPU, and in a virtual machine that takes
longer than the turn; on one CPU the next thread just goes on, and finds warm
caches. So they can be bound to one, and what computes is left to all: ADR 016.
What computes waits there, too, because those who wake it are there. A thread
begins where the one that started it is bound.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias, TypeVar

from rerank_grpc.errors import ConfigurationError

log = logging.getLogger(__name__)

CpuChoice: TypeAlias = int | Literal["auto"] | None
Made = TypeVar("Made")

# "auto" binds nothing where there are more: what a bound thread takes from one member of a large
# OpenMP team holds up all others, and that was not measured.
AUTO_MOST = 4

_BINDS = hasattr(os, "sched_setaffinity")


class OneCpu:
    """A CPU to bind threads to; `number` is None where they may use all.

    "auto" draws one of those this process may use, so that several servers on
    one machine spread. Raises ConfigurationError for a CPU it may not use.
    """

    def __init__(self, choice: CpuChoice) -> None:
        self.number: int | None = None
        if choice is None:
            return
        allowed = sorted(os.sched_getaffinity(0)) if _BINDS else []
        if choice == "auto":
            if 2 <= len(allowed) <= AUTO_MOST:
                # Not the generator that a program may seed alike in all its processes.
                self.number = secrets.choice(allowed)
        elif choice in allowed:
            self.number = choice
        else:
            usable = ", ".join(map(str, allowed)) or "none, on this system"
            raise ConfigurationError(
                f"--call-cpu: CPU {choice} is not one that this process may use ({usable})"
            )

    def run(self, function: Callable[[], Made]) -> Made:
        """Calls a function whose threads are to be bound, and returns or raises what it does.

        It runs on a short-lived thread that is bound for it, not on the calling
        one: Linux would remember which CPUs that was freed to, and keep it and all
        that it starts to them when the process is given more.
        """
        if self.number is None:
            return function()
        with ThreadPoolExecutor(1, initializer=self.bind) as bound:
            made: Future[Made] = bound.submit(function)
            return made.result()

    def bind(self) -> bool:
        """Binds the calling thread; False if it stays as it is.

        Where that fails, because it is forbidden or the CPU has gone, it is not tried again.
        """
        number = self.number  # another thread may find meanwhile that it has gone
        if number is None:
            return False
        bound = _bind({number})
        if not bound:
            self.number = None
        return bound


def count() -> int:
    """The number of CPUs that this process may use: those of its main thread, which is never bound."""
    return len(os.sched_getaffinity(os.getpid())) if _BINDS else os.cpu_count() or 1


def use_those_of(thread: threading.Thread) -> bool:
    """Lets the calling thread use the CPUs of another one; False if it stays as it is."""
    if not _BINDS or thread.native_id is None:
        return False
    try:
        cpus = os.sched_getaffinity(thread.native_id)
    except OSError:  # it has ended, or nobody may ask
        return False
    return cpus == os.sched_getaffinity(0) or _bind(cpus)


def _bind(cpus: set[int]) -> bool:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        log.warning("cannot bind a thread to CPUs %s: %s", sorted(cpus), error.strerror)
        return False
    return True
