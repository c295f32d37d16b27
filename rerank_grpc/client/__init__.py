"""The Python client: `Client` for threads, `AsyncClient` for asyncio.

    with Client("localhost:50051") as client:
        for result in client.rerank("query", ["one text", "another"]).results:
            print(result.index, result.relevance_score)

A failed call raises a RerankError, whose `__cause__` is grpc's own error. Where the deadline ends the
attempts that follow a refusal, the refusal is raised (QueueFull, say, with its `retry_after`), not
DeadlineExceeded. A value that no message can hold (a wrong type, a lone surrogate, a negative count) raises
TypeError or InvalidRequest before anything is sent.
"""

from rerank_grpc.client.aio import AsyncClient, AsyncRerankStream
from rerank_grpc.client.arguments import DocumentLike, RerankOptions
from rerank_grpc.client.errors import (
    IncompleteStream,
    MessageTooLarge,
    RevisionChanged,
    ServerUnavailable,
    TlsError,
    TransportError,
    UnexpectedStatus,
)
from rerank_grpc.client.many import AsyncRerankResponses, RerankResponses
from rerank_grpc.client.sync import Client, RerankStream
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    FieldViolation,
    InternalError,
    InvalidRequest,
    ModelFailed,
    ModelLoading,
    PairTooLarge,
    PermissionDenied,
    QueueFull,
    RateLimited,
    Reason,
    RerankError,
    ShuttingDown,
    Unauthenticated,
    UnknownModel,
    UnsupportedOption,
)
from rerank_grpc.tls.diagnosis import TlsProblem
from rerank_grpc.types import (
    CalibrationInfo,
    Document,
    Health,
    ModelInfo,
    Priority,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    Span,
    State,
    Truncation,
    Usage,
)

__all__ = [
    "AsyncClient",
    "AsyncRerankResponses",
    "AsyncRerankStream",
    "CalibrationInfo",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "DeadlineUnreachable",
    "Document",
    "DocumentLike",
    "FieldViolation",
    "Health",
    "IncompleteStream",
    "InternalError",
    "InvalidRequest",
    "MessageTooLarge",
    "ModelFailed",
    "ModelInfo",
    "ModelLoading",
    "PairTooLarge",
    "PermissionDenied",
    "Priority",
    "QueueFull",
    "RateLimited",
    "Reason",
    "RerankError",
    "RerankOptions",
    "RerankRequest",
    "RerankResponse",
    "RerankResponses",
    "RerankStream",
    "RerankSummary",
    "RevisionChanged",
    "ScoredDocument",
    "Scoring",
    "ServerUnavailable",
    "ShuttingDown",
    "Span",
    "State",
    "TlsError",
    "TlsProblem",
    "TransportError",
    "Truncation",
    "Unauthenticated",
    "UnexpectedStatus",
    "UnknownModel",
    "UnsupportedOption",
    "Usage",
]
