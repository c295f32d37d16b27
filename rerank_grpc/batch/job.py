"""Reranks a file on this machine: reads blocks, has them scored, keeps their parts, joins them at last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rerank_grpc import __version__
from rerank_grpc.batch.blocks import Block, Size, blocks
from rerank_grpc.batch.journal import FORMAT, Entry, Facts, Journal, differs, remove_notes, whole
from rerank_grpc.batch.progress import RunProgress, summary
from rerank_grpc.batch.reading import Input, form_of
from rerank_grpc.batch.results import join
from rerank_grpc.batch.workers import Done, Task, Workers
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError

GOOD, BAD_ROWS = 0, 3  # the exit statuses of a finished output


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the command: a file, an output, a model."""

    input: Path
    output: Path
    source: str
    settings: ServerSettings
    top_n: int = 0
    instruction: str = ""
    block_pairs: int | None = None  # None: as the device's batches want it
    workers: int | None = None  # None: one for each device


@dataclass(frozen=True, slots=True)
class Output:
    """The places of an output: a file of a form, or a folder of parts in the input's form."""

    path: Path
    form: str
    is_folder: bool

    @classmethod
    def of(cls, path: Path, input_form: str) -> Output:
        """Tells an output's form by its name; raises ConfigurationError for a name that has another form."""
        form = form_of(path)
        if path.name in ("", ".."):
            raise ConfigurationError(f"--output: {path} has no name of its own: give a file's or a folder's")
        if path.name.endswith(".gz"):
            raise ConfigurationError(f"--output: {path}: is written as .jsonl, and can be packed then")
        if form is None and path.suffix in (".json", ".csv", ".tsv", ".txt"):
            raise ConfigurationError(
                f"--output: {path} ends in neither .parquet nor .jsonl, nor names a folder"
            )
        return cls(path, form or input_form, form is None)

    @property
    def partial(self) -> Path:
        """The folder of an unfinished output."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def report(self) -> Path:
        """The file that says what a finished output was made of."""
        return self._beside("batch.json")

    @property
    def bad(self) -> Path:
        """The file of bad rows, which is there where there are some."""
        return self._beside("bad.jsonl")

    @property
    def suffix(self) -> str:
        """The ending of a part's name."""
        return f".{self.form}"

    @property
    def is_finished(self) -> bool:
        """Whether something stands at its place."""
        return any(self.path.iterdir()) if self.is_folder and self.path.is_dir() else self.path.exists()

    def _beside(self, name: str) -> Path:
        # Readers of a folder of parts leave out names that begin with an underscore.
        return self.path / f"_{name}" if self.is_folder else self.path.with_name(f"{self.path.name}.{name}")


class BlockScorer(Protocol):
    """Scores blocks: by processes of this machine, or by a cluster."""

    facts: Facts

    def score(self, blocks: Iterator[Block], max_batch_tokens: int, done: Callable[[Done], None]) -> None:
        """Has all blocks scored; `done` takes each result, in any order."""

    def close(self) -> None:
        """Ends what it has started."""


@dataclass(slots=True)
class Run:
    """A job while it runs."""

    job: Job
    progress: RunProgress
    input: Input = field(init=False)
    output: Output = field(init=False)

    def __post_init__(self) -> None:
        self.input = Input.of(self.job.input)
        self.output = Output.of(self.job.output, self.input.form)

    def run(self) -> int:
        """Begins an output or goes on with one; returns the exit status. Raises ConfigurationError."""
        if self.output.is_finished:
            return self._finished_before()
        journal = Journal.open(self.output.partial, self.output.suffix)
        try:
            for part, found in self._asked().items():
                if journal.begun is not None:
                    journal.check(part, found)
            self._score(journal)
            return self._finish(journal)
        except BrokenPipeError:  # the reader of stderr has left
            raise
        except OSError as error:
            raise ConfigurationError(
                f"--output: {error.filename or self.output.path}: {error.strerror or error}: "
                "the same command goes on after the last complete block"
            ) from None
        finally:
            self.progress.clear()
            journal.close()

    def _asked(self) -> dict[str, Any]:
        """All that must not change between two starts of an output, without the model, not loaded yet."""
        job = self.job
        options = {"top-n": job.top_n, "instruction": job.instruction, "block-pairs": job.block_pairs}
        return {
            "input": self.input.fingerprint,
            "format": {"number": FORMAT, "rerank-grpc": __version__},
            "options": options | {"output": "folder" if self.output.is_folder else self.output.form},
        }

    def _score(self, journal: Journal) -> None:
        settings = self.job.settings
        if journal.begun is not None:
            engine = replace(settings.engine, max_batch_tokens=journal.begun["max_batch_tokens"])
            settings = replace(settings, engine=engine)
        whole_ids = self.input.has_whole_ids()
        task = Task(self.job.source, settings, self.output.form, whole_ids, self.job.top_n)
        workers = self._workers(task, journal)
        try:
            self._begin(journal, workers.facts)
            journal.append()
            budget = (journal.begun or {})["max_batch_tokens"]
            waiting: dict[int, Block] = {}
            todo = self._unscored(journal, waiting)

            def done(found: Done) -> None:
                self._keep(journal, waiting.pop(found.number), found)

            self.progress.begin()
            workers.score(todo, budget, done)
        finally:
            workers.close()

    def _workers(self, task: Task, journal: Journal) -> BlockScorer:
        return Workers(task, self.job.workers)

    def _begin(self, journal: Journal, facts: Facts) -> None:
        if journal.begun is None:
            begun = self._asked() | {"model": facts.fingerprint, "max_batch_tokens": facts.max_batch_tokens}
            journal.begin(begun)
        else:
            journal.check("model", facts.fingerprint)
        if self.job.instruction and not facts.accepts_instruction:
            raise ConfigurationError(f"--instruction: {facts.source} takes no instruction")

    def _unscored(self, journal: Journal, waiting: dict[int, Block]) -> Iterator[Block]:
        """Yields the blocks that no earlier start has completed; checks that the others are the same."""
        counts, before, first = self.progress.counts, set(journal.entries), True
        size = Size.of(self.job.block_pairs, (journal.begun or {})["max_batch_tokens"])
        for block in blocks(self.input.rows(), size=size, instruction=self.job.instruction):
            entry = journal.entries.get(block.number)
            if entry is None:
                if first:
                    first = False
                    self._say_where(block)
                waiting[block.number] = Block(block.number, digest=block.digest, position=block.position)
                yield block
                continue
            if entry.digest != block.digest:
                raise ConfigurationError(differs(journal.folder, "input", "rows", None, None))
            before.discard(block.number)
            counts.rows += entry.rows
            counts.pairs += entry.pairs
            counts.bad += entry.bad
            counts.position = block.position
            self.progress.show()
        # An earlier start read more rows, or the file has grown since it was looked at.
        if before or Input.of(self.job.input).fingerprint != self.input.fingerprint:
            raise ConfigurationError(differs(journal.folder, "input", "rows", None, None))

    def _say_where(self, block: Block) -> None:
        counts = self.progress.counts
        if block.number:
            self.progress.say(
                f"goes on after {counts.pairs:,} pairs of {counts.rows:,} rows, "
                f"{counts.position:.1%} of the input"
            )
        self.progress.begin()

    def _keep(self, journal: Journal, block: Block, found: Done) -> None:
        entry = Entry(block.digest, len(found.content), found.rows, found.pairs, len(found.bad), 0)
        journal.complete(block.number, entry, found.content, found.bad)
        counts = self.progress.counts
        counts.rows += found.rows
        counts.pairs += found.pairs
        counts.scored += found.pairs
        counts.bad += len(found.bad)
        counts.tokens += found.tokens
        counts.room += found.room
        counts.position = max(counts.position, block.position)
        self.progress.show()

    def _finish(self, journal: Journal) -> int:
        """Puts the parts together; the output takes its name last: it is finished when it is there."""
        output, counts = self.output, self.progress.counts
        report = _text(asdict(_Report(journal.begun or {}, counts.rows, counts.pairs, counts.bad)))
        if output.is_folder:
            folder = journal.folder
            self._write_bad(journal, folder / output.bad.name)
            with whole(folder / output.report.name) as file:
                file.write(report)
            journal.publish(output.path)
        else:
            self._write_bad(journal, output.bad)
            with whole(output.report) as file:
                file.write(report)
            with whole(output.path) as file:
                join(journal.parts(), output.form, file, whole_ids=self.input.has_whole_ids())
            journal.remove()
        self.progress.say(summary(counts, self.progress.seconds))
        return self._tell_bad(counts.bad)

    def _write_bad(self, journal: Journal, path: Path) -> None:
        if any(entry.bad for entry in journal.entries.values()):
            with whole(path) as file:
                for each in journal.bad_rows():
                    file.write(each.line().encode())
        else:
            path.unlink(missing_ok=True)

    def _tell_bad(self, count: int) -> int:
        if count:
            rows = "rows were" if count > 1 else "row was"
            self.progress.say(f"{count:,} {rows} not scored: {self.output.bad} says why")
        return BAD_ROWS if count else GOOD

    def _finished_before(self) -> int:
        """Says that nothing is left to do; refuses an output that was made of something else."""
        output = self.output
        try:
            report = json.loads(output.report.read_bytes())
            begun, rows, pairs, bad = (report[name] for name in ("begun", "rows", "pairs", "bad"))
            model = begun["model"] | {"source": self.job.source}
            asked = self._asked() | {"model": model, "format": begun["format"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"--output: {output.path} is there already, and was not made by this command: "
                "remove it, or choose another name"
            ) from None
        if any(begun.get(part) != found for part, found in asked.items()):
            raise ConfigurationError(
                f"--output: {output.path} was made of another input, model or options: "
                "remove it, or choose another name"
            )
        if output.partial.exists():  # the start that finished it was ended before it could clean up
            Journal.open(output.partial, output.suffix).remove()
        if output.is_folder:
            remove_notes(output.path)
        self.progress.say(f"{output.path} is finished already: {pairs:,} pairs of {rows:,} rows")
        return self._tell_bad(bad)


@dataclass(frozen=True, slots=True)
class _Report:
    """A finished output's origin and counts."""

    begun: dict[str, Any]
    rows: int
    pairs: int
    bad: int


def _text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass") + b"\n"
