"""Calls with several queries: the requests they are made of, scored one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from rerank_grpc.limits import check_request
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.handler import renaming
from rerank_grpc.types import Call, RerankRequest, RerankSummary, ScoredDocument, Usage


class Part(NamedTuple):
    """A request for all results, and the places of its documents among the call's texts."""

    request: RerankRequest
    places: Sequence[int]


def score_parts(
    reranker: Reranker,
    parts: Iterable[Part],
    call: Call,
    name_of: Callable[[Sequence[int], str], str],
) -> tuple[list[ScoredDocument], RerankSummary]:
    """Returns a result for each text, in the texts' order, and what all parts have cost.

    Raises a RerankError; `name_of` takes a part's places and a field of its request, and returns what the
    caller calls it.
    """
    checked = []
    for part in parts:
        # The last part too, before any work on the first.
        with renaming(partial(name_of, part.places)):
            checked.append((part, check_request(part.request)))
    characters = sum([size for _, size in checked])
    results: list[ScoredDocument] = []
    summaries = []
    for (request, places), size in checked:
        with renaming(partial(name_of, places)):
            response = reranker.rerank(request, call, kept=characters - size)
        # A stream of pairs is one call, which would refer to the tokens of all of them.
        call.forget()
        results += [result._replace(index=places[result.index]) for result in response.results]
        summaries.append(response.summary)
    results.sort(key=attrgetter("index"))
    return results, _sum(summaries)


def _sum(summaries: Sequence[RerankSummary]) -> RerankSummary:
    """Adds up what requests to one model have cost."""
    usage = Usage._make(map(sum, zip(*[summary.usage for summary in summaries], strict=True)))
    truncated = any(summary.query_truncated for summary in summaries)
    return summaries[0]._replace(usage=usage, query_truncated=truncated)
