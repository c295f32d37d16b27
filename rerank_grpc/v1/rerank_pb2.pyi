from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_END: _ClassVar[Truncation]
    TRUNCATION_START: _ClassVar[Truncation]
    TRUNCATION_NONE: _ClassVar[Truncation]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNLOADING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class Scoring(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORING_UNSPECIFIED: _ClassVar[Scoring]
    SCORING_SIGMOID: _ClassVar[Scoring]
    SCORING_COSINE: _ClassVar[Scoring]
    SCORING_SOFTMAX: _ClassVar[Scoring]
    SCORING_TANH: _ClassVar[Scoring]
    SCORING_MAXSIM: _ClassVar[Scoring]

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_MODEL: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_LOADING: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_QUEUE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_UNREACHABLE: _ClassVar[ErrorReason]
    ERROR_REASON_RATE_LIMITED: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_CANCELLED: _ClassVar[ErrorReason]
    ERROR_REASON_UNSUPPORTED_OPTION: _ClassVar[ErrorReason]
    ERROR_REASON_PERMISSION_DENIED: _ClassVar[ErrorReason]
    ERROR_REASON_PAIR_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_UNAUTHENTICATED: _ClassVar[ErrorReason]
    ERROR_REASON_SHUTTING_DOWN: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_END: Truncation
TRUNCATION_START: Truncation
TRUNCATION_NONE: Truncation
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BATCH: Priority
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNLOADING: ModelState
MODEL_STATE_FAILED: ModelState
SCORING_UNSPECIFIED: Scoring
SCORING_SIGMOID: Scoring
SCORING_COSINE: Scoring
SCORING_SOFTMAX: Scoring
SCORING_TANH: Scoring
SCORING_MAXSIM: Scoring
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_INVALID_REQUEST: ErrorReason
ERROR_REASON_UNKNOWN_MODEL: ErrorReason
ERROR_REASON_MODEL_LOADING: ErrorReason
ERROR_REASON_MODEL_FAILED: ErrorReason
ERROR_REASON_QUEUE_FULL: ErrorReason
ERROR_REASON_DEADLINE_UNREACHABLE: ErrorReason
ERROR_REASON_RATE_LIMITED: ErrorReason
ERROR_REASON_DEADLINE_EXCEEDED: ErrorReason
ERROR_REASON_CANCELLED: ErrorReason
ERROR_REASON_UNSUPPORTED_OPTION: ErrorReason
ERROR_REASON_PERMISSION_DENIED: ErrorReason
ERROR_REASON_PAIR_TOO_LARGE: ErrorReason
ERROR_REASON_UNAUTHENTICATED: ErrorReason
ERROR_REASON_SHUTTING_DOWN: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason

class Document(_message.Message):
    __slots__ = ("text", "id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    id: str
    def __init__(self, text: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "top_n", "return_documents", "min_relevance_score", "instruction", "max_tokens_per_document", "truncation", "max_chunks_per_document", "priority", "ignore_unsupported_options", "min_calibrated_score")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_RELEVANCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNKS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IGNORE_UNSUPPORTED_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_CALIBRATED_SCORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    top_n: int
    return_documents: bool
    min_relevance_score: float
    instruction: str
    max_tokens_per_document: int
    truncation: Truncation
    max_chunks_per_document: int
    priority: Priority
    ignore_unsupported_options: bool
    min_calibrated_score: float
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., top_n: _Optional[int] = ..., return_documents: bool = ..., min_relevance_score: _Optional[float] = ..., instruction: _Optional[str] = ..., max_tokens_per_document: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., max_chunks_per_document: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., ignore_unsupported_options: bool = ..., min_calibrated_score: _Optional[float] = ...) -> None: ...

class StreamRerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "top_n", "return_documents", "min_relevance_score", "instruction", "max_tokens_per_document", "truncation", "max_chunks_per_document", "priority", "ignore_unsupported_options", "min_calibrated_score")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_RELEVANCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNKS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IGNORE_UNSUPPORTED_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_CALIBRATED_SCORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    top_n: int
    return_documents: bool
    min_relevance_score: float
    instruction: str
    max_tokens_per_document: int
    truncation: Truncation
    max_chunks_per_document: int
    priority: Priority
    ignore_unsupported_options: bool
    min_calibrated_score: float
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., top_n: _Optional[int] = ..., return_documents: bool = ..., min_relevance_score: _Optional[float] = ..., instruction: _Optional[str] = ..., max_tokens_per_document: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., max_chunks_per_document: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., ignore_unsupported_options: bool = ..., min_calibrated_score: _Optional[float] = ...) -> None: ...

class RerankResult(_message.Message):
    __slots__ = ("index", "id", "relevance_score", "logit", "document", "tokens", "truncated", "best_chunk", "calibrated_score")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    BEST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_SCORE_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    relevance_score: float
    logit: float
    document: Document
    tokens: int
    truncated: bool
    best_chunk: Span
    calibrated_score: float
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., relevance_score: _Optional[float] = ..., logit: _Optional[float] = ..., document: _Optional[_Union[Document, _Mapping]] = ..., tokens: _Optional[int] = ..., truncated: bool = ..., best_chunk: _Optional[_Union[Span, _Mapping]] = ..., calibrated_score: _Optional[float] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "cached_pairs", "tokenization_duration", "queue_duration", "inference_duration")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZATION_DURATION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DURATION_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_DURATION_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    cached_pairs: int
    tokenization_duration: _duration_pb2.Duration
    queue_duration: _duration_pb2.Duration
    inference_duration: _duration_pb2.Duration
    def __init__(self, input_tokens: _Optional[int] = ..., cached_pairs: _Optional[int] = ..., tokenization_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., queue_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., inference_duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("results", "model", "model_revision", "usage", "query_truncated")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    QUERY_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RerankResult]
    model: str
    model_revision: str
    usage: Usage
    query_truncated: bool
    def __init__(self, results: _Optional[_Iterable[_Union[RerankResult, _Mapping]]] = ..., model: _Optional[str] = ..., model_revision: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., query_truncated: bool = ...) -> None: ...

class StreamRerankResponse(_message.Message):
    __slots__ = ("results", "summary")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RerankResult]
    summary: RerankSummary
    def __init__(self, results: _Optional[_Iterable[_Union[RerankResult, _Mapping]]] = ..., summary: _Optional[_Union[RerankSummary, _Mapping]] = ...) -> None: ...

class RerankSummary(_message.Message):
    __slots__ = ("model", "model_revision", "usage", "query_truncated")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    QUERY_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_revision: str
    usage: Usage
    query_truncated: bool
    def __init__(self, model: _Optional[str] = ..., model_revision: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., query_truncated: bool = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "aliases", "state", "state_message", "is_default", "revision", "family", "device", "precision", "attention", "max_tokens", "max_batch_tokens", "scoring", "accepts_instruction", "local_available", "memory_bytes", "pinned", "serving", "activation", "pooling", "prompt_source", "hub_id", "calibration")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SOURCE_FIELD_NUMBER: _ClassVar[int]
    HUB_ID_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    state: ModelState
    state_message: str
    is_default: bool
    revision: str
    family: str
    device: str
    precision: str
    attention: str
    max_tokens: int
    max_batch_tokens: int
    scoring: Scoring
    accepts_instruction: bool
    local_available: bool
    memory_bytes: int
    pinned: bool
    serving: bool
    activation: str
    pooling: str
    prompt_source: str
    hub_id: str
    calibration: Calibration
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_message: _Optional[str] = ..., is_default: bool = ..., revision: _Optional[str] = ..., family: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., attention: _Optional[str] = ..., max_tokens: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., scoring: _Optional[_Union[Scoring, str]] = ..., accepts_instruction: bool = ..., local_available: bool = ..., memory_bytes: _Optional[int] = ..., pinned: bool = ..., serving: bool = ..., activation: _Optional[str] = ..., pooling: _Optional[str] = ..., prompt_source: _Optional[str] = ..., hub_id: _Optional[str] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("method", "created", "queries", "relevant_pairs", "irrelevant_pairs", "instruction", "max_tokens_per_document", "truncation", "max_chunks_per_document")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    RELEVANT_PAIRS_FIELD_NUMBER: _ClassVar[int]
    IRRELEVANT_PAIRS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNKS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    method: str
    created: str
    queries: int
    relevant_pairs: int
    irrelevant_pairs: int
    instruction: str
    max_tokens_per_document: int
    truncation: Truncation
    max_chunks_per_document: int
    def __init__(self, method: _Optional[str] = ..., created: _Optional[str] = ..., queries: _Optional[int] = ..., relevant_pairs: _Optional[int] = ..., irrelevant_pairs: _Optional[int] = ..., instruction: _Optional[str] = ..., max_tokens_per_document: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., max_chunks_per_document: _Optional[int] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("model", "state", "version", "uptime", "queue_tokens", "queue_capacity_tokens", "tokens_per_second", "serving")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    model: str
    state: ModelState
    version: str
    uptime: _duration_pb2.Duration
    queue_tokens: int
    queue_capacity_tokens: int
    tokens_per_second: float
    serving: bool
    def __init__(self, model: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., version: _Optional[str] = ..., uptime: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., queue_tokens: _Optional[int] = ..., queue_capacity_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., serving: bool = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...
