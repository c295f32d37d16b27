"""Thread pools of their own for single methods, so that no busy service can starve a probe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Pool(ThreadPoolExecutor):
    """A thread pool that knows whether it has anything to do."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._unfinished: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Has a function called on one of the threads."""
        future = super().submit(function, *args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    @property
    def idle(self) -> bool:
        """Whether all that was submitted has been done."""
        return not self._unfinished


def on_pool(behaviour: Callable[..., Any], pool: ThreadPoolExecutor) -> Any:
    """Wraps a handler so that grpcio runs it on `pool`.

    grpcio reads that from an attribute of the handler. It is set on a wrapper
    made for one server, not on the servicer's class, which all servers of the
    process share.
    """

    @functools.wraps(behaviour)
    def run(*args: Any) -> Any:
        return behaviour(*args)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return run
