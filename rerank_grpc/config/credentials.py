"""Tokens, certificates and keys: the options and variables that name them, to what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_grpc.access.entries import BAD_TOKEN, NOTHING, TOKEN, Known, digest_of
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.config.options import SERVER_TOKEN_VARIABLES, OptionError
from rerank_grpc.config.origins import Given, taken_out, where_of
from rerank_grpc.config.settings import ANY_NAME, ModelSpec
from rerank_grpc.files.obstacles import MOST_BYTES, obstacle
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.pair import TlsFiles
from rerank_grpc.tls.pem import BadPem
from rerank_grpc.units import in_bytes


def accepted_tokens(
    given: Mapping[str, Given], environment: Mapping[str, str], models: Sequence[ModelSpec] = ()
) -> dict[str, Any]:
    """Reads the tokens that a server accepts, by setting; without models their names are not checked."""
    tokens = variable_tokens(environment)
    names = {
        name: model.name for model in models for name in (model.name, *model.aliases) if name != ANY_NAME
    }
    known = Known(names or None, frozenset(map(digest_of, tokens)))
    return {"access_tokens": tokens, "token_file": token_file(given.get("token-file"), known)}


def variable_tokens(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Reads the tokens that a server's variables hold, each once; raises OptionError."""
    listed, *single = SERVER_TOKEN_VARIABLES
    texts = environment[listed].split(",") if environment.get(listed) else ()
    tokens = [_token(text.strip(), listed) for text in texts]
    tokens += [token for name in single if (token := token_in(name, environment))]
    return tuple(dict.fromkeys(tokens))


def token_file(given: Given | None, known: Known = NOTHING) -> TokenFile | None:
    """Reads the file of tokens that an option names; raises OptionError."""
    if given is None:
        return None
    path = Path(given.texts[0])
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {in_bytes(MOST_BYTES)}")
        return TokenFile.of(path, content, known)
    except OSError as error:
        raise OptionError(f"{given.where}: cannot read {str(path)!r}: {obstacle(path, error)}") from None
    except ValueError as error:
        raise OptionError(f"{given.where}: {str(path)!r} is no file of tokens: {error}") from None


def token_in(variable: str, environment: Mapping[str, str]) -> str | None:
    """Reads the token of a variable, None where it is not set; raises OptionError."""
    text = environment.get(variable)
    return _token(text, variable) if text else None


def _token(text: str, origin: str) -> str:
    """Checks one token, and never repeats it: an HTTP header carries it."""
    if not TOKEN.fullmatch(text):
        raise OptionError(f"{origin}: {BAD_TOKEN}")
    return text


def server_tls(values: dict[str, Any], given: Mapping[str, Given]) -> TlsFiles | None:
    """Takes out the values of TLS, and reads their files; raises OptionError."""
    cert, key, client_ca = (values.pop(name, None) for name in ("tls_cert", "tls_key", "tls_client_ca"))
    if not (cert or key or client_ca):
        return None
    if not (cert and key):
        where = next(given[name].where for name in ("tls-cert", "tls-key", "tls-client-ca") if name in given)
        missing = " and ".join(
            name for name, value in (("--tls-cert", cert), ("--tls-key", key)) if value is None
        )
        raise OptionError(f"{where}: TLS needs a certificate and its key: give {missing} too")
    files = TlsFiles(cert, key, client_ca)
    try:
        return replace(files, pair=files.read())
    except BadPem as error:
        raise OptionError(f"{where_of(error.argument.removeprefix('--'), given)}: {error.text}") from None


def caller_tls(values: dict[str, Any], prefix: str, given: Mapping[str, Given]) -> TlsSources | None:
    """Takes out the values of a caller's TLS, and reads its files; None for plaintext. Raises OptionError."""
    parts = taken_out(values, prefix)
    switch = parts.pop("on", None)
    sources = TlsSources(**parts)
    before = prefix.partition("tls.")[0]
    try:
        if sources.ask_for_tls(None if switch is None else switch == "on"):
            return sources.held()
    except BadPem as error:
        option = (before + error.argument).replace("_", "-")
        raise OptionError(f"{where_of(option, given)}: {error.text}") from None
    return None
