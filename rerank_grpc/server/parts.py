"""Calls with several queries: the requests they are made of, scored one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from rerank_grpc.limits import DOCUMENT_TEXT, check_request
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.handler import renaming
from rerank_grpc.types import Call, RerankRequest, RerankSummary, ScoredDocument


class Part(NamedTuple):
    """A request for all results, and the places of its documents among the call's texts."""

    request: RerankRequest
    places: Sequence[int]


class FieldNames(NamedTuple):
    """A caller's own fields, for errors; `{}` stands for the place of a text, or of a query's first text."""

    query: str
    text: str
    other: Callable[[str], str]  # takes any other field of a RerankRequest

    def own(self, places: Sequence[int], field: str) -> str:
        """Renames a field of the request whose documents stand at these places."""
        if found := DOCUMENT_TEXT.fullmatch(field):
            return self.text.format(places[int(found[1])])
        return self.query.format(places[0]) if field == "query" else self.other(field)


def score_parts(
    reranker: Reranker, parts: Iterable[Part], call: Call, names: FieldNames
) -> tuple[list[ScoredDocument], RerankSummary]:
    """Returns a result for each text, in the texts' order, and what all parts have cost.

    Raises a RerankError, an InvalidRequest in the caller's `names`.
    """
    checked = []
    for part in parts:
        # The last part too, before any work on the first.
        with renaming(partial(names.own, part.places)):
            checked.append((part, check_request(part.request)))
    characters = sum([size for _, size in checked])
    charged = sum([len(part.request.documents) for part, _ in checked])  # one call, for the caller's rate
    results: list[ScoredDocument] = []
    summaries = []
    for (request, places), size in checked:
        with renaming(partial(names.own, places)):
            response = reranker.rerank(request, call, kept=characters - size, charged=charged)
        charged = 0
        # A stream of pairs is one call, which would refer to the tokens of all of them.
        call.forget()
        results += [result._replace(index=places[result.index]) for result in response.results]
        summaries.append(response.summary)
    results.sort(key=attrgetter("index"))
    return results, RerankSummary.of(summaries)
