"""An event loop that wakes when it is time, and not up to a millisecond later."""

from __future__ import annotations

import asyncio
import select
import selectors


def precise_loop() -> asyncio.AbstractEventLoop:
    """Makes the loop; epoll alone rounds up to milliseconds, so other systems have their usual one."""
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class Precise(selectors.EpollSelector):
        """Waits by select on epoll's own descriptor, and asks epoll only for what is there."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Returns what is ready, at the latest after `timeout` seconds."""
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(Precise())
