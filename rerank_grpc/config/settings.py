"""Every setting, with its default: frozen once read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be; the proto's comments state the same numbers.

    `characters` is of one text, `characters_inside` of all texts that are inside
    at once, `streams` how many calls the REST server sends over one connection.
    """

    message_bytes: int = 8 * MIB
    reply_bytes: int = 16 * MIB
    documents: int = 1_000
    characters: int = 100_000
    characters_inside: int = 64 * MIB
    id_characters: int = 1_024
    chunks: int = 64
    deadline_seconds: float = 120.0
    streams: int = 96


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: `name` for callers, `source` a directory or hub id ("embedded" is built in).

    A `lazy` one is loaded when it is first called; a `pinned` one, once in
    memory, stays there.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    lazy: bool = False
    pinned: bool = False


EMBEDDED = ModelSpec("embedded", "embedded")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How work is queued and batched, for each model.

    `max_batch_tokens` and `max_queue_tokens` bound the batch and the queue; a
    batch bound of None is measured when the model is warmed up. `hang_seconds`
    is how long one forward pass may take before its device counts as hung.
    """

    max_batch_tokens: int | None = None
    max_queue_tokens: int = 524_288
    hang_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class RestSettings:
    """How the REST shim listens and answers.

    `timeout` is for callers who name none, in seconds. `data` adds the second
    list of results that some callers read; `fastgpt` says access errors as
    FastGPT's bge-rerank app does. `body_bytes` is more than a gRPC message's
    limit, because many callers escape every character that is not ASCII.
    """

    host: str = "127.0.0.1"
    port: int | None = 6_006
    timeout: float = 60.0
    data: bool = True
    fastgpt: bool = False
    body_bytes: int = 12 * MIB


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """All settings of `rerank-grpc rest`, the shim in a process of its own.

    With `tokens`, callers need one of them; without, the servers decide.
    `upstream_token` is what the shim itself sends, for its public routes.
    """

    targets: tuple[str, ...] = ("127.0.0.1:50051",)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    upstream_token: str | None = field(default=None, repr=False)
    grace_seconds: float = 30.0
    rest: RestSettings = field(default_factory=RestSettings)
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `rerank-grpc serve`, frozen once read.

    `max_calls` bounds the calls that are inside at once, of all models together.
    """

    models: tuple[ModelSpec, ...] = (EMBEDDED,)
    models_dir: Path = Path("models")
    catalogue: Path | None = None
    model_memory: int | None = None
    idle_seconds: float | None = None
    device: str = "auto"
    precision: str = "auto"
    host: str = "127.0.0.1"
    port: int = 50_051
    admin_host: str = "127.0.0.1"
    admin_port: int | None = 50_052
    tokens: tuple[str, ...] = field(default=(), repr=False)
    grace_seconds: float = 30.0
    connection_age_seconds: float = 600.0
    connection_age_grace_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)
    max_calls: int = 96
    engine: EngineSettings = field(default_factory=EngineSettings)
    rest: RestSettings = field(default_factory=RestSettings)
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How `rerank-grpc rerank | models | health` reach a server."""

    target: str = "127.0.0.1:50051"
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
