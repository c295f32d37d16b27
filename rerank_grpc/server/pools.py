"""Thread pools of their own for single methods, so that no busy service can starve a probe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def on_pool(behaviour: Callable[..., Any], pool: ThreadPoolExecutor, *, non_blocking: bool = False) -> Any:
    """Wraps a handler so that grpcio runs it on `pool`; `non_blocking` for one that takes a send callback.

    grpcio reads both from attributes of the handler. They are set on a wrapper
    made for one server, not on the servicer's class, which all servers of the
    process share.
    """

    @functools.wraps(behaviour)
    def run(*args: Any) -> Any:
        return behaviour(*args)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]
    run.experimental_non_blocking = non_blocking  # type: ignore[attr-defined]
    return run
