"""What every dialect decodes to and encodes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import RerankRequest, RerankResponse

Json = Any
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What a dialect may know beside the body.

    `path` is without prefix and trailing slash; `with_data` whether the
    superset carries its second list.
    """

    path: str
    request_id: str
    with_data: bool = True


@dataclass(frozen=True, slots=True)
class Ranked:
    """One scored document: `index` is its place in the caller's list."""

    index: int
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service has answered, in every dialect's terms.

    `results` descend, ties in the caller's order; `score` is raw where the
    call asked for that. `device` is empty unless the call wants it.
    """

    results: Sequence[Ranked]
    model: str
    input_tokens: int
    seconds: float
    request_id: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, decoded: what to ask for, and how the answer is encoded.

    A dialect that scores pairs asks once for each query; `places` then says
    for each of these requests where its documents stood among the pairs. Empty
    means that there is one request, and its documents are the caller's.
    """

    requests: tuple[RerankRequest, ...]
    encode: Callable[[Reply], Json]
    raw_scores: bool = False
    places: tuple[tuple[int, ...], ...] = ()
    wants_device: bool = False


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect: its name, how its body is read, and how it says an error."""

    name: str
    decode: Callable[[Body, Context], Call]
    error: Callable[[Problem], tuple[int, Json]] = common_body


def reply_to(
    call: Call, responses: Sequence[RerankResponse], context: Context, seconds: float, device: str = ""
) -> Reply:
    """Puts the service's responses, one for each request of the call, together."""
    results = []
    for number, (request, response) in enumerate(zip(call.requests, responses, strict=True)):
        places = call.places[number] if call.places else None
        for result in response.results:
            score = result.logit if call.raw_scores else result.relevance_score
            index = places[result.index] if places else result.index
            results.append(Ranked(index, score, request.documents[result.index].text))
    if len(responses) > 1:
        results.sort(key=lambda result: (-result.score, result.index))
    return Reply(
        results=results,
        model=responses[0].summary.model,
        # Callers take 0 for a failed call.
        input_tokens=max(1, sum(response.summary.usage.input_tokens for response in responses)),
        seconds=seconds,
        request_id=context.request_id,
        device=device,
    )


def in_input_order(results: Sequence[Ranked]) -> list[Ranked]:
    """Sorts results as the caller's documents stood."""
    return sorted(results, key=lambda result: result.index)
