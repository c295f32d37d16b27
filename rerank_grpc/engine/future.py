"""The outputs of one call's sequences, which are still to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence_
from queue import Empty, SimpleQueue
from time import monotonic

from rerank_grpc.callers import ANYONE, Caller
from rerank_grpc.errors import Cancelled, DeadlineExceeded, RerankError
from rerank_grpc.sequence import Output, Sequence, count_tokens
from rerank_grpc.types import Priority


class Future:
    """The outputs of one call's sequences, None until they are there.

    One thread waits; the device thread delivers; any thread may fail it, from a gRPC callback too, since
    nothing here takes a lock.
    """

    def __init__(
        self,
        sequences: Sequence_[Sequence],
        *,
        deadline: float = math.inf,
        priority: Priority = Priority.INTERACTIVE,
        caller: Caller = ANYONE,
        stepwise: bool = False,
    ) -> None:
        self.sequences = sequences
        self.deadline = deadline  # in the seconds of time.monotonic; math.inf for none
        self.priority = priority
        self.caller = caller
        self.outputs: list[Output | None] = [None] * len(sequences)
        self.tokens = count_tokens(sequences)  # equal ones included; a prefix counts once
        self.batches: list[object] = []  # what the batch sink has returned for those with a sequence of it
        self.shared = 0  # sequences that cost nothing, because an equal one was there
        self.admitted_at = self.started_at = self.finished_at = 0.0  # by time.monotonic; 0 until then
        self.done = not sequences  # all outputs are there, or it failed
        self.error: RerankError | None = None
        self._stepwise = stepwise
        self._missing = len(sequences)
        self._events: SimpleQueue[list[int] | None] = SimpleQueue()
        self._callbacks: list[Callable[[], None]] = []

    def on_done(self, callback: Callable[[], None]) -> None:
        """Has a function called once, on the thread that ends the future, before the waiting one wakes.

        A future that is done calls it at once. It must neither wait nor raise.
        """
        self._callbacks.append(callback)
        if self.done:
            self._end()

    def _end(self) -> None:
        # Popping is atomic: of two threads that end a future at one moment, one runs the callback. None
        # is missed: it is appended before `done` is read, and `done` turns true before this pops.
        self.done = True
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback()

    def deliver(self, outputs: Sequence_[tuple[int, Output]], now: float) -> None:
        """Takes outputs by index, and wakes the thread that waits for them; late ones are ignored."""
        if self.done or not outputs:
            return
        for index, output in outputs:
            self.outputs[index] = output
        self._missing -= len(outputs)
        if self._missing == 0:
            self.finished_at = now
            self._end()
        if self._stepwise:
            self._events.put([index for index, _ in outputs])
        elif self._missing == 0:
            self._events.put(list(range(len(self.sequences))))

    def fail(self, error: RerankError) -> None:
        """Ends it with an error and wakes the waiting thread; the first error stays."""
        if not self.done:
            self.error = error
            self._end()
            self._events.put(None)

    def cancel(self) -> None:
        """Ends it because its caller has left; harmless once it is done."""
        if not self.done:
            self.fail(Cancelled("the caller cancelled"))

    def completed(self) -> Iterator[list[int]]:
        """Yields what `wait` returns until all outputs are there; raises like it."""
        missing = len(self.sequences)
        while missing:
            finished = self.wait()
            missing -= len(finished)
            yield finished

    def wait(self) -> list[int]:
        """Waits for all outputs, or with `stepwise` for the next ones, and returns their indices.

        Raises the error it failed with, or DeadlineExceeded past the deadline.
        """
        if not self.sequences:
            return []
        try:
            limit = None if self.deadline == math.inf else max(0.0, self.deadline - monotonic())
            event = self._events.get(timeout=limit)
        except Empty:
            self.fail(DeadlineExceeded("the deadline passed before the scores were there"))
            event = self._events.get()  # of this failure, or of outputs that came at this moment
        if event is None:
            assert self.error is not None
            # Many calls may raise it, and none may keep another's frames.
            raise self.error.with_traceback(None)
        return event
