"""The outputs of one call's sequences, which are still to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence_
from queue import Empty, SimpleQueue
from time import monotonic

from rerank_grpc.errors import Cancelled, DeadlineExceeded, RerankError
from rerank_grpc.sequence import Output, Sequence, count_tokens
from rerank_grpc.types import Priority


class Future:
    """The outputs of one call's sequences.

    One thread waits, in `wait` or, with `stepwise`, in `completed`; the device
    thread delivers; any thread may fail it, from a gRPC callback too, since
    nothing here takes a lock.

    Attributes:
        sequences: the sequences to run, in the order of preference.
        outputs: the output of each sequence, None until it is there.
        deadline: in the seconds of time.monotonic; math.inf for none.
        priority: its class in the scheduler.
        tokens: those of all sequences, equal ones included; a prefix counts once.
        shared: the number of sequences that cost nothing, because an equal one was there.
        admitted_at, started_at, finished_at: monotonic seconds; 0 until then.
        done: whether nothing more will come: all outputs are there, or it failed.
        error: the reason of the failure, if it failed.
    """

    def __init__(
        self,
        sequences: Sequence_[Sequence],
        *,
        deadline: float = math.inf,
        priority: Priority = Priority.INTERACTIVE,
        stepwise: bool = False,
    ) -> None:
        self.sequences = sequences
        self.deadline = deadline
        self.priority = priority
        self.outputs: list[Output | None] = [None] * len(sequences)
        self.tokens = count_tokens(sequences)
        self.shared = 0
        self.admitted_at = self.started_at = self.finished_at = 0.0
        self.done = not sequences
        self.error: RerankError | None = None
        self._stepwise = stepwise
        self._missing = len(sequences)
        self._events: SimpleQueue[list[int] | None] = SimpleQueue()
        self._callbacks: list[Callable[[], None]] = []

    def on_done(self, callback: Callable[[], None]) -> None:
        """Has a function called once, on the thread that ends the request, before the waiting one wakes.

        A request that is done calls it at once. The function must neither wait nor raise.
        """
        self._callbacks.append(callback)
        if self.done:
            self._end()

    def _end(self) -> None:
        # Popping is atomic: of two threads that end a request at one moment, one runs the callback. None
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
            self._events.put([])

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

    def wait(self) -> None:
        """Waits for all outputs; raises the error it failed with, or DeadlineExceeded past the deadline."""
        if self.sequences:
            self._next_event()

    def completed(self) -> Iterator[list[int]]:
        """Yields the indices of finished sequences as they come, or all at once; raises like `wait`."""
        if not self._stepwise:
            self.wait()
            yield list(range(len(self.sequences)))
            return
        missing = len(self.sequences)
        while missing:
            finished = self._next_event()
            missing -= len(finished)
            yield finished

    def _next_event(self) -> list[int]:
        try:
            limit = None if self.deadline == math.inf else max(0.0, self.deadline - monotonic())
            event = self._events.get(timeout=limit)
        except Empty:
            self.fail(DeadlineExceeded("the deadline passed before the scores were there"))
            event = self._events.get()  # of this failure, or of outputs that came at this moment
        if event is None:
            assert self.error is not None
            raise self.error.with_traceback(
                None
            )  # many calls may raise it, and none may keep another's frames
        return event
