"""Measures candidates one after the other; estimates the too large, and those for which no time is left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from time import monotonic

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.recommend.candidates import ModelCandidate
from rerank_grpc.recommend.checkpoints import layers_work, write_checkpoint
from rerank_grpc.recommend.figures import Latency, Measured, MeasureTask
from rerank_grpc.recommend.process import MeasuringProcess
from rerank_grpc.recommend.room import Room, room_for

PATIENCE = 3.0  # times the time of a measurement may one call take by the estimate
PREFIX = "rerank-grpc-recommend-"  # of the folders of random weights


class Basis(Enum):
    """The ground of a row's figures."""

    OWN = "own weights"
    RANDOM = "random weights"
    SAME_SHAPE = "same shape"
    ESTIMATE = "estimate"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SurveyOptions:
    """How each model is measured, and for how long all of them together."""

    candidates: tuple[int, ...] = (20, 50, 100)
    tokens: int = 128
    seconds: float = 10.0  # for each model, without its load
    total_seconds: float = 360.0


@dataclass(frozen=True, slots=True)
class SurveyRow:
    """A candidate with what was found; `reference` is the model that the figures were taken from."""

    candidate: ModelCandidate
    basis: Basis
    figures: Measured | None = None
    room: Room | None = None
    reference: str = ""
    problem: str = ""


class Survey:
    """Measures candidates in their order; `rows` has those that are done, also when it is stopped.

    `watch` hears of each step of a candidate, as a text.
    """

    def __init__(self, settings: ServerSettings, options: SurveyOptions) -> None:
        self.rows: list[SurveyRow] = []
        self.watch: Callable[[str], None] = lambda _: None
        self._settings, self.options = settings, options
        self.stopped_by = 0  # the number of the signal
        self._waits = False
        self._end = monotonic() + options.total_seconds

    def stop(self, number: int, *_: object) -> None:
        """Handles a signal: raises KeyboardInterrupt where a process is waited for, or at the second signal.

        Anywhere else the next step raises it: files that are half removed would stay.
        """
        again = self.stopped_by
        self.stopped_by = again or number
        if self._waits or again:
            raise KeyboardInterrupt

    def _check_stopped(self) -> None:
        if self.stopped_by:
            raise KeyboardInterrupt

    def add(self, candidate: ModelCandidate) -> SurveyRow:
        """Measures a candidate, or says why not; what it cannot do is a row too."""
        self._check_stopped()
        self.watch("preparing")
        try:
            row = self._own(candidate) if candidate.directory else self._by_shape(candidate)
        except ConfigurationError as error:
            row = SurveyRow(candidate, Basis.NONE, problem=str(error))
        self.rows.append(row)
        return row

    def _own(self, candidate: ModelCandidate) -> SurveyRow:
        assert candidate.directory is not None
        # By its name, as `serve` finds it: the catalogue's prompt belongs to the name, not to the folder.
        source, longest = candidate.name, candidate.known.max_tokens
        room = room_for(source, candidate.directory, longest, self._settings)
        if room.problem:
            return SurveyRow(candidate, Basis.NONE, room=room, problem=room.problem)
        if monotonic() > self._end:
            return self._estimated(candidate, room, "")
        return self._measured(candidate, source, room, self._settings, Basis.OWN)

    def _by_shape(self, candidate: ModelCandidate) -> SurveyRow:
        if not candidate.known.shape:
            raise ConfigurationError("it is not on this machine, and the catalogue has no shape of it")
        with _folder() as folder:
            directory = write_checkpoint(candidate.known, folder, sparse=True)
            room = room_for(str(directory), directory, candidate.known.max_tokens, self._settings)
        if same := self._of_same_shape(candidate, room):
            return same
        if room.problem or monotonic() > self._end or self._is_too_slow(candidate, room):
            return self._estimated(candidate, room, room.problem)
        with _folder() as folder:
            self.watch("writing random weights")
            directory = write_checkpoint(candidate.known, folder)
            settings = replace(self._settings, catalogue=folder / "catalogue.toml")
            return self._measured(candidate, str(directory), room, settings, Basis.RANDOM, folder)

    def _measured(
        self,
        candidate: ModelCandidate,
        source: str,
        room: Room,
        settings: ServerSettings,
        basis: Basis,
        folder: Path | None = None,
    ) -> SurveyRow:
        options = self.options
        self.watch("loading")
        task = MeasureTask(source, settings, options.candidates, options.tokens, options.seconds, folder)
        process = MeasuringProcess(task)
        try:
            self._waits = True
            self._check_stopped()
            process.run(lambda figures: self.watch(f"{len(figures.latencies) + 1} of {_steps(options)}"))
        finally:
            self._waits = False
            process.close()
        if process.failure:
            return SurveyRow(candidate, Basis.NONE, process.figures, room, problem=process.failure)
        return SurveyRow(candidate, basis, process.figures, room)

    # ---------------- What is not measured itself

    def _references(self) -> Iterator[tuple[SurveyRow, Measured, Room]]:
        for row in self.rows:
            if row.basis in (Basis.OWN, Basis.RANDOM) and row.figures and row.room:
                yield row, row.figures, row.room

    def _of_same_shape(self, candidate: ModelCandidate, room: Room) -> SurveyRow | None:
        """Takes the figures of a model of the same layers; the memory differs by the weights."""
        for row, figures, own in self._references():
            if row.candidate.shape_key == candidate.shape_key and own.precision == room.precision:
                resident = figures.resident + room.need.weights - own.need.weights
                shared = replace(figures, resident=max(0, resident), max_tokens=candidate.known.max_tokens)
                return SurveyRow(candidate, Basis.SAME_SHAPE, shared, room, row.candidate.name, room.problem)
        return None

    def _estimated(self, candidate: ModelCandidate, room: Room, problem: str) -> SurveyRow:
        """Scales the figures of the nearest measured model by the weights that each token meets in layers."""
        found = self._nearest(candidate, room.precision)
        if found is None:
            problem = problem or "no time was left, and no model that it could be compared with was measured"
            return SurveyRow(candidate, Basis.NONE, room=room, problem=problem)
        reference, figures, times = found
        estimate = Measured(
            precision=room.precision,
            device=room.device,
            attention="",
            max_tokens=candidate.known.max_tokens,
            load_seconds=0.0,
            tokens_per_document=figures.tokens_per_document,
            documents_per_second=figures.documents_per_second / times,
            latencies=tuple(
                Latency(each.candidates, 0, each.p50 * times, each.p95 * times) for each in figures.latencies
            ),
            resident=room.need.rest + room.need.work,
        )
        return SurveyRow(candidate, Basis.ESTIMATE, estimate, room, reference, problem)

    def _nearest(self, candidate: ModelCandidate, precision: str) -> tuple[str, Measured, float] | None:
        """Finds the measured model nearest in work, of the same family if possible, and the ratio of work."""
        work = layers_work(candidate.known)
        ranked = []
        for row, figures, _ in self._references():
            other = layers_work(row.candidate.known)
            if work and other and figures.precision == precision:
                strange = row.candidate.known.family != candidate.known.family
                ranked.append(
                    (strange, max(work / other, other / work), row.candidate.name, figures, work / other)
                )
        if not ranked:
            return None
        *_, name, figures, times = min(ranked, key=lambda each: each[:2])
        return name, figures, times

    def _is_too_slow(self, candidate: ModelCandidate, room: Room) -> bool:
        """Whether its smallest call would take several times the time that its measurement may."""
        found = self._nearest(candidate, room.precision)
        if found is None:
            return False
        _, figures, times = found
        return min(each.p50 for each in figures.latencies) * times > PATIENCE * self.options.seconds


def _steps(options: SurveyOptions) -> int:
    return len(options.candidates) + 1


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        yield Path(name)
