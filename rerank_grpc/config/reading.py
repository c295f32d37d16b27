"""Flags and environment to settings; the only reader of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from rerank_grpc.access import TOKEN
from rerank_grpc.config.options import (
    CLIENT_OPTIONS,
    CLIENT_TOKEN_VARIABLE,
    PREFIX,
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    Option,
    OptionError,
)
from rerank_grpc.config.parsing import suggestion
from rerank_grpc.config.settings import (
    EMBEDDED,
    ClientSettings,
    EngineSettings,
    ModelSpec,
    RestSettings,
    ServerSettings,
)
from rerank_grpc.config.targets import Proxy, proxy_before

Flags = Mapping[str, str | Sequence[str] | None]


def provide(variable: str, value: str) -> None:
    """Sets a variable that only a library reads, unless the operator has set it."""
    os.environ.setdefault(variable, value)


def quiet_libraries() -> None:
    """Keeps grpc and the hub's client from printing errors that are raised as well; before their import."""
    provide("GRPC_VERBOSITY", "NONE")
    provide("HF_HUB_VERBOSITY", "error")


def read_settings(flags: Flags, environment: Mapping[str, str] = os.environ) -> ServerSettings:
    """Reads settings; raises OptionError, naming the flag or variable, for bad values and contradictions."""
    values = _values(SERVER_OPTIONS, flags, environment)
    engine, rest = _part(values, "engine."), _part(values, "rest.")
    if "host" in values:
        rest.setdefault("host", values["host"])
    return ServerSettings(
        models=_with_aliases(_models(values), values.pop("aliases", ())),
        access_tokens=_server_tokens(values.pop("access_tokens", None), environment),
        engine=EngineSettings(**engine),
        rest=RestSettings(**rest),
        **values,
    )


def read_rest_settings(flags: Flags, environment: Mapping[str, str] = os.environ) -> RestSettings:
    """Reads the settings of the REST server alone; raises OptionError like :func:`read_settings`."""
    values = _values(REST_OPTIONS, flags, environment)
    values |= _part(values, "rest.")
    if values.get("port", 0) is None:
        raise OptionError("--rest-port: 'off' leaves nothing to run")
    if "targets" in values:
        # A flag may hold several too, as the variable does.
        values["targets"] = tuple(chain.from_iterable(values["targets"]))
    return RestSettings(
        access_tokens=_server_tokens(values.pop("access_tokens", None), environment),
        upstream_token=_token_in(UPSTREAM_TOKEN_VARIABLE, environment),
        **values,
    )


def _part(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes out the values of one nested dataclass, under their names there."""
    return {key.removeprefix(prefix): values.pop(key) for key in list(values) if key.startswith(prefix)}


def read_client_settings(flags: Flags, environment: Mapping[str, str] = os.environ) -> ClientSettings:
    """Reads how to reach a server; raises OptionError like :func:`read_settings`.

    Without a target, the server of this machine is meant, with the port and tokens of the environment: a
    container's health check needs no settings of its own. Those tokens are sent to no other target.
    """
    values = _values(CLIENT_OPTIONS, flags, environment)
    file, token = values.pop("token", None), _token_in(CLIENT_TOKEN_VARIABLE, environment)
    if file is not None:
        token = _tokens_of_file(file)[0]
    if "target" not in values:
        port = _server_value("port", {}, environment) or ServerSettings().port  # 0 is no port to call
        values["target"] = f"127.0.0.1:{port}"
        token = token or next(iter(_server_tokens(None, environment)), None)
    return ClientSettings(token=token, **values)


def proxy_of(
    target: str, option: str | None = None, environment: Mapping[str, str] = os.environ
) -> Proxy | None:
    """Finds the proxy that gRPC reaches a target through; see :func:`targets.proxy_before`."""
    return proxy_before(target, environment, option)


def read_catalogue_path(flags: Flags, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Reads where the operator's catalogue is; raises OptionError like :func:`read_settings`."""
    path: Path | None = _server_value("catalogue", flags, environment)
    return path


def may_color() -> bool:
    """Tells whether the environment leaves a terminal its colours (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def forgotten_token(settings: ServerSettings) -> bool:
    """Tells whether only the client's RERANK_TOKEN is set where the server's is meant."""
    return not settings.access_tokens and bool(os.environ.get(CLIENT_TOKEN_VARIABLE))


def _server_value(name: str, flags: Flags, environment: Mapping[str, str]) -> Any:
    """Reads one of the server's options, whose setting has its name; None where it is not given."""
    options = [option for option in SERVER_OPTIONS if option.name == name]
    return _values(options, flags, environment).get(name)


def _values(options: Sequence[Option], flags: Flags, environment: Mapping[str, str]) -> dict[str, Any]:
    """Reads flags and variables, by setting; an option that neither gives is left out."""
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
    known = {option.variable for option in (*SERVER_OPTIONS, *CLIENT_OPTIONS, *REST_OPTIONS)}
    known |= {*SERVER_TOKEN_VARIABLES, CLIENT_TOKEN_VARIABLE, UPSTREAM_TOKEN_VARIABLE}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            hint = suggestion(name, sorted(known))
            if re.match(r"RERANK_(SERVICE|PORT)_", name):
                hint = "; Kubernetes sets it for a Service named rerank: set enableServiceLinks to false"
            raise OptionError(f"{name}: unknown environment variable{hint}")


def _models(values: dict[str, Any]) -> tuple[ModelSpec, ...]:
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
    """Gives each model its aliases; raises OptionError for a name that is given twice."""
    names = [model.name for model in models]
    given = [*names, *(alias for alias, _ in aliases)]
    twice = [name for place, name in enumerate(given) if name in given[:place]]
    if twice:
        raise OptionError(f"--model, --alias: the name {twice[0]!r} is given twice")
    for alias, name in aliases:
        if name not in names:
            hint = suggestion(name, names)
            raise OptionError(f"--alias: {alias}={name}: no --model is named {name!r}{hint}")
    aliases_of = {name: tuple(alias for alias, of in aliases if of == name) for name in names}
    return tuple(replace(model, aliases=aliases_of[model.name]) for model in models)


def _server_tokens(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    tokens = _tokens_of_file(file) if file is not None else []
    listed, *single = SERVER_TOKEN_VARIABLES
    if environment.get(listed):
        tokens += [_token(text.strip(), listed) for text in environment[listed].split(",")]
    tokens += [token for name in single if (token := _token_in(name, environment))]
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


def _token_in(variable: str, environment: Mapping[str, str]) -> str | None:
    text = environment.get(variable)
    return _token(text, variable) if text else None


def _token(text: str, origin: str) -> str:
    """Checks one token, and never repeats it: an HTTP header carries it."""
    if not TOKEN.fullmatch(text):
        raise OptionError(f"{origin}: a token is empty, too long, or has characters beyond visible ASCII")
    return text
