"""Processes that score blocks, each with a model of its own: one for each device, on a CPU one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from queue import Queue
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank_grpc.batch.blocks import Block
from rerank_grpc.batch.journal import Facts
from rerank_grpc.batch.results import encode
from rerank_grpc.batch.rows import BadRow
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError, ModelLoadError, RerankError, describe

if TYPE_CHECKING:
    from rerank_grpc.batch.scoring import Prepared, Scorer

AHEAD = 2  # blocks that a worker has: one is scored, the next one tokenized


@dataclass(frozen=True, slots=True)
class Task:
    """The work of a worker, the same for every block."""

    source: str
    settings: ServerSettings
    form: str  # of the output: jsonl or parquet
    whole_ids: bool
    top_n: int = 0


class Done(NamedTuple):
    """A block's part, and its bad rows; the tokens that batches held, and the room for them."""

    number: int
    content: bytes
    rows: int
    pairs: int
    bad: list[BadRow]
    tokens: int
    room: int


class Failed(NamedTuple):
    """Why a worker ends: an error for people, in one line."""

    text: str


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    pipe: Connection
    name: str
    blocks: list[int] = field(default_factory=list)


class Workers:
    """Scores blocks in processes; each block's result comes once, in any order."""

    def __init__(self, task: Task, count: int | None) -> None:
        self._task = task
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        try:
            self.facts = self._first(count)
        except BaseException:
            self.close()
            raise
        self._budget = self.facts.max_batch_tokens

    def _first(self, count: int | None) -> Facts:
        """Starts a worker, which tells the number of devices, then the others."""
        device = self._task.settings.device
        on_cpu = device == "cpu"
        first = self._start(device, count or 1 if on_cpu or count else None)
        facts = self._facts_of(first)
        gpus = facts.gpus if device in ("auto", "cuda") else 0
        total = count or max(1, gpus)
        for index in range(1, total):
            self._start(f"cuda:{index % gpus}" if gpus else device, total)
        for worker in self._workers[1:]:
            facts.check_same(self._facts_of(worker), worker.name)
        return facts

    def _start(self, device: str, sharing: int | None) -> _Worker:
        ours, theirs = self._context.Pipe()
        task = replace(self._task, settings=replace(self._task.settings, device=device))
        process = self._context.Process(target=work, args=(theirs, task, sharing), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, f"worker {len(self._workers) + 1}")
        self._workers.append(worker)
        return worker

    def _facts_of(self, worker: _Worker) -> Facts:
        found = self._receive(worker)
        assert isinstance(found, Facts)
        return found

    def score(self, blocks: Iterator[Block], max_batch_tokens: int, done: Callable[[Done], None]) -> None:
        """Has all blocks scored; `done` takes each result. Raises ConfigurationError where a worker fails."""
        for block in blocks:
            worker = min(self._workers, key=lambda each: len(each.blocks))
            while len(worker.blocks) >= AHEAD:
                self._collect(done)
                worker = min(self._workers, key=lambda each: len(each.blocks))
            worker.blocks.append(block.number)
            self._send(worker, (block, max_batch_tokens))
        while any(worker.blocks for worker in self._workers):
            self._collect(done)

    def _collect(self, done: Callable[[Done], None]) -> None:
        busy = {worker.pipe: worker for worker in self._workers if worker.blocks}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]  # only pipes were given
            found = self._receive(worker)
            worker.blocks.remove(found.number)
            done(found)

    def _send(self, worker: _Worker, message: object) -> None:
        with suppress(OSError):  # it has ended: what it had done yet is collected, then why it ended is told
            worker.pipe.send(message)

    def _receive(self, worker: _Worker) -> Any:
        try:
            found = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(10)
            raise ConfigurationError(_ended(worker)) from None
        if isinstance(found, Failed):
            raise ConfigurationError(found.text)
        return found

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _ended(worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"{worker.name} was ended by {how}{hint}: the same command goes on after the last complete block"


def work(pipe: Connection, task: Task, sharing: int | None) -> None:
    """Runs a worker: sends its facts, then a Done for each block; ends with the process that started it.

    `sharing` is the number of workers on this machine's CPUs, None for one that may not be on them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from rerank_grpc.batch.scoring import Scorer, cpu_threads

        scorer = Scorer(task.source, task.settings, cpu_threads(sharing) if sharing else None)
        pipe.send(scorer.facts)
    except (ConfigurationError, ModelLoadError, RerankError) as error:
        pipe.send(Failed(str(error)))
        return
    except ModuleNotFoundError as error:
        pipe.send(
            Failed(
                f'batch needs {error.name}, which is not installed: pip install "rerank-grpc[server,batch]"'
            )
        )
        return
    try:
        _score_all(pipe, task, scorer)
    except (EOFError, OSError):
        return  # the other side has gone
    except RerankError as error:
        pipe.send(Failed(f"{error}: the same command goes on after the last complete block"))
    except Exception as error:
        pipe.send(Failed(f"a worker failed: {describe(error)}"))
    finally:
        scorer.close()


def _score_all(pipe: Connection, task: Task, scorer: Scorer) -> None:
    prepared: Queue[Any] = Queue(1)
    threading.Thread(target=_prepare_all, args=(pipe, scorer, prepared), daemon=True).start()
    while (found := prepared.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        ready, budget = found
        pipe.send(score_block(task, scorer, ready, budget))


def score_block(task: Task, scorer: Scorer, ready: Prepared, max_batch_tokens: int) -> Done:
    """Scores a prepared block, and writes its part."""
    tokens, room = scorer.tokens, scorer.room
    scored = scorer.score(ready, max_batch_tokens=max_batch_tokens, top_n=task.top_n)
    content = encode(scored.rows, task.form, whole_ids=task.whole_ids)
    numbers = {row.number for row in scored.rows}
    pairs = sum(len(row.documents) for row in ready.rows if row.number in numbers)
    used = scorer.tokens - tokens, scorer.room - room
    return Done(ready.block.number, content, len(scored.rows), pairs, scored.bad, *used)


def _prepare_all(pipe: Connection, scorer: Scorer, prepared: Queue[Any]) -> None:
    """Tokenizes blocks ahead of those that are scored, on a thread of its own."""
    try:
        while True:
            block, budget = pipe.recv()
            prepared.put((scorer.prepare(block), budget))
    except (EOFError, OSError):
        prepared.put(None)
    except BaseException as error:
        prepared.put(error)


def _end_with_parent() -> None:
    """Ends a worker at once when its parent is killed: else it would hold a device that is needed again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
