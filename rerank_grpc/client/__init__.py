"""The Python client: `Client` for threads, `AsyncClient` for asyncio.

    with Client("localhost:50051") as client:
        for result in client.rerank("query", ["one text", "another"]).results:
            print(result.index, result.relevance_score)

A failed call raises a RerankError, whose `__cause__` is grpc's own error. Where
the deadline ends the attempts that follow a refusal, the refusal is raised
(QueueFull, say, with its `retry_after`), not DeadlineExceeded. A value that no
message can hold (a wrong type, a lone surrogate, a negative count) raises
TypeError or InvalidRequest before anything is sent.
"""

from rerank_grpc.client.aio import AsyncClient as AsyncClient
from rerank_grpc.client.aio import AsyncRerankStream as AsyncRerankStream
from rerank_grpc.client.arguments import DocumentLike as DocumentLike
from rerank_grpc.client.arguments import RerankOptions as RerankOptions
from rerank_grpc.client.errors import IncompleteStream as IncompleteStream
from rerank_grpc.client.errors import MessageTooLarge as MessageTooLarge
from rerank_grpc.client.errors import ServerUnavailable as ServerUnavailable
from rerank_grpc.client.errors import TransportError as TransportError
from rerank_grpc.client.errors import UnexpectedStatus as UnexpectedStatus
from rerank_grpc.client.sync import Client as Client
from rerank_grpc.client.sync import RerankStream as RerankStream
from rerank_grpc.errors import Cancelled as Cancelled
from rerank_grpc.errors import DeadlineExceeded as DeadlineExceeded
from rerank_grpc.errors import DeadlineUnreachable as DeadlineUnreachable
from rerank_grpc.errors import FieldViolation as FieldViolation
from rerank_grpc.errors import InternalError as InternalError
from rerank_grpc.errors import InvalidRequest as InvalidRequest
from rerank_grpc.errors import ModelFailed as ModelFailed
from rerank_grpc.errors import ModelLoading as ModelLoading
from rerank_grpc.errors import PairTooLarge as PairTooLarge
from rerank_grpc.errors import PermissionDenied as PermissionDenied
from rerank_grpc.errors import QueueFull as QueueFull
from rerank_grpc.errors import RateLimited as RateLimited
from rerank_grpc.errors import Reason as Reason
from rerank_grpc.errors import RerankError as RerankError
from rerank_grpc.errors import ShuttingDown as ShuttingDown
from rerank_grpc.errors import Unauthenticated as Unauthenticated
from rerank_grpc.errors import UnknownModel as UnknownModel
from rerank_grpc.errors import UnsupportedOption as UnsupportedOption
from rerank_grpc.types import Document as Document
from rerank_grpc.types import Health as Health
from rerank_grpc.types import ModelInfo as ModelInfo
from rerank_grpc.types import Priority as Priority
from rerank_grpc.types import RerankRequest as RerankRequest
from rerank_grpc.types import RerankResponse as RerankResponse
from rerank_grpc.types import RerankSummary as RerankSummary
from rerank_grpc.types import ScoredDocument as ScoredDocument
from rerank_grpc.types import Scoring as Scoring
from rerank_grpc.types import Span as Span
from rerank_grpc.types import State as State
from rerank_grpc.types import Truncation as Truncation
from rerank_grpc.types import Usage as Usage
