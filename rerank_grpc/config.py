"""Every setting, with its default; the only reader of the environment.

An :class:`Option` is a flag of the command line and a variable of the
environment at once; the flag wins. Values are read here and nowhere else, so
that a bad one is refused by the same words wherever it came from.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rerank_grpc.errors import ConfigurationError

MIB = 1 << 20
PREFIX = "RERANK_"


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
    batch bound of None is measured when the model is warmed up. `max_calls`
    bounds the calls admitted at once; `hang_seconds` is how long one forward
    pass may take before its device counts as hung.
    """

    max_batch_tokens: int | None = None
    max_queue_tokens: int = 524_288
    max_calls: int = 96
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
    """All settings of `rerank-grpc serve`, frozen once read."""

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
    engine: EngineSettings = field(default_factory=EngineSettings)
    rest: RestSettings = field(default_factory=RestSettings)
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How `rerank-grpc rerank | models | health` reach a server."""

    target: str = "127.0.0.1:50051"
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0


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


def _text(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("is empty, or has spaces around it or control characters in it")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}{suggestion(text, choices)}")
        return text

    return read


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) == 0:
        raise ValueError("is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65_535:
        raise ValueError("is not a port (1 to 65535, or 0 for any free one)")
    return int(text)


def _count_or_auto(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _port_or_off(text: str) -> int | None:
    return None if text == "off" else _port(text)


def _on_or_off(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise ValueError("is not a number of seconds above 0 and up to 86400")
    return value


def _seconds_or_off(text: str) -> float | None:
    return None if text == "off" else _seconds(text)


def _bytes_or_off(text: str) -> int | None:
    if text == "off":
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(MiB|GiB|TiB|MB|GB|TB)", text)
    if match is None or float(match[1]) == 0:
        raise ValueError("is not an amount of memory such as 20GiB, nor off")
    base, power = (1024 if "i" in match[2] else 1000), "MGT".index(match[2][0]) + 2
    return int(float(match[1]) * base**power)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise ValueError("is none of auto, cpu, cuda, cuda:0, cuda:1 ...")
    return text


def _model(text: str) -> ModelSpec:
    name, equals, source = text.partition("=")
    if not equals:
        name, source = re.split(r"[/\\]", text.rstrip("/\\"))[-1].partition("@")[0], text
    if not source or not re.fullmatch(r"[\w.:/@+-]{1,200}", name):
        raise ValueError("is not NAME=DIR_OR_HUB_ID, nor a directory or hub id alone")
    return ModelSpec(name, source)


def _alias(text: str) -> tuple[str, str]:
    alias, equals, name = text.partition("=")
    if not equals or not name or not re.fullmatch(r"[\w.:/@+-]{1,200}", alias):
        raise ValueError("is not ALIAS=NAME")
    return alias, name


REST_OPTIONS = (
    Option(
        "rest-host",
        "rest.host",
        _text,
        "HOST",
        "the address of the REST port; --host's where only that is given",
    ),
    Option("rest-port", "rest.port", _port_or_off, "PORT|off", "the port for JSON over HTTP"),
    Option(
        "rest-timeout",
        "rest.timeout",
        _seconds,
        "SECONDS",
        "how long a REST call may take that names no time itself",
    ),
    Option(
        "rest-data",
        "rest.data",
        _on_or_off,
        "on|off",
        "whether REST replies carry the older list `data` beside `results`",
    ),
    Option(
        "rest-fastgpt",
        "rest.fastgpt",
        _on_or_off,
        "on|off",
        "whether REST access errors are those of FastGPT's bge-rerank app",
    ),
)

SERVER_OPTIONS = (
    Option(
        "model",
        "models",
        _model,
        "[NAME=]SOURCE",
        "a model to serve: a directory, a hub id such as BAAI/bge-reranker-v2-m3, or embedded; "
        "the first is the default model; without NAME= the last part of SOURCE is the name",
        repeatable=True,
        variable="RERANK_MODELS",
    ),
    Option(
        "alias",
        "aliases",
        _alias,
        "ALIAS=NAME",
        "a further name that callers may use for a model",
        repeatable=True,
        variable="RERANK_ALIASES",
    ),
    Option(
        "lazy-model",
        "lazy_models",
        _model,
        "[NAME=]SOURCE",
        "a further model, loaded when it is first called",
        repeatable=True,
        variable="RERANK_LAZY_MODELS",
    ),
    Option(
        "pin",
        "pins",
        _text,
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
        _bytes_or_off,
        "20GiB|off",
        "how much all models in memory may take; the least recently used makes room",
    ),
    Option(
        "idle-timeout",
        "idle_seconds",
        _seconds_or_off,
        "SECONDS|off",
        "after which an unused model leaves memory until it is called again",
    ),
    Option("device", "device", _device, "auto|cpu|cuda[:N]", "where models run"),
    Option(
        "precision",
        "precision",
        _one_of("auto", "fp32", "bf16", "fp16", "int8"),
        "auto|fp32|bf16|fp16|int8",
        "how weights are held; auto never means int8",
    ),
    Option("host", "host", _text, "HOST", "the address to listen on; 0.0.0.0 is every one"),
    Option("port", "port", _port, "PORT", "the port to listen on; 0 is any free one"),
    Option("admin-host", "admin_host", _text, "HOST", "the address of the admin port"),
    Option("admin-port", "admin_port", _port_or_off, "PORT|off", "the port for probes and operators"),
    Option(
        "token-file", "tokens", Path, "FILE", "a file of tokens, one a line; callers must send one of them"
    ),
    Option(
        "grace", "grace_seconds", _seconds, "SECONDS", "how long calls in progress may take when stopping"
    ),
    Option(
        "connection-age",
        "connection_age_seconds",
        _seconds,
        "SECONDS",
        "after which a connection is asked to be made anew",
    ),
    Option(
        "connection-age-grace",
        "connection_age_grace_seconds",
        _seconds,
        "SECONDS",
        "how long calls on such a connection may still take",
    ),
    Option(
        "max-batch-tokens",
        "engine.max_batch_tokens",
        _count_or_auto,
        "TOKENS|auto",
        "how much goes to the device at once, for each model; auto measures it",
    ),
    Option(
        "max-queue-tokens",
        "engine.max_queue_tokens",
        _count,
        "TOKENS",
        "how much may wait for the device, for each model",
    ),
    Option("max-calls", "engine.max_calls", _count, "CALLS", "how many calls are admitted at once"),
    Option(
        "hang-timeout",
        "engine.hang_seconds",
        _seconds,
        "SECONDS",
        "after which one forward pass counts as hung",
    ),
    *REST_OPTIONS,
    Option(
        "log-level",
        "log_level",
        _one_of("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "how much is logged to stderr",
    ),
)

_BY_NAME = {option.name: option for option in SERVER_OPTIONS}

GATEWAY_OPTIONS = (
    Option(
        "target",
        "targets",
        _text,
        "HOST:PORT",
        "a gRPC server to pass calls on to; of several, those that are well take turns",
        repeatable=True,
    ),
    *REST_OPTIONS,
    *(_BY_NAME[name] for name in ("token-file", "grace", "log-level")),
)

CLIENT_OPTIONS = (
    Option("target", "target", _text, "HOST:PORT", "the server to call"),
    Option("timeout", "timeout", _seconds, "SECONDS", "how long a call may take"),
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


def suggestion(text: str, choices: Iterable[str]) -> str:
    """Says "; did you mean …?" where a choice is near the text, else nothing."""
    near = difflib.get_close_matches(text, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


Flags = Mapping[str, str | Sequence[str] | None]


def read_settings(flags: Flags, environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the server's settings; `flags` maps an option's name to its text, or texts.

    Raises OptionError, naming the flag or variable, for anything that is
    unknown, malformed or contradicts itself.
    """
    environment = os.environ if environment is None else environment
    values = _values(SERVER_OPTIONS, flags, environment)
    engine, rest = _part(values, "engine."), _part(values, "rest.")
    models = _with_aliases(_models(values), values.pop("aliases", ()))
    tokens = _server_tokens(values.pop("tokens", None), environment)
    if "host" in values:
        rest.setdefault("host", values["host"])
    return Settings(
        models=models,
        tokens=tokens,
        engine=EngineSettings(**engine),
        rest=RestSettings(**rest),
        **values,
    )


def read_gateway_settings(flags: Flags, environment: Mapping[str, str] | None = None) -> GatewaySettings:
    """Reads the settings of the shim alone; raises OptionError like :func:`read_settings`."""
    environment = os.environ if environment is None else environment
    values = _values(GATEWAY_OPTIONS, flags, environment)
    rest = _part(values, "rest.")
    if rest.get("port", 0) is None:
        raise OptionError("--rest-port: 'off' leaves nothing to run")
    own = environment.get(UPSTREAM_TOKEN_VARIABLE)
    if "targets" in values:
        # A flag may hold several too, as the variable does.
        values["targets"] = tuple(part for text in values["targets"] for part in text.split(",") if part)
    return GatewaySettings(
        tokens=_server_tokens(values.pop("tokens", None), environment),
        upstream_token=_token(own, UPSTREAM_TOKEN_VARIABLE) if own else None,
        rest=RestSettings(**rest),
        **values,
    )


def _part(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes the values of one nested dataclass out, by their names there."""
    return {key.removeprefix(prefix): values.pop(key) for key in list(values) if key.startswith(prefix)}


def read_client_settings(flags: Flags, environment: Mapping[str, str] | None = None) -> ClientSettings:
    """Reads how to reach a server; raises OptionError like :func:`read_settings`.

    Where no target is named, this machine's own server is meant, and what its
    environment says of port and tokens holds: a container's health check needs
    no settings of its own. Those tokens are sent to no other target.
    """
    environment = os.environ if environment is None else environment
    values = _values(CLIENT_OPTIONS, flags, environment)
    file = values.pop("token", None)
    text = environment.get(CLIENT_TOKEN_VARIABLE, "")
    tokens = [_token(text, CLIENT_TOKEN_VARIABLE)] if text else []
    if file is not None:
        tokens = _tokens_of_file(file)
    if "target" not in values:
        port = environment.get("RERANK_PORT") or Settings().port
        values["target"] = f"127.0.0.1:{port}"
        tokens = tokens or list(_server_tokens(None, environment))
    return ClientSettings(token=tokens[0] if tokens else None, **values)


def may_color(environment: Mapping[str, str] | None = None) -> bool:
    """Tells whether the environment leaves a terminal its colours (no-color.org)."""
    environment = os.environ if environment is None else environment
    return not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def quiet_grpc() -> None:
    """Keeps grpc's C core from printing what is raised as well; before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def forgotten_token(settings: Settings, environment: Mapping[str, str] | None = None) -> bool:
    """Tells whether only the client's RERANK_TOKEN is set where the server's is meant."""
    environment = os.environ if environment is None else environment
    return not settings.tokens and bool(environment.get(CLIENT_TOKEN_VARIABLE))


def _values(options: Sequence[Option], flags: Flags, environment: Mapping[str, str]) -> dict[str, Any]:
    """Reads what flags and variables say, by setting; what neither says is left out."""
    _refuse_unknown_variables(environment)
    values: dict[str, Any] = {}
    for option in options:
        origin, given = f"--{option.name}", flags.get(option.name)
        if given is None:
            # An empty variable counts as unset: compose files pass those on.
            origin, given = option.variable, environment.get(option.variable) or None
        if given is None:
            continue
        if not option.repeatable:
            values[option.setting] = _value(option, origin, str(given))
            continue
        texts = given.split(",") if isinstance(given, str) else given
        values[option.setting] = tuple(_value(option, origin, text.strip()) for text in texts)
    return values


def _value(option: Option, origin: str, text: str) -> Any:
    try:
        return option.read(text)
    except ValueError as error:
        raise OptionError(f"{origin}: {text!r} {error}") from None


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    options = (*SERVER_OPTIONS, *CLIENT_OPTIONS, *GATEWAY_OPTIONS)
    known = {option.variable for option in options}
    known |= {*SERVER_TOKEN_VARIABLES, CLIENT_TOKEN_VARIABLE, UPSTREAM_TOKEN_VARIABLE}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            raise OptionError(f"{name}: unknown environment variable{_hint(name, known)}")


def _hint(variable: str, known: set[str]) -> str:
    if re.match(r"RERANK_(SERVICE|PORT)_", variable):
        return "; Kubernetes sets it for a Service named rerank: set enableServiceLinks to false"
    return suggestion(variable, sorted(known))


def _models(values: dict[str, Any]) -> tuple[ModelSpec, ...]:
    """Takes the models out of what was read: the loaded ones, then the lazy ones, each pinned or not."""
    models = values.pop("models", (EMBEDDED,))
    models += tuple(replace(model, lazy=True) for model in values.pop("lazy_models", ()))
    pins, names = values.pop("pins", ()), [model.name for model in models]
    for pin in pins:
        if pin not in names:
            raise OptionError(f"--pin: no model is named {pin!r}{suggestion(pin, names)}")
    return tuple(replace(model, pinned=model.name in pins) for model in models)


def _with_aliases(
    models: tuple[ModelSpec, ...], aliases: tuple[tuple[str, str], ...]
) -> tuple[ModelSpec, ...]:
    """Gives each model its aliases; every name may be given once."""
    names = [model.name for model in models]
    taken = set[str]()
    for name in (*names, *(alias for alias, _ in aliases)):
        if name in taken:
            raise OptionError(f"--model, --alias: the name {name!r} is given twice")
        taken.add(name)
    for alias, name in aliases:
        if name not in names:
            raise OptionError(
                f"--alias: {alias}={name}: no --model is named {name!r}{suggestion(name, names)}"
            )
    return tuple(
        replace(model, aliases=tuple(alias for alias, name in aliases if name == model.name))
        for model in models
    )


def _server_tokens(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Gathers the tokens of the file and of all variables, each once."""
    tokens = _tokens_of_file(file) if file is not None else []
    listed, *single = SERVER_TOKEN_VARIABLES
    if environment.get(listed):
        tokens += [_token(text.strip(), listed) for text in environment[listed].split(",")]
    tokens += [_token(environment[name], name) for name in single if environment.get(name)]
    return tuple(dict.fromkeys(tokens))


def _tokens_of_file(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(f"--token-file: cannot read {str(file)!r}: {reason}") from None
    tokens = [_token(line.strip(), f"--token-file {file}") for line in lines if line.strip()]
    if not tokens:
        raise OptionError(f"--token-file: {str(file)!r} holds no token")
    return tokens


def _token(text: str, origin: str) -> str:
    """Checks one token, and never repeats it: an HTTP header carries it."""
    if not re.fullmatch(r"[!-~]+", text):
        raise OptionError(f"{origin}: a token is empty, or has characters beyond visible ASCII")
    return text
