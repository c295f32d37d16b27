"""What the chart's tests share: its files of values, and how a server would read a rendered command."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.cli.parser import parse
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings
from tests.authority import HERE, Authority
from tests.deploy.kubernetes import VALUES, Object, environment_of

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
TOKEN = "s3cret"
every_file = pytest.mark.parametrize("name", ["", *VALUES])


def placed(argument: str, tokens: Path) -> str:
    """Puts files of the tests, in the folder of the tokens, in place of those that Secrets hold in a pod."""
    text = argument.replace("/run/secrets/rerank/tokens", str(tokens))
    if "/run/secrets/tls/" in text and not (tokens.parent / "tls").exists():
        authority = Authority(tokens.parent / "ca")
        (tokens.parent / "tls").mkdir()
        issued = authority.issue("server", *HERE)
        for name, file in (("cert", issued.cert), ("key", issued.key), ("client-ca", authority.cert)):
            (tokens.parent / "tls" / f"{name}.pem").write_bytes(file.read_bytes())
    return text.replace("/run/secrets/tls/", f"{tokens.parent}/tls/")


def settings_of(container: Object, tokens: Path) -> ServerSettings:
    """Reads a container's command line and variables as the server would."""
    arguments = [placed(each, tokens) for each in container["args"]]
    parsed = parse(arguments)
    assert parsed.command == "serve"
    return read_settings(parsed.flags, environment_of(container))
