"""One table of options: each is a flag, an environment variable, a line of --help and a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rerank_grpc.config.parsing import (
    alias,
    amount,
    calibration,
    count,
    device,
    host,
    host_or_socket,
    model,
    one_of,
    or_none,
    origin,
    port,
    seconds,
    targets,
    text,
)
from rerank_grpc.config.settings import (
    KERNEL_LEVELS,
    PRECISIONS,
    ClientSettings,
    ModelSpec,
    RestSettings,
    ServerSettings,
)
from rerank_grpc.config.targets import read_target
from rerank_grpc.errors import ConfigurationError

PREFIX = "RERANK_"


class OptionError(ConfigurationError):
    """An unknown flag or variable, or a bad value of one."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its flag `--name`, and the variable of the same meaning."""

    name: str
    read: Callable[[str], Any]  # its ValueError ends a sentence about the text ("is not a port")
    metavar: str
    help: str
    setting: str = ""  # the attribute of `settings`, where that is not the option's name
    plural: str = ""  # names a repeatable option's setting, and its variable of values between commas
    variable: str = ""
    switch: bool = False  # its flag takes no value, and means "on"
    settings: type[ServerSettings | RestSettings | ClientSettings] = ServerSettings

    def __post_init__(self) -> None:
        name = (self.plural or self.name).replace("-", "_")
        object.__setattr__(self, "setting", self.setting or name)
        object.__setattr__(self, "variable", self.variable or PREFIX + name.upper())

    @property
    def repeatable(self) -> bool:
        """Whether the flag may be given several times."""
        return bool(self.plural)

    @property
    def is_numeric(self) -> bool:
        """Whether its text is a number, so that a file of settings may hold one."""
        return self.metavar.partition("|")[0] in ("PORT", "SECONDS", "TOKENS", "CALLS")

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


_off = partial(or_none, "off")


def _choice(name: str, words: str, help: str) -> Option:
    return Option(name, one_of(*words.split("|")), words, help)


def _caller_tls_options(
    prefix: str, server: str, settings: type[RestSettings | ClientSettings]
) -> tuple[Option, ...]:
    """Makes the options of a caller's TLS, whose settings are parts of one."""
    part = f"{prefix}tls.".replace("-", "_")
    files = (
        ("ca", f"the CA of {server}'s certificate, in PEM; implies TLS"),
        ("cert", "the caller's own certificate and its chain, in PEM, where it has to present one"),
        ("key", "the private key of that certificate, in PEM"),
    )
    return (
        Option(
            f"{prefix}tls",
            one_of("on", "off"),
            "on|off",
            f"call {server} by TLS, and trust the CAs that this system trusts",
            f"{part}on",
            switch=True,
            settings=settings,
        ),
        *(
            Option(f"{prefix}{name}", Path, "FILE", text, f"{part}{name}", settings=settings)
            for name, text in files
        ),
        Option(
            f"{prefix}server-name",
            text,
            "NAME",
            f"the name in {server}'s certificate, where it is called by another one",
            f"{part}server_name",
            settings=settings,
        ),
    )


def _metrics_options(settings: type[ServerSettings | RestSettings]) -> tuple[Option, ...]:
    """Makes the options of the metrics, whose port differs: both servers may share a machine."""
    return (
        Option("metrics-host", host, "HOST", "the address of the metrics port", settings=settings),
        Option(
            "metrics-port",
            _off(port),
            "PORT|off",
            "the port at whose /metrics Prometheus reads, over HTTP",
            settings=settings,
        ),
    )


_TLS_OPTIONS = (
    Option(
        "tls-cert",
        Path,
        "FILE",
        "the server's certificate and its chain in PEM, read again when it changes; ports then speak TLS",
    ),
    Option("tls-key", Path, "FILE", "the key of --tls-cert, in PEM, read again when it changes"),
    Option(
        "tls-client-ca",
        Path,
        "FILE",
        "the authorities, in PEM, by one of which every caller needs a certificate, which names it",
    ),
)

_REST_OPTIONS = (
    Option(
        "rest-host",
        host_or_socket,
        "HOST",
        "the address of the REST port, or unix:PATH; --host's where only that is given",
        "rest.host",
    ),
    Option("rest-port", _off(port), "PORT|off", "the port for JSON over HTTP", "rest.port"),
    Option(
        "rest-timeout",
        seconds,
        "SECONDS",
        "how long a REST call may take that names no time itself",
        "rest.timeout",
    ),
    Option(
        "rest-keep-alive",
        seconds,
        "SECONDS",
        "how long an idle REST connection stays open: longer than in the pools of callers and proxies",
        "rest.keep_alive",
    ),
    Option(
        "rest-documents",
        one_of("on", "asked"),
        "on|asked",
        "whether REST results carry their documents where a caller does not say",
        "rest.documents",
    ),
    Option(
        "rest-cors",
        origin,
        "ORIGIN",
        "an origin whose pages may call REST from a browser, or * for all",
        "rest.cors",
        plural="rest-cors",
    ),
)

SERVER_OPTIONS = (
    Option(
        "model",
        model,
        "[NAME=]SOURCE",
        "a model to serve: a directory, a hub id such as BAAI/bge-reranker-v2-m3, or embedded; "
        "the first is the default model; without NAME= the last part of SOURCE is the name",
        plural="models",
    ),
    Option(
        "alias",
        alias,
        "ALIAS=NAME",
        "a further name that callers may use for a model; * is every name that no model has",
        plural="aliases",
    ),
    Option(
        "lazy-model",
        model,
        "[NAME=]SOURCE",
        "a further model, loaded when it is first called",
        plural="lazy-models",
    ),
    Option("pin", text, "NAME", "a model that stays in memory once it is there", plural="pins"),
    Option(
        "calibration",
        calibration,
        "NAME=FILE",
        "the file by rerank-grpc calibrate that gives a model's results their calibrated_score",
        plural="calibrations",
    ),
    Option("models-dir", Path, "DIR", "where DIR/basename stands for the hub id ORG/basename"),
    Option("catalogue", Path, "FILE", "a TOML file of further models: see docs/models.md"),
    Option(
        "model-memory",
        _off(amount),
        "20GiB|off",
        "how much all models in memory may take, never more than this container or machine allows; "
        "the least recently used makes room",
    ),
    Option(
        "idle-timeout",
        _off(seconds),
        "SECONDS|off",
        "after which an unused model leaves memory until it is called again",
        "idle_seconds",
    ),
    Option("device", device, "auto|cpu|cuda[:N]", "where models run"),
    _choice(
        "precision",
        "|".join(("auto", *PRECISIONS)),
        "how weights are held; auto never means int8; of a language model int8 leaves some in bf16, "
        "int8-all none",
    ),
    Option(
        "kernels",
        one_of(*KERNEL_LEVELS, "none", "auto"),
        "|".join((*KERNEL_LEVELS, "none", "auto")),
        "the instructions that our own operations on a CPU use: this level or the next lower that the "
        "processor has, or none; auto takes the fastest",
    ),
    Option(
        "host",
        host_or_socket,
        "HOST",
        "the address to listen on; 0.0.0.0 is every one, unix:PATH a socket of this machine",
    ),
    Option("port", port, "PORT", "the port to listen on; 0 is any free one"),
    Option("admin-host", host, "HOST", "the address of the admin port"),
    Option("admin-port", _off(port), "PORT|off", "the port for probes and operators"),
    *_metrics_options(ServerSettings),
    Option(
        "token-file",
        Path,
        "FILE",
        "a file of tokens, one a line or with a name and rights in TOML, read again when it changes; "
        "callers must send one",
    ),
    *_TLS_OPTIONS,
    Option("grace", seconds, "SECONDS", "how long calls in progress may take when stopping", "grace_seconds"),
    Option(
        "connection-age",
        seconds,
        "SECONDS",
        "after which a connection is asked to be made anew",
        "connection_age_seconds",
    ),
    Option(
        "max-batch-tokens",
        or_none("auto", count),
        "TOKENS|auto",
        "how much goes to the device at once, for each model; auto measures it",
        "engine.max_batch_tokens",
    ),
    Option(
        "max-queue-tokens",
        count,
        "TOKENS",
        "how much may wait for the device, for each model",
        "engine.max_queue_tokens",
    ),
    Option("max-calls", count, "CALLS", "how many calls are admitted at once, of all models together"),
    _choice(
        "blank-documents",
        "scored|last",
        "whether a document without a visible character is scored like others, or put last with score 0",
    ),
    _choice(
        "reflection",
        "guarded|open",
        "whether reflection needs a token, where tokens are set, or is open to all, as callers of TEI expect",
    ),
    Option(
        "hang-timeout",
        seconds,
        "SECONDS",
        "after which one forward pass counts as hung",
        "engine.hang_seconds",
    ),
    *_REST_OPTIONS,
    _choice("log-level", "debug|info|warning|error", "how much is logged to stderr"),
    _choice(
        "log-format",
        "auto|text|json",
        "lines for people, or one JSON object a line; auto is text where stderr is a terminal, else json",
    ),
)

# Names the file of all other settings, so it is in no table of them.
CONFIG_OPTION = Option("config", Path, "FILE", "a TOML file of these options; flags and variables win")

REST_OPTIONS = (
    Option(
        "target",
        targets,
        "HOST:PORT",
        "a gRPC server to pass calls on to; of several, those that are well take turns",
        plural="targets",
        variable="RERANK_TARGET",
        settings=RestSettings,
    ),
    Option(
        "upstream-token-file",
        Path,
        "FILE",
        "a file whose first line is the token for the targets, read again when it changes",
        settings=RestSettings,
    ),
    *_caller_tls_options("upstream-", "the targets", RestSettings),
    *_REST_OPTIONS,
    *_metrics_options(RestSettings),
    *(
        option
        for option in SERVER_OPTIONS
        if option.name
        in ("token-file", "tls-cert", "tls-key", "tls-client-ca", "grace", "log-level", "log-format")
    ),
)

CLIENT_OPTIONS = (
    Option("target", read_target, "HOST:PORT", "the server to call", settings=ClientSettings),
    Option("timeout", seconds, "SECONDS", "how long a call may take", settings=ClientSettings),
    Option(
        "token-file",
        Path,
        "FILE",
        "a file that holds the token to send, on its first line",
        "token",
        settings=ClientSettings,
    ),
    *_caller_tls_options("", "the server", ClientSettings),
)

# Tokens have no flag: another user of the machine can read a command line.
SERVER_TOKEN_VARIABLES = ("RERANK_TOKENS", "ACCESS_TOKEN", "RERANK_API_KEY")
CLIENT_TOKEN_VARIABLE = "RERANK_TOKEN"
UPSTREAM_TOKEN_VARIABLE = "RERANK_UPSTREAM_TOKEN"
