"""Scores blocks on the engine: all rows of a block at once, so that the device's batches are full.

A block's sequences are one future, alone in the queue: the engine cuts them into the same batches at every
start, and so into the same scores. Rounding differs between batches, by as much as 1e-3 in bf16.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch

from rerank_grpc.batch.blocks import Block
from rerank_grpc.batch.journal import Facts
from rerank_grpc.batch.results import Scored, ScoredRow
from rerank_grpc.batch.rows import BadRow, InputRow
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.errors import (
    InternalError,
    InvalidRequest,
    ModelFailed,
    ModelLoadError,
    PairTooLarge,
    RerankError,
)
from rerank_grpc.registry.registry import END_SECONDS
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.reranker import Reranker, build_reranker
from rerank_grpc.scores import best_chunks, count_query_tokens, relevance_scores
from rerank_grpc.sequence import Output, Sequence, TokenizedRequest
from rerank_grpc.telemetry.records import BatchRecord
from rerank_grpc.types import Call, Priority

OF_ONE_ROW = (InvalidRequest, PairTooLarge, InternalError)  # errors that a row is to blame for


@dataclass(slots=True)
class Prepared:
    """A block as sequences; `parts` are each row's tokenized requests."""

    block: Block
    rows: list[InputRow] = field(default_factory=list)
    parts: list[list[TokenizedRequest]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


class ScoredBlock(NamedTuple):
    """A block's scored rows and its bad ones, each in the input's order."""

    rows: list[ScoredRow]
    bad: list[BadRow]


class Scorer:
    """A loaded model that scores blocks; raises ModelLoadError where it cannot be loaded."""

    def __init__(self, source: str, settings: ServerSettings, threads: int | None = None) -> None:
        # The command's own line says why a load failed; without a handler, Python would print the log's too.
        logging.getLogger("rerank_grpc").addHandler(logging.NullHandler())
        if threads:
            torch.set_num_threads(threads)
        self.source = source
        self.tokens = self.room = 0  # that batches held, and could have held
        self._lock = threading.Lock()
        self._reranker: Reranker = build_reranker(
            replace(settings, models=(ModelSpec(source, source),)), on_batch=self._count
        )
        registry = self._reranker.registry
        registry.start()
        try:
            registry.wait_until_loaded()
            self._lease = registry.lease(source, Call())
        except ModelLoadError:
            registry.close(wait_seconds=END_SECONDS)
            raise
        self._model: LoadedModel = self._lease.__enter__()

    def close(self) -> None:
        """Ends the engine."""
        self._lease.leave()
        self._reranker.registry.close(wait_seconds=END_SECONDS)

    @property
    def facts(self) -> Facts:
        """Describes the loaded model."""
        card, device = self._model.card, self._model.card.device.partition(":")[0]
        return Facts(
            source=self.source,
            revision=card.revision,
            precision=card.precision,
            device=device,
            threads=torch.get_num_threads() if device == "cpu" else 0,
            max_batch_tokens=self._model.engine.max_batch_tokens,
            accepts_instruction=card.accepts_instruction,
            gpus=torch.cuda.device_count() if device == "cuda" else 0,
        )

    def prepare(self, block: Block) -> Prepared:
        """Tokenizes a block's rows; one that the model cannot take becomes bad. Any thread may call it."""
        prepared = Prepared(block, bad=list(block.bad))
        for row in block.rows:
            try:
                parts = [self._model.tokenizer.tokenize(request) for request in row.requests()]
            except InvalidRequest as error:
                prepared.bad.append(BadRow(row.number, row.id, error.message))
                continue
            prepared.rows.append(row)
            prepared.parts.append(parts)
        return prepared

    def score(self, prepared: Prepared, *, max_batch_tokens: int, top_n: int = 0) -> ScoredBlock:
        """Scores a prepared block, alone on the engine; raises a RerankError if the engine has failed."""
        engine = self._model.engine
        # A larger budget would cut other batches; a smaller one, for want of memory, stays.
        engine.max_batch_tokens = min(engine.max_batch_tokens, max_batch_tokens)
        bad = list(prepared.bad)
        rows = self._scored(prepared.rows, prepared.parts, bad)
        if len(prepared.rows) > 1 and not rows:
            raise ModelFailed(
                f"the model can score no row of block {prepared.block.number}: {bad[-1].reason}"
            )
        bad.sort(key=itemgetter(0))
        return ScoredBlock([_cut(row, top_n) for row in rows], bad)

    def _scored(
        self, rows: ListOf[InputRow], parts: ListOf[list[TokenizedRequest]], bad: list[BadRow]
    ) -> list[ScoredRow]:
        """Scores rows together; if that fails, one by one, which finds the row to blame."""
        if not rows:
            return []
        try:
            outputs = self._run([each for row in parts for part in row for each in part.sequences])
        except OF_ONE_ROW as error:
            if len(rows) == 1:
                bad.append(BadRow(rows[0].number, rows[0].id, _reason(error)))
                return []
            one_by_one = [self._scored([row], [own], bad) for row, own in zip(rows, parts, strict=True)]
            return [row for found in one_by_one for row in found]
        scored, place = [], 0
        for row, own in zip(rows, parts, strict=True):
            results: list[Scored] = []
            for part in own:
                end = place + len(part.sequences)
                results += self._results(row, len(results), part, outputs[place:end])
                place = end
            results.sort(key=itemgetter(2), reverse=True)  # stable: ties keep the row's order
            scored.append(ScoredRow(row.number, row.id, row.flat, results))
        return scored

    def _run(self, sequences: list[Sequence]) -> list[Output | None]:
        with self._model.engine.admit(Call(), Priority.BATCH) as admission:
            future = admission.submit(sequences)
            future.wait()
        return future.outputs

    def _results(
        self, row: InputRow, first: int, part: TokenizedRequest, outputs: ListOf[Output | None]
    ) -> list[Scored]:
        card, query = self._model.card, part.query
        mean = card.late is not None and card.late.mean
        logits = [best.logit for best in best_chunks(part.documents, outputs, query, mean=mean)]
        scores = relevance_scores(
            logits,
            card.scoring,
            scale=card.scale,
            offset=card.offset,
            query_tokens=1 if card.late is None or mean else count_query_tokens(outputs, query),
        )
        ids = [document.id for document in row.documents[first : first + len(logits)]]
        # Float32's own shortest digits: a double of the same number would show eight more, all noise.
        short = [float(str(value)) for value in np.asarray([*scores, *logits], np.float32)]
        count = len(logits)
        return [
            Scored(first + place, short[place], short[count + place], ids[place]) for place in range(count)
        ]

    def _count(self, batch: BatchRecord) -> None:
        with self._lock:
            self.tokens += batch.tokens
            self.room += batch.budget


def cpu_threads(workers: int) -> int:
    """Divides the threads that this machine, a container or the operator allows among workers."""
    return max(1, provide_threads()[0] // workers)


def _cut(row: ScoredRow, top_n: int) -> ScoredRow:
    return row._replace(results=row.results[:top_n]) if top_n else row


def _reason(error: RerankError) -> str:
    if isinstance(error, InternalError):
        return "could not be scored: its score is no finite number, or the model failed on it alone"
    return error.message
