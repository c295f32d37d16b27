"""One caller's sequences on their way through the engine, and the waiting for their outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as Sequence_
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rerank_grpc.engine.batch import Sequence
from rerank_grpc.errors import DeadlineExceeded, RerankError
from rerank_grpc.types import Priority

# What the runner makes of a sequence: a logit, or a vector  # [hidden] float32
Output: TypeAlias = float | npt.NDArray[np.float32]


class ScoringRequest:
    """The future of one caller's sequences.

    One thread waits in `completed`; the device thread delivers; anybody may
    fail it, from a gRPC callback too, since nothing here takes a lock.

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
    ) -> None:
        self.sequences = sequences
        self.deadline = deadline
        self.priority = priority
        self.outputs: list[Output | None] = [None] * len(sequences)
        prefixes = {sequence.prefix for sequence in sequences if sequence.prefix is not None}
        self.tokens = sum(map(len, sequences)) + sum(sum(map(len, each.chain())) for each in prefixes)
        self.joined = 0
        self.admitted_at = self.started_at = self.finished_at = 0.0
        self.error: RerankError | None = None
        self._missing = len(sequences)
        self._events: SimpleQueue[list[int] | None] = SimpleQueue()

    @property
    def done(self) -> bool:
        """Whether nothing more will come: all outputs are there, or it failed."""
        return self.error is not None or self._missing == 0

    def dead(self, now: float) -> bool:
        """Whether work for it would be wasted: it is done, or its deadline has passed."""
        return self.done or self.deadline <= now

    def deliver(self, outputs: Sequence_[tuple[int, Output]], now: float) -> None:
        """Takes outputs by index and wakes the waiting thread; late ones are ignored."""
        if self.done or not outputs:
            return
        for index, output in outputs:
            self.outputs[index] = output
        self._missing -= len(outputs)
        if self._missing == 0:
            self.finished_at = now
        self._events.put([index for index, _ in outputs])

    def fail(self, error: RerankError) -> None:
        """Ends it with an error and wakes the waiting thread; the first error stays."""
        if not self.done:
            self.error = error
            self._events.put(None)

    def completed(self) -> Iterator[list[int]]:
        """Yields the indices of finished sequences as they come, until all have.

        Raises the error it failed with, or DeadlineExceeded when the deadline
        passes first.
        """
        missing = len(self.sequences)
        while missing:
            try:
                event = self._events.get(timeout=self._patience())
            except Empty:
                self.fail(DeadlineExceeded("the deadline passed before the scores were there"))
                event = None
            if event is None:
                assert self.error is not None
                raise self.error
            missing -= len(event)
            yield event

    def _patience(self) -> float | None:
        return None if self.deadline == math.inf else max(0.0, self.deadline - monotonic())
