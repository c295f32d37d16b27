"""Reads requests.jsonl, and says in one form what became of a request, whatever client it went through.

A line of the list has

    name, method        the method's name in RerankService
    request             the message in protobuf's JSON
    repeat              "query", "id", "text": the query, the first document's id or text stands so often;
                        then "documents": the first document so often, a space and its number after each text
    caller              "full" unless said: which token of CONFORMANCE_TOKENS is sent; "none" sends none
    timeout_ms          the deadline; 30,000 unless said
    cancel_after_ms, cancel_after_messages
                        the caller ends the call itself
    expect              what every client must see (run.py)

and a client prints one line for each, {"name": …} with either

    results, model, query_truncated
                        of results: index, id, relevance_score, logit, text (where the document came back),
                        tokens, truncated, best_chunk ([start, end], where it has one), calibrated_score
                        (where it has one). Those of a stream are ordered by descending score, then index;
                        only the best topN
    models              of ListModels: name, aliases, state, serving, accepts_instruction, max_tokens,
                        calibration (its method, where it has one)
    health              of Health: model, state, serving
    error               reason (ErrorReason without its prefix; DEADLINE_EXCEEDED and CANCELLED also where the
                        client itself ended the call), fields, retry (whether there is a delay)

The environment has CONFORMANCE_TARGET (HOST:PORT), CONFORMANCE_TOKENS (JSON, token by caller) and
CONFORMANCE_REQUESTS (the path of the list).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from rerank_grpc.client import Health, ModelInfo, RerankError, RerankRequest, RerankSummary, ScoredDocument
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages

LIST = Path(__file__).resolve().parent.parent / "requests.jsonl"
TIMEOUT_MS = 30_000


class Line(NamedTuple):
    """A line of the list, its request repeated as it says."""

    name: str
    method: str
    request: dict[str, Any]
    caller: str
    timeout: float
    cancel_after: float | None
    cancel_after_messages: int | None
    expect: dict[str, Any]

    @property
    def rerank(self) -> RerankRequest:
        """The request of Rerank and StreamRerank."""
        return messages.request_from(json_format.ParseDict(self.request, pb.RerankRequest()))

    @property
    def model(self) -> str:
        """The model that a request of Health names."""
        return str(self.request.get("model", ""))


def lines(path: Path = LIST) -> Iterator[Line]:
    """Reads the list."""
    for text in path.read_text("utf-8").split("\n"):
        if text:
            value = json.loads(text)
            after = value.get("cancel_after_ms")
            yield Line(
                value["name"],
                value["method"],
                repeated(value["request"], value.get("repeat", {})),
                value.get("caller", "full"),
                value.get("timeout_ms", TIMEOUT_MS) / 1000,
                None if after is None else after / 1000,
                value.get("cancel_after_messages"),
                value["expect"],
            )


def repeated(request: dict[str, Any], times: dict[str, int]) -> dict[str, Any]:
    """Makes the request that a line means."""
    if not times:
        return request
    first, *others = request["documents"]
    first = {**first}
    for name in ("id", "text"):
        if name in first:
            first[name] *= times.get(name, 1)
    documents = [first, *others]
    if "documents" in times:
        documents = [{**first, "text": f"{first['text']} {number}"} for number in range(times["documents"])]
    return {**request, "query": request["query"] * times.get("query", 1), "documents": documents}


def environment() -> tuple[str, dict[str, str], Path]:
    """Reads the target, the tokens by caller, and where the list is."""
    tokens = json.loads(os.environ["CONFORMANCE_TOKENS"])
    return os.environ["CONFORMANCE_TARGET"], tokens, Path(os.environ["CONFORMANCE_REQUESTS"])


def say(name: str, outcome: dict[str, Any]) -> None:
    """Prints what became of a request."""
    print(json.dumps({"name": name, **outcome}), flush=True)


def reranked(results: Iterable[ScoredDocument], summary: RerankSummary) -> dict[str, Any]:
    """Tells the results of Rerank, in their order."""
    return {
        "results": [_result(result) for result in results],
        "model": summary.model,
        "query_truncated": summary.query_truncated,
    }


def streamed(results: Iterable[ScoredDocument], top_n: int, summary: RerankSummary) -> dict[str, Any]:
    """Tells the best of the results that a stream has brought."""
    ordered = sorted(results, key=lambda result: (-result.relevance_score, result.index))
    return reranked(ordered[: top_n or None], summary)


def _result(result: ScoredDocument) -> dict[str, Any]:
    value: dict[str, Any] = {
        "index": result.index,
        "id": result.id,
        "relevance_score": result.relevance_score,
        "logit": result.logit,
        "tokens": result.tokens,
        "truncated": result.truncated,
    }
    if result.document is not None:
        value["text"] = result.document.text
    if result.best_chunk is not None:
        value["best_chunk"] = [result.best_chunk.start, result.best_chunk.end]
    if result.calibrated_score is not None:
        value["calibrated_score"] = result.calibrated_score
    return value


def listed(models: Iterable[ModelInfo]) -> dict[str, Any]:
    """Tells the models of ListModels."""
    return {
        "models": [
            {
                "name": model.name,
                "aliases": list(model.aliases),
                "state": model.state.name,
                "serving": model.serving,
                "accepts_instruction": model.accepts_instruction,
                "max_tokens": model.max_tokens,
                **({"calibration": model.calibration.method} if model.calibration else {}),
            }
            for model in models
        ]
    }


def healthy(health: Health) -> dict[str, Any]:
    """Tells the answer of Health."""
    return {"health": {"model": health.model, "state": health.state.name, "serving": health.serving}}


def failed(error: RerankError) -> dict[str, Any]:
    """Tells an error."""
    reason = type(error).__name__ if error.reason is None else error.reason.value
    fields = [violation.field for violation in error.violations]
    told = {
        "reason": reason.removeprefix("ERROR_REASON_"),
        "fields": fields,
        "retry": error.retry_after is not None,
    }
    return {"error": told}


CANCELLED = {"error": {"reason": "CANCELLED", "fields": [], "retry": False}}
