"""One caller's sequences on their way through the engine, and the waiting for their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence_
from queue import Empty, SimpleQueue
from time import monotonic

from rerank_grpc.errors import Cancelled, DeadlineExceeded, RerankError
from rerank_grpc.sequence import TOKEN_BYTES, Output, Sequence
from rerank_grpc.types import Priority


class Future:
    """The future of one caller's sequences.

    One thread waits, in `wait` or, with `stepwise`, in `completed`; the device
    thread delivers; anybody may fail it, from a gRPC callback too, since nothing
    here takes a lock.

    Attributes:
        sequences: what to run, in the order of preference.
        outputs: the output of each sequence, None until it is there.
        deadline: in the seconds of time.monotonic; math.inf for none.
        priority: its class in the scheduler.
        tokens: of all sequences, before identical ones are joined; a prefix counts once.
        joined: sequences that cost nothing, because an equal one was there.
        admitted_at, started_at, finished_at: monotonic seconds; 0 until then.
        error: why it failed, once it has.
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
        prefixes = {sequence.prefix for sequence in sequences}
        prefixes.discard(None)
        own = sum([len(sequence.ids) for sequence in sequences]) // TOKEN_BYTES
        self.tokens = own + sum(len(part) for prefix in prefixes if prefix for part in prefix.chain())
        self.joined = 0
        self.admitted_at = self.started_at = self.finished_at = 0.0
        self.error: RerankError | None = None
        self._stepwise = stepwise
        self._missing = len(sequences)
        self._events: SimpleQueue[list[int] | None] = SimpleQueue()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether nothing more will come: all outputs are there, or it failed."""
        return self.error is not None or self._missing == 0

    def late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline <= now

    def on_done(self, callback: Callable[[], None]) -> None:
        """Has a function called once, on the thread that ends the request, before the waiting one wakes.

        It is called at once if the request is done already. It must neither wait nor raise.
        """
        self._callbacks.append(callback)
        if self.done:
            self._call_back()

    def _call_back(self) -> None:
        # Popping is atomic, so of two threads that end a request at one moment, each callback is run by
        # one. None is missed: it is appended before `done` is read, and `done` turns true before this pops.
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback()

    def deliver(self, outputs: Sequence_[tuple[int, Output]], now: float) -> None:
        """Takes outputs by index, and wakes the waiting thread if it wants them; late ones are ignored."""
        if self.done or not outputs:
            return
        for index, output in outputs:
            self.outputs[index] = output
        self._missing -= len(outputs)
        if self._missing == 0:
            self.finished_at = now
            self._call_back()
        if self._stepwise:
            self._events.put([index for index, _ in outputs])
        elif self._missing == 0:
            self._events.put([])

    def fail(self, error: RerankError) -> None:
        """Ends it with an error and wakes the waiting thread; the first error stays."""
        if not self.done:
            self.error = error
            self._call_back()
            self._events.put(None)

    def cancel(self) -> None:
        """Ends it because its caller has left; nothing happens if it is done."""
        if not self.done:
            self.fail(Cancelled("the caller cancelled"))

    def wait(self) -> None:
        """Waits for all outputs.

        Raises the error it failed with, or DeadlineExceeded when the deadline
        passes first.
        """
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
            event = self._events.get(timeout=self._patience())
        except Empty:
            self.fail(DeadlineExceeded("the deadline passed before the scores were there"))
            event = self._events.get()  # of this failure, or of what came in at this very moment
        if event is None:
            assert self.error is not None
            raise self.error.with_traceback(None)  # many may raise it, and none should keep another's frames
        return event

    def _patience(self) -> float | None:
        return None if self.deadline == math.inf else max(0.0, self.deadline - monotonic())
