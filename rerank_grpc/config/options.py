"""One table of options: each is a flag, an environment variable, a line of --help and a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_grpc.config import parsing
from rerank_grpc.config.settings import ClientSettings, ModelSpec, RestSettings, ServerSettings
from rerank_grpc.errors import ConfigurationError

PREFIX = "RERANK_"


class OptionError(ConfigurationError):
    """An unknown flag or variable, or a bad value of one."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its flag `--name`, and the variable that says the same.

    `read` turns a text into the value; its ValueError ends a sentence about the
    text ("is not a port"). `setting` names the attribute of `settings`. The variable
    of a repeatable option holds values separated by commas.
    """

    name: str
    setting: str
    read: Callable[[str], Any]
    metavar: str
    help: str
    repeatable: bool = False
    variable: str = ""
    settings: type[ServerSettings | RestSettings | ClientSettings] = ServerSettings

    def __post_init__(self) -> None:
        if not self.variable:
            object.__setattr__(self, "variable", PREFIX + self.name.upper().replace("-", "_"))

    @property
    def default_text(self) -> str:
        """The default as an operator would type it; "" where nothing is the default."""
        value: Any = self.settings()
        for part in self.setting.split("."):
            value = getattr(value, part, None)
        if value is None:
            word = self.metavar.rpartition("|")[2]
            return word if word in ("auto", "off") else ""
        if isinstance(value, tuple):
            return ",".join(each.name if isinstance(each, ModelSpec) else each for each in value)
        return f"{value:g}" if isinstance(value, float) else str(value)


_REST_OPTIONS = (
    Option(
        "rest-host",
        "rest.host",
        parsing.text,
        "HOST",
        "the address of the REST port; --host's where only that is given",
    ),
    Option(
        "rest-port",
        "rest.port",
        parsing.or_none("off", parsing.port),
        "PORT|off",
        "the port for JSON over HTTP",
    ),
    Option(
        "rest-timeout",
        "rest.timeout",
        parsing.seconds,
        "SECONDS",
        "how long a REST call may take that names no time itself",
    ),
)

SERVER_OPTIONS = (
    Option(
        "model",
        "models",
        parsing.model,
        "[NAME=]SOURCE",
        "a model to serve: a directory, a hub id such as BAAI/bge-reranker-v2-m3, or embedded; "
        "the first is the default model; without NAME= the last part of SOURCE is the name",
        repeatable=True,
        variable="RERANK_MODELS",
    ),
    Option(
        "alias",
        "aliases",
        parsing.alias,
        "ALIAS=NAME",
        "a further name that callers may use for a model",
        repeatable=True,
        variable="RERANK_ALIASES",
    ),
    Option(
        "lazy-model",
        "lazy_models",
        parsing.model,
        "[NAME=]SOURCE",
        "a further model, loaded when it is first called",
        repeatable=True,
        variable="RERANK_LAZY_MODELS",
    ),
    Option(
        "pin",
        "pins",
        parsing.text,
        "NAME",
        "a model that stays in memory once it is there",
        repeatable=True,
        variable="RERANK_PINS",
    ),
    Option("models-dir", "models_dir", Path, "DIR", "where DIR/basename stands for the hub id ORG/basename"),
    Option("catalogue", "catalogue", Path, "FILE", "a TOML file of further models: see the README"),
    Option(
        "model-memory",
        "model_memory",
        parsing.or_none("off", parsing.amount),
        "20GiB|off",
        "how much all models in memory may take; the least recently used makes room",
    ),
    Option(
        "idle-timeout",
        "idle_seconds",
        parsing.or_none("off", parsing.seconds),
        "SECONDS|off",
        "after which an unused model leaves memory until it is called again",
    ),
    Option("device", "device", parsing.device, "auto|cpu|cuda[:N]", "where models run"),
    Option(
        "precision",
        "precision",
        parsing.one_of("auto", "fp32", "bf16", "fp16", "int8"),
        "auto|fp32|bf16|fp16|int8",
        "how weights are held; auto never means int8",
    ),
    Option("host", "host", parsing.text, "HOST", "the address to listen on; 0.0.0.0 is every one"),
    Option("port", "port", parsing.port, "PORT", "the port to listen on; 0 is any free one"),
    Option("admin-host", "admin_host", parsing.text, "HOST", "the address of the admin port"),
    Option(
        "admin-port",
        "admin_port",
        parsing.or_none("off", parsing.port),
        "PORT|off",
        "the port for probes and operators",
    ),
    Option(
        "token-file",
        "access_tokens",
        Path,
        "FILE",
        "a file of tokens, one a line; callers must send one of them",
    ),
    Option(
        "grace",
        "grace_seconds",
        parsing.seconds,
        "SECONDS",
        "how long calls in progress may take when stopping",
    ),
    Option(
        "connection-age",
        "connection_age_seconds",
        parsing.seconds,
        "SECONDS",
        "after which a connection is asked to be made anew",
    ),
    Option(
        "max-batch-tokens",
        "engine.max_batch_tokens",
        parsing.or_none("auto", parsing.count),
        "TOKENS|auto",
        "how much goes to the device at once, for each model; auto measures it",
    ),
    Option(
        "max-queue-tokens",
        "engine.max_queue_tokens",
        parsing.count,
        "TOKENS",
        "how much may wait for the device, for each model",
    ),
    Option(
        "max-calls",
        "max_calls",
        parsing.count,
        "CALLS",
        "how many calls are admitted at once, of all models together",
    ),
    Option(
        "hang-timeout",
        "engine.hang_seconds",
        parsing.seconds,
        "SECONDS",
        "after which one forward pass counts as hung",
    ),
    *_REST_OPTIONS,
    Option(
        "log-level",
        "log_level",
        parsing.one_of("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "how much is logged to stderr",
    ),
)

_BY_NAME = {option.name: option for option in SERVER_OPTIONS}

REST_OPTIONS = (
    Option(
        "target",
        "targets",
        parsing.text,
        "HOST:PORT",
        "a gRPC server to pass calls on to; of several, those that are well take turns",
        repeatable=True,
        settings=RestSettings,
    ),
    *_REST_OPTIONS,
    *(_BY_NAME[name] for name in ("token-file", "grace", "log-level")),
)

CLIENT_OPTIONS = (
    Option("target", "target", parsing.text, "HOST:PORT", "the server to call", settings=ClientSettings),
    Option(
        "timeout",
        "timeout",
        parsing.seconds,
        "SECONDS",
        "how long a call may take",
        settings=ClientSettings,
    ),
    Option(
        "token-file",
        "token",
        Path,
        "FILE",
        "a file that holds the token to send, on its first line",
        settings=ClientSettings,
    ),
)

# Tokens have no flag: another user of the machine can read a command line.
SERVER_TOKEN_VARIABLES = ("RERANK_TOKENS", "ACCESS_TOKEN", "RERANK_API_KEY")
CLIENT_TOKEN_VARIABLE = "RERANK_TOKEN"
UPSTREAM_TOKEN_VARIABLE = "RERANK_UPSTREAM_TOKEN"
