"""One table of options: each is a flag, an environment variable, a line of --help and a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_grpc.config import parsing
from rerank_grpc.config.settings import EMBEDDED, ClientSettings, GatewaySettings, Settings
from rerank_grpc.errors import ConfigurationError

PREFIX = "RERANK_"


class OptionError(ConfigurationError):
    """A flag or variable that is unknown or has a bad value."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its flag `--name`, and the variable that says the same.

    `read` turns the text into the value or raises ValueError with what the text
    is not ("is not a port"). `setting` is the attribute of the settings it
    becomes. A repeatable option's variable holds its values separated by commas.
    """

    name: str
    setting: str
    read: Callable[[str], Any]
    metavar: str
    help: str
    repeatable: bool = False
    variable: str = ""

    def __post_init__(self) -> None:
        if not self.variable:
            object.__setattr__(self, "variable", PREFIX + self.name.upper().replace("-", "_"))


REST_OPTIONS = (
    Option(
        "rest-host",
        "rest.host",
        parsing.text,
        "HOST",
        "the address of the REST port; --host's where only that is given",
    ),
    Option("rest-port", "rest.port", parsing.port_or_off, "PORT|off", "the port for JSON over HTTP"),
    Option(
        "rest-timeout",
        "rest.timeout",
        parsing.seconds,
        "SECONDS",
        "how long a REST call may take that names no time itself",
    ),
    Option(
        "rest-data",
        "rest.data",
        parsing.on_or_off,
        "on|off",
        "whether REST replies carry the older list `data` beside `results`",
    ),
    Option(
        "rest-fastgpt",
        "rest.fastgpt",
        parsing.on_or_off,
        "on|off",
        "whether REST access errors are those of FastGPT's bge-rerank app",
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
        parsing.bytes_or_off,
        "20GiB|off",
        "how much all models in memory may take; the least recently used makes room",
    ),
    Option(
        "idle-timeout",
        "idle_seconds",
        parsing.seconds_or_off,
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
    Option("admin-port", "admin_port", parsing.port_or_off, "PORT|off", "the port for probes and operators"),
    Option(
        "token-file", "tokens", Path, "FILE", "a file of tokens, one a line; callers must send one of them"
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
        "connection-age-grace",
        "connection_age_grace_seconds",
        parsing.seconds,
        "SECONDS",
        "how long calls on such a connection may still take",
    ),
    Option(
        "max-batch-tokens",
        "engine.max_batch_tokens",
        parsing.count_or_auto,
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
    *REST_OPTIONS,
    Option(
        "log-level",
        "log_level",
        parsing.one_of("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "how much is logged to stderr",
    ),
)

_BY_NAME = {option.name: option for option in SERVER_OPTIONS}

GATEWAY_OPTIONS = (
    Option(
        "target",
        "targets",
        parsing.text,
        "HOST:PORT",
        "a gRPC server to pass calls on to; of several, those that are well take turns",
        repeatable=True,
    ),
    *REST_OPTIONS,
    *(_BY_NAME[name] for name in ("token-file", "grace", "log-level")),
)

CLIENT_OPTIONS = (
    Option("target", "target", parsing.text, "HOST:PORT", "the server to call"),
    Option("timeout", "timeout", parsing.seconds, "SECONDS", "how long a call may take"),
    Option("token-file", "token", Path, "FILE", "a file that holds the token to send, on its first line"),
)

# Tokens have no flag: another user of the machine can read a command line.
SERVER_TOKEN_VARIABLES = ("RERANK_TOKENS", "ACCESS_TOKEN", "RERANK_API_KEY")
CLIENT_TOKEN_VARIABLE = "RERANK_TOKEN"
UPSTREAM_TOKEN_VARIABLE = "RERANK_UPSTREAM_TOKEN"


def default(option: Option) -> str:
    """Says an option's default as one would type it; "" where that is nothing."""
    owner: Any = Settings()
    if option not in SERVER_OPTIONS:
        owner = GatewaySettings() if option in GATEWAY_OPTIONS else ClientSettings()
    if option.setting == "models":
        return EMBEDDED.name
    if option.setting in ("aliases", "tokens", "token", "lazy_models", "pins", "catalogue"):
        return ""
    for part in option.setting.split("."):
        owner = getattr(owner, part)
    if isinstance(owner, bool):
        return "on" if owner else "off"
    if isinstance(owner, tuple):
        return ",".join(owner)
    if owner is None:
        return "auto" if option.metavar.endswith("auto") else "off"
    return f"{owner:g}" if isinstance(owner, float) else str(owner)
