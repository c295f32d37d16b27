"""An unfinished output: a folder of parts, and a journal of those that are complete; it survives any end.

OUT.partial/
  _begun.json       what it was begun with; another start must agree
  _journal.jsonl    a line for each complete block, written after its part
  part-0000000.…    a block's rows, renamed into place when whole
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rerank_grpc import __version__
from rerank_grpc.batch.rows import BadRow
from rerank_grpc.errors import ConfigurationError

FORMAT = 1  # of the folder
# Readers of a folder of parts leave out names that begin with an underscore.
LOCK, BEGUN, JOURNAL = "_lock", "_begun.json", "_journal.jsonl"
PART = "part-"
STAGED = "_block-"  # begins the names of blocks that wait for a cluster


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a loaded model on which scores depend to the last digit, and the number of GPUs."""

    source: str
    revision: str
    precision: str
    device: str  # cpu or cuda
    threads: int  # on a CPU, else 0
    max_batch_tokens: int
    accepts_instruction: bool
    gpus: int
    version: str = __version__  # of this package, where the model is

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The facts that must be the same when an unfinished output goes on."""
        names = ("source", "revision", "precision", "device", "threads")
        return {name: getattr(self, name) for name in names}

    def check_same(self, other: Facts, where: str) -> None:
        """Raises ConfigurationError if another worker's model, or its package, would give other scores."""
        for name, own in {"version": self.version, **self.fingerprint}.items():
            if (found := getattr(other, name, None)) != own:
                raise ConfigurationError(
                    f"{where} has the {name} {found!r}, and the first one has {own!r}: "
                    "all must have the same version of rerank-grpc and the same model"
                )


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete block: digest of its rows, size of its part, its counts, place of its journal line."""

    digest: str
    size: int
    rows: int
    pairs: int
    bad: int
    place: int


@dataclass(slots=True)
class Journal:
    """The folder of one output, which this process alone writes to."""

    folder: Path
    suffix: str  # of its parts, such as ".jsonl"
    entries: dict[int, Entry] = field(default_factory=dict)
    begun: dict[str, Any] | None = None
    _file: BinaryIO | None = None
    _lock: BinaryIO | None = None

    @classmethod
    def open(cls, folder: Path, suffix: str) -> Journal:
        """Opens an output's folder or makes it; raises ConfigurationError where another process has it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("ab")
        except OSError as error:
            raise ConfigurationError(f"--output: {folder}: {error.strerror or error}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(folder / LOCK)  # its holder until now may have removed it
        except OSError as error:
            lock.close()
            used = isinstance(error, (BlockingIOError, FileNotFoundError))
            raise ConfigurationError(
                f"--output: {folder} is in use by another process: wait for its end"
                if used
                else f"--output: {folder} cannot be locked ({error.strerror}): choose a place on another disk"
            ) from None
        journal = cls(folder, suffix, _lock=lock)
        try:
            journal._read()
        except OSError as error:
            journal.close()
            raise ConfigurationError(f"--output: {error.filename or folder}: {error.strerror}") from None
        return journal

    def begin(self, begun: Mapping[str, Any]) -> None:
        """Notes what the output is begun with; what an earlier start left without such a note goes."""
        found = [path for path in self.folder.iterdir() if path.name != LOCK]
        for path in found:
            if not path.name.startswith((BEGUN, JOURNAL, STAGED, PART)):
                raise ConfigurationError(
                    f"--output: {path} was not made by this command, and its folder would be used up: "
                    "move it, or choose another name"
                )
        for path in found:
            path.unlink()
        self.begun = dict(begun)
        with whole(self.folder / BEGUN) as file:
            file.write(_json(self.begun))

    def check(self, part: str, found: Mapping[str, Any]) -> None:
        """Raises ConfigurationError unless a part of what it was begun with is the same now."""
        before = (self.begun or {}).get(part, {})
        for name in {**before, **found}:
            if before.get(name) != found.get(name):
                raise ConfigurationError(differs(self.folder, part, name, before.get(name), found.get(name)))

    def append(self) -> None:
        """Opens the journal for blocks to come."""
        self._file = (self.folder / JOURNAL).open("ab")

    def part(self, number: int) -> Path:
        """Names the file of a block's rows."""
        return self.folder / f"{PART}{number:07d}{self.suffix}"

    def complete(self, number: int, entry: Entry, content: bytes, bad: list[BadRow]) -> None:
        """Writes a block's part, then its line in the journal: with that, the block is complete."""
        assert self._file is not None
        if content:
            with whole(self.part(number)) as file:
                file.write(content)
        line = _json(
            {
                "block": number,
                "digest": entry.digest,
                "size": len(content),
                "rows": entry.rows,
                "pairs": entry.pairs,
                "bad": [tuple(each) for each in bad],
            }
        )
        place = self._file.tell()
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries[number] = Entry(entry.digest, len(content), entry.rows, entry.pairs, len(bad), place)

    def bad_rows(self) -> Iterator[BadRow]:
        """Yields all bad rows in the input's order; they are read from the journal one block at a time."""
        with (self.folder / JOURNAL).open("rb") as file:
            for _, entry in sorted(self.entries.items()):
                if entry.bad:
                    file.seek(entry.place)
                    for each in json.loads(file.readline())["bad"]:
                        yield BadRow(*each)

    def parts(self) -> Iterator[Path]:
        """Yields the parts that hold rows, in the input's order."""
        for number, entry in sorted(self.entries.items()):
            if entry.size:
                yield self.part(number)

    def close(self) -> None:
        """Lets another process have the folder."""
        if self.begun is None and self._lock is not None and not self._lock.closed:
            with suppress(OSError):  # a start that failed leaves no folder, unless something is in it
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        for file in (self._file, self._lock):
            if file is not None:
                file.close()

    def remove(self) -> None:
        """Removes the folder of an output that is finished."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, path: Path) -> None:
        """Makes the folder itself the output, at one moment; its notes go after that."""
        self.close()
        os.replace(self.folder, path)
        remove_notes(path)

    def _read(self) -> None:
        try:
            self.begun = json.loads((self.folder / BEGUN).read_bytes())
        except (FileNotFoundError, ValueError):
            return
        path = self.folder / JOURNAL
        if not path.exists():
            return
        end = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n") or not self._take(line, end):
                    break
                end += len(line)
            file.truncate(end)  # the last line of a start that was ended in the middle of it
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()

    def _take(self, line: bytes, place: int) -> bool:
        """Reads a line of the journal; a block whose part is not whole is scored again."""
        try:
            found = json.loads(line)
            number = found["block"]
            entry = Entry(
                found["digest"], found["size"], found["rows"], found["pairs"], len(found["bad"]), place
            )
        except (ValueError, KeyError, TypeError):
            return False
        part = self.part(number)
        if not entry.size or (part.exists() and part.stat().st_size == entry.size):
            self.entries[number] = entry
        return True


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write to, which takes its name once it is written to the disk.

    Unlike files.whole it outlasts a loss of power, on which a journal's lines rely, and writes no content at
    once: outputs are larger than memory.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def remove_notes(folder: Path) -> None:
    """Removes all but the parts of a finished folder, and what is said about them."""
    for path in (folder / LOCK, folder / BEGUN, folder / JOURNAL, *folder.glob(f"{STAGED}*")):
        path.unlink(missing_ok=True)


def differs(folder: Path, part: str, name: str, before: object, now: object) -> str:
    """Says that an unfinished output was begun with something else."""
    if part == "input":
        return (
            f"--input: {folder} was begun with another file: "
            f"give that one, or remove {folder.name} to begin anew"
        )
    return (
        f"{folder} was begun with {part} {name} {before!r}, and now it is {now!r}: "
        f"give the same, or remove {folder.name} to begin anew"
    )


def _json(value: object) -> bytes:
    # A path may hold bytes that are no text.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
