"""Thread pools of their own for single methods, so that no busy service can starve a probe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)


class Pool(ThreadPoolExecutor):
    """A thread pool that knows its backlog, and bears that no thread can be started.

    One thread is there from the beginning. A call that comes while the process
    may start no more is queued for the threads that exist; an exception would
    end grpcio's serving thread, and with it the whole server.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self.submit(int).result()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Has a function called on one of the threads."""
        try:
            return super().submit(function, *args, **kwargs)
        except RuntimeError as error:
            if "new thread" not in str(error):
                raise
            log.error("no thread can be started: calls wait for those there are", extra={"kind": "no thread"})
            done: Future[Any] = Future()  # what it stands for has been queued before the thread was to start
            done.set_result(None)
            return done

    @property
    def backlog(self) -> int:
        """How many calls wait for a thread."""
        return self._work_queue.qsize()


def on_pool(handler: Callable[..., Any], pool: ThreadPoolExecutor) -> Any:
    """Has grpcio run a handler on `pool`, which it reads from an attribute of the function.

    The function must be one server's own, and not a servicer's method.
    """
    handler.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return handler
