"""A judged collection: queries, documents, judgements, and each query's candidates."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.parsing import Candidate, Judgement, read_judgements, read_run, read_texts
from rerank_grpc.evaluation.problems import Problems
from rerank_grpc.evaluation.retrieval import CANDIDATES, bm25_candidates

_SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Collection:
    """Judged queries with their candidates; every id in it has a text.

    Attributes:
        queries: texts by id, of the judged queries alone.
        corpus: texts by id.
        qrels: relevance by document, by query; above 0 is relevant. A document without an entry is not.
        candidates: ids of documents by query, best first; perhaps none.
    """

    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of what scores depend on: the queries, their candidates and all of their texts."""
        return _digest(
            part
            for name, text in self.queries.items()
            for part in (
                *(name, text, str(len(self.candidates[name]))),
                *(part for each in self.candidates[name] for part in (each, self.corpus[each])),
            )
        )

    @cached_property
    def judgements_digest(self) -> str:
        """A SHA-256 of the judgements, on which measures depend and scores do not."""
        return _digest(
            part
            for name, judged in self.qrels.items()
            for part in (
                *(name, str(len(judged))),
                *(part for each, level in sorted(judged.items()) for part in (each, str(level))),
            )
        )

    @property
    def pairs(self) -> int:
        """The number of pairs of a query and a candidate."""
        return sum(map(len, self.candidates.values()))

    @property
    def depth(self) -> int:
        """The number of candidates of the query that has most of them."""
        return max(map(len, self.candidates.values()), default=0)

    def cut(self, depth: int) -> Collection:
        """Returns the collection with the first `depth` candidates of each query alone."""
        candidates = {name: found[:depth] for name, found in self.candidates.items()}
        return Collection(self.queries, self.corpus, self.qrels, candidates)


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """Where a collection lies; without a run, BM25 finds the candidates."""

    queries: Path
    corpus: Path
    qrels: Path
    run: Path | None = None

    @classmethod
    def of_beir(cls, folder: Path, split: str = "test", run: Path | None = None) -> CollectionFiles:
        """Finds the files of a folder in BEIR's form; raises ConfigurationError where one is missing."""
        if not folder.is_dir():
            raise ConfigurationError(f"--beir: {folder}: no such folder: expected queries.jsonl and others")
        qrels = folder / "qrels" / f"{split}.tsv"
        if not qrels.exists():
            splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
            has = f"its splits are {', '.join(splits)}" if splits else "it has no qrels/*.tsv"
            raise ConfigurationError(f"--split: {qrels}: no such file: {has}")
        return cls(_text_file(folder, "queries"), _text_file(folder, "corpus"), qrels, run)


def read_collection(
    files: CollectionFiles,
    *,
    candidates: int = CANDIDATES,
    show_progress: bool = False,
) -> tuple[Collection, Problems]:
    """Reads a collection, and tells what had to be left out of it.

    Of a run, scores that are equal in float32 are in descending order of their ids, as trec_eval has them:
    so its figures are those of the candidates' order. `candidates` is how many BM25 finds where there is no
    run, and bars on stderr may show how far that is. A judgement or a candidate of
    an unknown query or document is left out. Raises ConfigurationError where a file cannot be read, or
    nothing of it can be used.
    """
    problems = Problems()
    queries = read_texts(files.queries, problems)
    corpus = read_texts(files.corpus, problems, titled=True)
    qrels = _judged(files, read_judgements(files.qrels, problems), queries, corpus, problems)
    queries = {name: text for name, text in queries.items() if name in qrels}
    qrels = {name: qrels[name] for name in queries}
    if files.run is not None:
        found = _ranked(files.run, read_run(files.run, problems), queries, corpus, problems)
    else:
        found = bm25_candidates(queries, corpus, candidates, show_progress=show_progress)
    collection = Collection(queries, corpus, qrels, {name: found.get(name, []) for name in queries})
    _note(collection, problems)
    return collection, problems


def _judged(
    files: CollectionFiles,
    lines: list[Judgement],
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    problems: Problems,
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    file = str(files.qrels)
    for line, query, document, relevance in lines:
        if query not in queries:
            problems.add(file, line, f"names no query of {files.queries.name}", repr(query))
        elif document not in corpus:
            problems.add(file, line, f"names no document of {files.corpus.name}", repr(document))
        elif document in (judged := qrels.setdefault(query, {})):
            problems.add(file, line, "a pair that an earlier line judges, which counts", repr(document))
        else:
            judged[document] = relevance
    qrels = {query: judged for query, judged in qrels.items() if judged}
    if not qrels:
        raise ConfigurationError(
            f"{file}: none of its {len(lines):,} lines names a query and a document of this collection, "
            f"such as line {lines[0].line} with query {lines[0].query!r} and document {lines[0].document!r}: "
            "are the judgements another collection's?"
        )
    if not any(level > 0 for judged in qrels.values() for level in judged.values()):
        raise ConfigurationError(f"{file}: calls no document relevant: expected a relevance above 0")
    return qrels


def _ranked(
    path: Path,
    lines: list[Candidate],
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    problems: Problems,
) -> dict[str, list[str]]:
    scored: dict[str, dict[str, float]] = {}
    unjudged = set()
    for line, query, document, score in lines:
        if query not in queries:
            unjudged.add(query)
        elif document not in corpus:
            problems.add(str(path), line, "names no document of the corpus", repr(document))
        elif document in (found := scored.setdefault(query, {})):
            problems.add(str(path), line, "a document that its query has already", repr(document))
        else:
            (found[document],) = array("f", [score])
    if not any(scored.values()):
        raise ConfigurationError(
            f"{path}: none of its {len(lines):,} lines names a judged query and a document of this "
            f"collection, such as line {lines[0].line} with query {lines[0].query!r} and document "
            f"{lines[0].document!r}: is the run another collection's?"
        )
    if unjudged:
        problems.note(f"{path}: {len(unjudged):,} of its queries are not judged or not known: not scored")
    return {
        query: sorted(found, key=lambda document: (found[document], document), reverse=True)
        for query, found in scored.items()
    }


def _note(collection: Collection, problems: Problems) -> None:
    """Says what of a collection bears on its measures."""
    without = sum(not found for found in collection.candidates.values())
    if without:
        problems.note(f"{without:,} judged queries have no candidate: every measure of theirs is 0")
    barren = sum(max(judged.values()) <= 0 for judged in collection.qrels.values())
    if barren:
        problems.note(f"{barren:,} judged queries have no relevant document: every measure of theirs is 0")


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode()
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()


def _text_file(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := folder / f"{name}{suffix}").exists():
            return path
    raise ConfigurationError(f"--beir: {folder / name}.jsonl: no such file: expected JSON lines of texts")
