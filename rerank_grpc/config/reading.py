"""Flags, environment and a file to settings; with environment.py the only reader of the environment."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rerank_grpc.access.tokens import NOT_IN_CLEAR
from rerank_grpc.config.credentials import (
    accepted_tokens,
    caller_tls,
    server_tls,
    token_file,
    token_in,
    variable_tokens,
)
from rerank_grpc.config.options import (
    CLIENT_OPTIONS,
    CLIENT_TOKEN_VARIABLE,
    CONFIG_OPTION,
    PREFIX,
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    Option,
    OptionError,
)
from rerank_grpc.config.origins import Effective, Flags, Given, Origin, gather, taken_out, where_of
from rerank_grpc.config.settings import (
    EMBEDDED,
    ClientSettings,
    EngineSettings,
    ModelSpec,
    RestSettings,
    ServerSettings,
    token_count,
)
from rerank_grpc.config.settings_file import read_file
from rerank_grpc.errors import suggestion
from rerank_grpc.files.sockets import socket_path
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.pem import BadPem

SHARED_MEMORY = "/dev/shm"
_URL = re.compile(r"https?://[^/\s]", re.IGNORECASE)
# The characters of a value are those of the SDK's own, liberal pattern.
_HEADER = re.compile(r"[ \t]*[A-Za-z0-9_.-]+[ \t]*=[\x20\x21\x23-\x3a\x3c-\x5b\x5d-\x7e]*[ \t]*")


def provide_temporary_folder() -> None:
    """Puts temporary files, those of child processes too, where a read-only system without /tmp has room."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = SHARED_MEMORY


def read_kernels(environment: Mapping[str, str] = os.environ) -> str:
    """Reads which kernels this process may use: a level, "none" or "auto".

    The environment holds it for the whole process, and for those that it starts: a library is loaded once.
    Raises OptionError for another word.
    """
    options = [option for option in SERVER_OPTIONS if option.name == "kernels"]
    return str(_values(options, gather(options, {}, environment, {})).get("kernels", "auto"))


def mask_kernels(allowed: str) -> None:
    """Says which kernels this process may use, as `read_kernels` reads it from here on."""
    os.environ[f"{PREFIX}KERNELS"] = allowed


def read_settings(flags: Flags, environment: Mapping[str, str] = os.environ) -> ServerSettings:
    """Reads settings; raises OptionError, naming the flag or variable, or the file and its key.

    It does so for bad values, contradictions, and a file that cannot be read.
    """
    return _server_settings(_server_given(flags, environment), environment)


def read_rest_settings(flags: Flags, environment: Mapping[str, str] = os.environ) -> RestSettings:
    """Reads the settings of the REST server alone; raises OptionError like :func:`read_settings`."""
    return _rest_settings(_given(REST_OPTIONS, flags, environment), environment)


def read_effective(
    flags: Flags, environment: Mapping[str, str] = os.environ, *, rest: bool = False
) -> list[Effective]:
    """Reads each setting of the server, or of the REST server alone, and where it came from.

    Tokens are only counted. Raises OptionError like :func:`read_settings`.
    """
    settings: RestSettings | ServerSettings
    if rest:
        options, given = REST_OPTIONS, _given(REST_OPTIONS, flags, environment)
        settings = _rest_settings(given, environment)
    else:
        options, given = SERVER_OPTIONS, _server_given(flags, environment)
        settings = _server_settings(given, environment)
    rows = [Effective.of(option, given.get(option.name)) for option in options]
    count, file = token_count(settings), given.get("token-file")
    variables = [Origin("variable", name) for name in SERVER_TOKEN_VARIABLES if environment.get(name)]
    sources = [*([Origin("file", file.texts[0])] if file else ()), *variables]
    counted = (f"{count} token{'s' if count > 1 else ''}",) if count else ()
    rows.append(Effective("tokens", counted, tuple(sources)))
    if isinstance(settings, RestSettings):
        own = (Origin("variable", UPSTREAM_TOKEN_VARIABLE),) if settings.upstream_token else ()
        if upstream := given.get("upstream-token-file"):
            own = (Origin("file", upstream.texts[0]),)
        rows.append(Effective("upstream token", ("set",) if own else (), own))
    return rows


def _server_settings(given: Mapping[str, Given], environment: Mapping[str, str]) -> ServerSettings:
    values = _values(SERVER_OPTIONS, given)
    engine, rest = taken_out(values, "engine."), taken_out(values, "rest.")
    models = _with_aliases(_models(values, given), values.pop("aliases", ()), given)
    models = _with_calibrations(models, values.pop("calibrations", ()), given)
    values |= accepted_tokens(given, environment, models)
    values["tls"] = server_tls(values, given)
    _check_socket(values.get("host", ""), "port", given)
    _check_socket(rest.get("host", ""), "rest-port", given)
    return ServerSettings(
        models=models,
        engine=EngineSettings(**engine),
        rest=RestSettings(**rest),
        **values,
    )


def _rest_settings(given: Mapping[str, Given], environment: Mapping[str, str]) -> RestSettings:
    values = _values(REST_OPTIONS, given)
    values |= taken_out(values, "rest.")
    if values.get("port", 0) is None:
        raise OptionError(f"{where_of('rest-port', given)}: 'off' leaves nothing to run")
    if "targets" in values:
        # A flag may hold several too, as the variable does.
        values["targets"] = tuple(chain.from_iterable(values["targets"]))
    values |= accepted_tokens(given, environment)
    values["upstream_token_file"] = upstream = token_file(given.get("upstream-token-file"))
    if upstream is not None and upstream.sent is None:
        where = where_of("upstream-token-file", given)
        raise OptionError(f"{where}: {str(upstream.path)!r} cannot be used: {NOT_IN_CLEAR}")
    values["tls"] = server_tls(values, given)
    _check_socket(values.get("host", ""), "rest-port", given)
    values["upstream_tls"] = caller_tls(values, "upstream_tls.", given)
    return RestSettings(upstream_token=token_in(UPSTREAM_TOKEN_VARIABLE, environment), **values)


def read_client_settings(
    flags: Flags, environment: Mapping[str, str] = os.environ, *, needs_token: bool = True
) -> ClientSettings:
    """Reads how to reach a server; raises OptionError like :func:`read_settings`.

    Without a target, the server of this machine is meant, with the port, tokens and certificate of the
    environment, and of the file that it names: a container's health check needs no settings of its own. Those
    tokens are sent to no other target. Where none is needed, a token that cannot be read is left out, unless
    a flag names it.
    """
    # Without the file of settings: its token-file is a server's.
    given = gather(CLIENT_OPTIONS, flags, _checked(environment), {})
    values, here = _values(CLIENT_OPTIONS, given), "target" not in given
    values.pop("token", None)
    if here:
        host = _server_value("host", {}, environment) or ""
        port = _server_value("port", {}, environment) or ServerSettings().port  # 0 is no port to call
        values["target"] = host if host.startswith("unix:") else f"127.0.0.1:{port}"
        own = {"ca", "server-name"} & set(given) or values.get("tls.on") == "off"
        if not own and not host.startswith("unix:"):  # a socket is plain
            values |= _tls_here(environment, given)
    try:
        token = _client_token(given.get("token-file"), environment, of_server=here)
    except OptionError:
        if needs_token or flags.get("token-file") is not None:
            raise
        token = None
    values["tls"] = caller_tls(values, "tls.", given)
    return ClientSettings(token=token, **values)


def names_server(flags: Flags, environment: Mapping[str, str] = os.environ) -> bool:
    """Tells whether a flag or a variable names a server to call, for commands that else load a model."""
    return "target" in gather(CLIENT_OPTIONS, flags, _checked(environment), {})


def _tls_here(environment: Mapping[str, str], given: Mapping[str, Given]) -> dict[str, Any]:
    """Finds the settings of TLS by which the server here is called; none where it speaks none."""
    cert, key, client_ca = (
        _server_value(name, {}, environment) for name in ("tls-cert", "tls-key", "tls-client-ca")
    )
    if cert is None:
        return {}
    presented = {"tls.cert": cert, "tls.key": key} if client_ca and "cert" not in given else {}
    return {"tls.ca": cert, "own_certificate": True, **presented}


def _client_token(file: Given | None, environment: Mapping[str, str], *, of_server: bool) -> str | None:
    """Finds the token that a client sends; `of_server` is whether it may be one of the server here."""
    if file is not None and (found := token_file(file)):
        if found.sent is not None:
            return found.sent
        if file.origin.kind == "flag":  # the variable is a server's, too, which needs no token in clear
            raise OptionError(f"{file.where}: {str(found.path)!r} cannot be used: {NOT_IN_CLEAR}")
    if (own := token_in(CLIENT_TOKEN_VARIABLE, environment)) or not of_server:
        return own
    found = token_file(_given(SERVER_OPTIONS, {}, environment).get("token-file"))
    return (found.sent if found else None) or next(iter(variable_tokens(environment)), None)


def read_metrics_target(environment: Mapping[str, str] = os.environ) -> str:
    """Reads where a server of this machine has its metrics: HOST:PORT, or HOST where no port is set.

    Raises OptionError like :func:`read_settings`.
    """
    host = _reachable(_server_value("metrics-host", {}, environment) or "127.0.0.1")
    port = _server_value("metrics-port", {}, environment)  # 0 and off are none to call
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if port else host


def read_listening(
    flags: Flags, environment: Mapping[str, str] = os.environ, *, rest: bool = False
) -> tuple[str, int]:
    """Reads where a server of these flags is called on its own machine, or the REST server alone: host, port.

    Nothing else of its settings is read, so that a bad file of tokens is no reason to call it unwell. Raises
    OptionError like :func:`read_settings`, and where the system chooses the port.
    """
    names = ("rest-host", "rest-port") if rest else ("host", "port")
    given = _server_given(flags, environment)
    options = {option.name: option for option in SERVER_OPTIONS}
    values = [next(iter(_values([options[name]], given).values()), None) for name in names]
    default = ServerSettings().rest.port if rest else ServerSettings().port
    host, port = values[0] or "127.0.0.1", default if values[1] is None else values[1]
    if not port:
        raise OptionError(
            f"{where_of(names[1], given)}: the system chooses the port, so none is known to call"
        )
    return _reachable(host), port


def read_here_settings(
    flags: Flags, server: Flags, environment: Mapping[str, str] = os.environ
) -> tuple[float, TlsSources | None]:
    """Reads how a server of the flags `server` is asked on its machine by a client of `flags`.

    Returns the time in seconds, and the certificate to present, None where the server speaks no TLS: the
    client's own, else the server's. Raises OptionError like :func:`read_settings`.
    """
    given = gather(CLIENT_OPTIONS, flags, environment, {})
    values = _values(CLIENT_OPTIONS, given)
    timeout: float = values.get("timeout", ClientSettings().timeout)
    names = ("tls-cert", "tls-key", "tls-client-ca")
    options = [option for option in SERVER_OPTIONS if option.name in names]
    of_server = _values(options, _server_given(server, environment))
    if "tls_cert" not in of_server:
        return timeout, None
    own = {name: values[f"tls.{name}"] for name in ("cert", "key") if f"tls.{name}" in values}
    before = "" if own else "tls-"
    if not own and "tls_client_ca" in of_server:
        own = {"cert": of_server["tls_cert"], "key": of_server.get("tls_key")}
    try:
        return timeout, TlsSources(**own).held()
    except BadPem as error:
        raise OptionError(f"{where_of(before + error.argument, given)}: {error.text}") from None


def _reachable(host: str) -> str:
    """Names this machine where a server listens on its every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def read_catalogue_path(flags: Flags, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Reads where the operator's catalogue is; raises OptionError like :func:`read_settings`."""
    path: Path | None = _server_value("catalogue", flags, environment)
    return path


def read_traces_endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """Reads where OpenTelemetry's own variables send traces, None where nowhere; its SDK reads the others.

    Raises OptionError where they ask for an exporter or a protocol that is not offered, and where an address
    or headers are not of the form that the SDK reads; values of both may be secret, and are not repeated.
    """
    address, endpoint = _first_of(
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"), environment
    )
    _, disabled = _first_of(("OTEL_SDK_DISABLED",), environment)
    variable, exporter = _first_of(("OTEL_TRACES_EXPORTER",), environment)
    if not endpoint or disabled.lower() == "true" or exporter == "none":
        return None
    if exporter not in ("", "otlp", "otlp_proto_grpc"):
        raise OptionError(f"{variable}: {exporter!r} is not offered: traces go to otlp, or to none")
    variable, protocol = _first_of(
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"), environment
    )
    if protocol not in ("", "grpc"):
        text = "is not offered: a collector takes grpc, at its port 4317 as a rule"
        raise OptionError(f"{variable}: {protocol!r} {text}")
    # The SDK would take an address without a scheme for one of TLS.
    _, insecure = _first_of(
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"), environment
    )
    if not insecure and not _URL.match(endpoint):
        raise OptionError(f"{address}: write http://HOST:PORT, or https:// for TLS")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
        if not all(map(_is_header, environment.get(variable, "").split(","))):
            raise OptionError(f"{variable}: write NAME=VALUE,…")
    return endpoint


def drop_empty(prefix: str) -> None:
    """Takes variables that are set to nothing out of the environment of this process."""
    for variable in [name for name in os.environ if name.startswith(prefix)]:
        if not os.environ[variable].strip():
            del os.environ[variable]


def _is_header(text: str) -> bool:
    """Tells whether a text is a header as the SDK reads and gRPC sends it, or nothing."""
    if not text.strip(" \t"):
        return True
    value = unquote(text.partition("=")[2])
    return _HEADER.fullmatch(text) is not None and value.isascii() and value.isprintable()


def _first_of(variables: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str]:
    """Finds the first of some variables that is set, and its value; "" for both where none is."""
    given = ((name, environment.get(name, "").strip()) for name in variables)
    return next((each for each in given if each[1]), ("", ""))


def may_color() -> bool:
    """Tells whether the environment leaves a terminal its colours (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def forgotten_token(settings: ServerSettings) -> bool:
    """Tells whether only the client's RERANK_TOKEN is set where the server's is meant."""
    return not token_count(settings) and bool(os.environ.get(CLIENT_TOKEN_VARIABLE))


def _server_value(name: str, flags: Flags, environment: Mapping[str, str]) -> Any:
    """Reads one of the server's options by its name; None where it is not given."""
    options = [option for option in SERVER_OPTIONS if option.name == name]
    return next(iter(_values(options, _given(options, flags, environment)).values()), None)


def _server_given(flags: Flags, environment: Mapping[str, str]) -> dict[str, Given]:
    given = _given(SERVER_OPTIONS, flags, environment)
    if "host" in given and socket_path(given["host"].texts[0]) is None:
        given.setdefault("rest-host", given["host"])
    return given


def _given(options: Sequence[Option], flags: Flags, environment: Mapping[str, str]) -> dict[str, Given]:
    """Finds what flags, variables and the file of settings give to options of a server."""
    path = gather([CONFIG_OPTION], flags, _checked(environment), {}).get(CONFIG_OPTION.name)
    known = {option.name: option for option in (*SERVER_OPTIONS, *REST_OPTIONS)}
    file = read_file(path.texts[0], path.where, known.values()) if path else {}
    return gather(options, flags, environment, file)


def _values(options: Sequence[Option], given: Mapping[str, Given]) -> dict[str, Any]:
    """Reads the texts of options, by setting; an option that is not given is left out."""
    values: dict[str, Any] = {}
    for option in options:
        if found := given.get(option.name):
            read = tuple(_value(option, found.where, text) for text in found.texts)
            values[option.setting] = read if option.repeatable else read[0]
    return values


def _value(option: Option, where: str, text: str) -> Any:
    try:
        return option.read(text)
    except ValueError as error:
        raise OptionError(f"{where}: {text!r} {error}") from None


def _checked(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the environment; raises OptionError for a variable that looks like a setting and is none."""
    options = (CONFIG_OPTION, *SERVER_OPTIONS, *CLIENT_OPTIONS, *REST_OPTIONS)
    known = {option.variable for option in options}
    known |= {*SERVER_TOKEN_VARIABLES, CLIENT_TOKEN_VARIABLE, UPSTREAM_TOKEN_VARIABLE}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            hint = suggestion(name, sorted(known))
            if re.match(r"RERANK_(SERVICE|PORT)_", name):
                hint = "; Kubernetes sets it for a Service named rerank: set enableServiceLinks to false"
            raise OptionError(f"{name}: unknown environment variable{hint}")
    return environment


def _models(values: dict[str, Any], given: Mapping[str, Given]) -> tuple[ModelSpec, ...]:
    models = values.pop("models", (EMBEDDED,))
    models += tuple(replace(model, lazy=True) for model in values.pop("lazy_models", ()))
    pins, names = values.pop("pins", ()), [model.name for model in models]
    for pin in pins:
        if pin not in names:
            where = where_of("pin", given)
            raise OptionError(f"{where}: no model is named {pin!r}{suggestion(pin, names)}")
    return tuple(replace(model, pinned=model.name in pins) for model in models)


def _with_aliases(
    models: tuple[ModelSpec, ...], aliases: tuple[tuple[str, str], ...], given: Mapping[str, Given]
) -> tuple[ModelSpec, ...]:
    """Gives each model its aliases; raises OptionError for a name that is given twice."""
    names = [model.name for model in models]
    every = [*names, *(alias for alias, _ in aliases)]
    twice = [name for place, name in enumerate(every) if name in every[:place]]
    if twice:
        raise OptionError(
            f"{where_of('model', given)}, {where_of('alias', given)}: the name {twice[0]!r} is given twice"
        )
    for alias, name in aliases:
        if name not in names:
            hint = suggestion(name, names)
            raise OptionError(
                f"{where_of('alias', given)}: {alias}={name}: no --model is named {name!r}{hint}"
            )
    aliases_of = {name: tuple(alias for alias, of in aliases if of == name) for name in names}
    return tuple(replace(model, aliases=aliases_of[model.name]) for model in models)


def _with_calibrations(
    models: tuple[ModelSpec, ...], calibrations: tuple[tuple[str, Path], ...], given: Mapping[str, Given]
) -> tuple[ModelSpec, ...]:
    """Gives each model its calibration; raises OptionError for an unknown model, or a second file of one."""
    names, files = [model.name for model in models], dict[str, Path]()
    for name, file in calibrations:
        if name not in names:
            hint = suggestion(name, names)
            text = f"{name}={file}: no --model is named {name!r}{hint}"
            raise OptionError(f"{where_of('calibration', given)}: {text}")
        if files.setdefault(name, file) != file:
            text = f"the model {name!r} is given two files: {files[name]}, {file}"
            raise OptionError(f"{where_of('calibration', given)}: {text}")
    return tuple(replace(model, calibration=files.get(model.name)) for model in models)


def _check_socket(host: str, port: str, given: Mapping[str, Given]) -> None:
    """Raises OptionError where a port is given to a Unix socket, which has none."""
    if socket_path(host) is not None and port in given and given[port].texts[0] != "off":
        raise OptionError(f"{given[port].where}: a Unix socket ({host}) has no port: leave it out")
