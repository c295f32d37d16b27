"""The process of one measurement: its memory is its own, and its end ends nothing else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rerank_grpc.errors import ConfigurationError, RerankError, describe
from rerank_grpc.recommend.figures import Measured, MeasureTask, Unmeasured

START_SECONDS = 240.0  # within which a process must have loaded its model, and measured it besides
TIMES = 4.0  # the seconds of a measurement that it may take at most
END_SECONDS = 5.0


class MeasuringProcess:
    """A process that measures; `figures` are its last ones."""

    def __init__(self, task: MeasureTask) -> None:
        self.figures: Measured | None = None
        self.failure = ""
        self._limit = START_SECONDS + TIMES * task.seconds
        context: Any = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(theirs, task), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, step: Callable[[Measured], None]) -> None:
        """Waits until it ends, fails or takes too long; `step` hears of each new figure."""
        end = time.monotonic() + self._limit
        while not self.failure and not (self.figures and self.figures.complete):
            if not self._pipe.poll(max(0.0, end - time.monotonic())):
                self.failure = f"it was given up after {self._limit:.0f} s"
                return
            try:
                found = self._pipe.recv()
            except (EOFError, OSError):
                self._process.join(END_SECONDS)
                self.failure = self._ended()
                return
            if isinstance(found, Unmeasured):
                self.failure = found.text
            else:
                self.figures = found
                step(found)

    def _ended(self) -> str:
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"its process was ended by {how}{hint}"

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        if self.failure or not self.figures or not self.figures.complete:
            self._process.terminate()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def work(pipe: Connection, task: MeasureTask) -> None:
    """Runs the process: sends a Measured after each step, or a Unmeasured."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides
    threading.Thread(target=_end_with_parent, args=(task.folder,), daemon=True).start()
    # The parent says in a line why a load failed; without a handler, Python would print the log's too.
    logging.getLogger("rerank_grpc").addHandler(logging.NullHandler())
    try:
        from rerank_grpc.recommend.measuring import measure

        measure(task, pipe.send)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            pipe.send(Unmeasured(describe(error)))
    except (ConfigurationError, RerankError) as error:
        pipe.send(Unmeasured(str(error)))
    except Exception as error:
        pipe.send(Unmeasured(f"it failed: {describe(error)}"))


def _end_with_parent(folder: Path | None) -> None:
    """Ends the process at once when its parent is killed, and removes what the parent would have removed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
