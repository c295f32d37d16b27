"""Every setting, with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rerank_grpc.access.entries import digest_of
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.config.targets import DEFAULT_PORT
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.pair import TlsFiles

# Every precision, and the type that activations have in it, as torch names it; with int8 only the products of
# linear layers are int8, and those that are delicate in language models with int8-all alone.
PRECISIONS: Mapping[str, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "bfloat16",
    "int8-all": "bfloat16",
}
# The levels of processors that kernels are compiled for, the best first, as kernels/levels.py has them.
KERNEL_LEVELS = ("amx", "avx512-bf16", "avx512-vnni", "avx2-vnni", "avx2")
ANY_NAME = "*"  # the alias that takes every name that no model has


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve, by the name that callers use; the source is "embedded", a directory or a hub id."""

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    lazy: bool = False  # loaded at its first call
    pinned: bool = False  # once in memory, stays there
    calibration: Path | None = None  # the file of the map from its logits to probabilities


EMBEDDED = ModelSpec("embedded", "embedded")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The queue and the batches of each model."""

    max_batch_tokens: int | None = None  # None: measured at warm-up
    max_queue_tokens: int = 524_288
    hang_seconds: float = 120.0  # a longer forward pass means that its device hangs


@dataclass(frozen=True, slots=True)
class RestSettings:
    """All settings of `rerank-grpc rest`; beside a gRPC server, targets, tokens and metrics are its own."""

    host: str = "127.0.0.1"
    port: int | None = 6_006
    timeout: float = 60.0  # seconds, for callers that name none
    keep_alive: float = 120.0  # seconds that an idle connection stays open
    documents: str = "on"  # whether results carry documents where the caller does not say: on or asked
    cors: tuple[str, ...] = ()  # origins whose pages may call
    targets: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_PORT}",)
    # Callers need one of them, or of the file's; without any, the gRPC servers decide.
    access_tokens: tuple[str, ...] = field(default=(), repr=False)
    token_file: TokenFile | None = None
    tls: TlsFiles | None = None  # None: plain HTTP
    upstream_token: str | None = field(default=None, repr=False)  # for the REST server's own public routes
    upstream_token_file: TokenFile | None = None  # the first of its tokens is sent instead
    upstream_tls: TlsSources | None = None  # of the channels to all targets; None: plaintext
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 9_091
    grace_seconds: float = 30.0
    log_level: str = "info"
    log_format: str = "auto"  # or text, or json; auto: text where stderr is a terminal


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All settings of `rerank-grpc serve`; `max_calls` is of all models together."""

    models: tuple[ModelSpec, ...] = (EMBEDDED,)
    models_dir: Path = Path("models")
    catalogue: Path | None = None
    model_memory: int | None = None
    idle_seconds: float | None = None
    device: str = "auto"
    precision: str = "auto"
    kernels: str = "auto"  # or one of KERNEL_LEVELS, or none; auto: as the process's RERANK_KERNELS says
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    admin_host: str = "127.0.0.1"
    admin_port: int | None = 50_052
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 9_090
    access_tokens: tuple[str, ...] = field(default=(), repr=False)  # of variables
    token_file: TokenFile | None = None  # further ones, read again when it changes
    tls: TlsFiles | None = None  # of all ports but the metrics'; None: they are plain
    grace_seconds: float = 30.0
    connection_age_seconds: float = 600.0
    max_calls: int = 96
    blank_documents: str = "scored"  # or last: not scored, and behind all others
    reflection: str = "guarded"  # or open: it needs no token
    engine: EngineSettings = field(default_factory=EngineSettings)
    rest: RestSettings = field(default_factory=RestSettings)
    log_level: str = "info"
    log_format: str = "auto"


def token_count(settings: RestSettings | ServerSettings) -> int:
    """Counts the tokens at the start, one of which callers need; without any, none is needed.

    A caller that is known by its certificate counts too.
    """
    entries = settings.token_file.entries if settings.token_file else ()
    digests = {
        *map(digest_of, settings.access_tokens),
        *(each for entry in entries for each in entry.digests),
    }
    return len(digests) + sum(entry.certified for entry in entries)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The server that `rerank-grpc rerank | models | health` ask."""

    target: str = f"127.0.0.1:{DEFAULT_PORT}"
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    tls: TlsSources | None = None  # None: plaintext
    own_certificate: bool = False  # the CA is the server's own certificate, which may be for any name
