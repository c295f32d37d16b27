"""The scores of one model as they come: a file that is only appended to, which survives any end.

OUTPUT/
  _lock                  held by the process that works here
  MODEL.scores.jsonl     a line that says what is scored by which model; then a line for each query
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.scorers import PairScore
from rerank_grpc.files.obstacles import obstacle

FORMAT = 2
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORDS = {
    "collection": "collection: other judged queries, candidates or texts",
    "format": "form of this file",
}


class ScoredQuery(NamedTuple):
    """A query's line: its candidates' scores in their order, and the times in seconds.

    `wall` is what the query added to the whole run's time; calls at once share it. `call` is from the call to
    its answer; `inference` the model's own part of that.
    """

    query: str
    scores: list[PairScore]
    wall: float
    call: float
    inference: float


class ScoreJournal:
    """The journal of one model in a folder; raises ConfigurationError where it was begun otherwise."""

    def __init__(self, path: Path, begun: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[str, ScoredQuery] = {}
        with told(path):
            end = self._read(begun)
            self._file = path.open("ab", buffering=0)  # to the kernel, which keeps it though this is killed
            if end is None:
                self._file.truncate(0)
                self._write({"format": FORMAT, **begun})
            else:
                self._file.truncate(end)  # the line in whose middle an earlier start was ended
            self._at_start = self._file.seek(0, os.SEEK_END), dict(self.done)

    def _read(self, begun: Mapping[str, Any]) -> int | None:
        """Reads the lines that are whole; returns where they end, None where not even the first one is."""
        if not self.path.exists():
            return None
        end = None
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    if end is None:
                        self._check(value, {"format": FORMAT, **begun})
                    else:
                        scores = [PairScore(*each) for each in value["scores"]]
                        times = value["wall"], value["call"], value["inference"]
                        self.done[value["query"]] = ScoredQuery(value["query"], scores, *times)
                except (ValueError, KeyError, TypeError):
                    if end is None:
                        raise ConfigurationError(
                            f"--output: {self.path} was not written by this command: "
                            "move it, or choose another folder"
                        ) from None
                    break
                end = (end or 0) + len(line)
        return end

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if "format" not in before:
            raise ValueError
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                what = _WORDS.get(name, f"{name} {_short(before.get(name))}")
                is_now = "" if name in _WORDS else f", and now it is {_short(now.get(name))}"
                if name in _WORDS:
                    what = f"another {what}"
                raise ConfigurationError(
                    f"--output: {self.path} was begun with {what}{is_now}: give the same, "
                    "choose another folder, or remove that file to begin anew"
                )

    def append(self, scored: ScoredQuery) -> None:
        """Notes a query's scores; raises ConfigurationError where they cannot be written."""
        with told(self.path, "; the same command goes on from there"):
            self._write({**scored._asdict(), "scores": [list(each) for each in scored.scores]})
        self.done[scored.query] = scored

    def withdraw(self) -> None:
        """Takes back what was noted since this journal was opened."""
        size, self.done = self._at_start
        with told(self.path):
            self._file.truncate(size)

    def _write(self, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Closes the file."""
        with told(self.path):
            self._file.close()


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """Makes a folder, and holds it for this process as long as a `with` statement.

    Raises ConfigurationError where it cannot be written to, or another process works in it.
    """
    with told(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "_lock").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"--output: {path} is in use by another process: wait for its end, or choose another folder"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"--output: {path} cannot be locked ({error.strerror})") from None
        yield path


@contextmanager
def told(path: Path, remark: str = "") -> Iterator[None]:
    """Raises ConfigurationError, which names a file of the output, for an OSError."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else path
        raise ConfigurationError(
            f"--output: {where}: {obstacle(where, error, writing=True)}{remark}"
        ) from None


def stem_of(model: str) -> str:
    """Names a model's files: by its name, or by the end of that and a digest where it is a path or an id."""
    if _PLAIN.fullmatch(model):
        return model
    last = re.sub(r"[^A-Za-z0-9._-]+", "_", model.rstrip("/").rpartition("/")[2])[:80].strip("._-")
    return f"{last or 'model'}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _short(value: object) -> str:
    return repr(value)[:80]
