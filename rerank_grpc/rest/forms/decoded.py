"""The forms that every dialect decodes to and encodes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import DOCUMENT_TEXT
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import Document, RerankRequest, RerankResponse, ScoredDocument

Json = Any
Body = Mapping[str, Any]
Pair = tuple[str, str]  # a query and a document
Score = Callable[[ScoredDocument], float]

LOGIT: Score = attrgetter("logit")
RELEVANCE: Score = attrgetter("relevance_score")

# DeepInfra's paths and Hugging Face's name the model; the latter's may also name a task.
_MODEL_IN_PATH = re.compile(r"/(?:(?:v1/)?inference|(?:hf-inference/)?models)/(.+?)(?:/pipeline/[^/]+)?")

# A path that ends in one of these is a rerank path, whatever is before it.
ENDINGS = ("/rerank", "/reranking", "/reranks")


@dataclass(frozen=True, slots=True)
class Reply:
    """The service's answer: the results of a ranking descend, those of pairs stand in their order.

    `device` is empty unless the call wants it.
    """

    results: Sequence[ScoredDocument]
    model: str = ""
    input_tokens: int = 0
    seconds: float = 0.0
    request_id: str = ""
    device: str = ""


class Posted(NamedTuple):
    """Where a body was posted, and whether documents come back where its caller does not say."""

    path: str
    with_documents: bool = True

    @property
    def model(self) -> str:
        """The model that the path names, "" where it names none."""
        found = None if self.path.endswith(ENDINGS) else _MODEL_IN_PATH.fullmatch(self.path)
        return found[1] if found else ""


class Names(NamedTuple):
    """The caller's own fields, for errors: of the query and the document at an index, or of that pair.

    A method of a text does for most: `"passages[{}].text".format`, `"query.text".format`.
    """

    query: Callable[[int], str] = "query".format
    document: Callable[[int], str] = "documents[{}]".format
    instruction: str = "instruction"

    def own(self, field: str, origin: Sequence[int]) -> str:
        """Translates a field of a gRPC request; `origin` holds the pairs that its documents came from."""
        if field == "instruction":
            return self.instruction
        found = DOCUMENT_TEXT.fullmatch(field)
        if found is None and field != "query":
            return field
        index, name = (int(found[1]), self.document) if found else (0, self.query)
        return name(origin[index] if origin else index)


OUR_NAMES = Names()


def names_of_pairs(listed: str) -> Names:
    """Makes the names of a list of pairs, each a query and its document."""
    return Names(f"{listed}[{{}}][0]".format, f"{listed}[{{}}][1]".format)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One HTTP body, decoded: the requests to be made, and how their reply is encoded.

    A ranking is one request, or none. Pairs are one for each query: `origins` then says
    of each request where its documents stood among the pairs.
    """

    requests: tuple[RerankRequest, ...]
    encode: Callable[[Reply], Json]
    origins: tuple[tuple[int, ...], ...] = ()
    wants_device: bool = False
    names: Names = OUR_NAMES

    def in_own_words(self, error: InvalidRequest, index: int) -> InvalidRequest:
        """Makes an error of the request at `index` name the fields as the caller does."""
        origin = self.origins[index] if self.origins else ()
        return error.renamed(lambda field: self.names.own(field, origin))


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect: its name, how it reads a body posted somewhere, and how it tells an error."""

    name: str
    decode: Callable[[Body, Posted], Decoded]
    error: Callable[[Problem], tuple[int, Json]] = common_body


def decoded_pairs(
    pairs: Iterable[Pair], encode: Callable[[Reply], Json], like: RerankRequest, names: Names
) -> Decoded:
    """Makes one request for each query that differs, with the options of `like`."""
    origins: dict[str, list[int]] = {}
    documents: dict[str, list[Document]] = {}
    for index, (query, text) in enumerate(pairs):
        origins.setdefault(query, []).append(index)
        documents.setdefault(query, []).append(Document(text))
    requests = tuple(like._replace(query=query, documents=own) for query, own in documents.items())
    return Decoded(requests, encode, tuple(map(tuple, origins.values())), names=names)


def reply_to(
    decoded: Decoded, responses: Sequence[RerankResponse], request_id: str, seconds: float, device: str
) -> Reply:
    """Puts the responses, one for each request, together."""
    tokens = sum([response.summary.usage.input_tokens for response in responses])
    results = _in_order(decoded.origins, responses) if decoded.origins else responses[0].results
    # Callers take 0 tokens for a failed call.
    return Reply(results, responses[0].summary.model, max(1, tokens), seconds, request_id, device)


def _in_order(origins: Sequence[Sequence[int]], responses: Sequence[RerankResponse]) -> list[ScoredDocument]:
    results = {
        own[result.index]: result
        for own, response in zip(origins, responses, strict=True)
        for result in response.results
    }
    return [results[index] for index in sorted(results)]


def with_documents(results: list[dict[str, Json]], name: str, documents: Sequence[Json]) -> Json:
    """Adds to each encoded result its document, where there are any to be shown."""
    for result in results if documents else ():
        result[name] = documents[result["index"]]
    return results


def usage(reply: Reply) -> Json:
    """Writes the cost of a call, as OpenAI names it."""
    tokens = reply.input_tokens
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
