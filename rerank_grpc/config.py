"""Every setting of the server, with its default; the only reader of the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be; the proto's comments state the same numbers."""

    message_bytes: int = 8 * MIB
    reply_bytes: int = 16 * MIB
    documents: int = 1_000
    characters: int = 100_000
    id_characters: int = 1_024
    chunks: int = 64
    deadline_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: `name` for callers, `source` a directory or hub id ("embedded" is built in)."""

    name: str
    source: str
    aliases: tuple[str, ...] = ()


EMBEDDED = ModelSpec("embedded", "embedded")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How work is queued and batched, for each model.

    `max_batch_tokens` and `max_queue_tokens` bound the batch and the queue;
    `max_calls` bounds the calls admitted at once; `hang_seconds` is how long
    one forward pass may take before its device counts as hung.
    """

    max_batch_tokens: int = 4_096
    max_queue_tokens: int = 524_288
    max_calls: int = 96
    hang_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `rerank-grpc serve`, frozen once read."""

    models: tuple[ModelSpec, ...] = (EMBEDDED,)
    models_dir: Path = Path("models")
    device: str = "auto"
    precision: str = "auto"
    host: str = "127.0.0.1"
    port: int = 50_051
    admin_host: str = "127.0.0.1"
    admin_port: int = 50_052
    tokens: tuple[str, ...] = field(default=(), repr=False)
    grace_seconds: float = 30.0
    connection_age_seconds: float = 600.0
    connection_age_grace_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)
    engine: EngineSettings = field(default_factory=EngineSettings)
