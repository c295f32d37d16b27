"""What the chart's tests share: its files of values, and how a server would read a rendered command."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.cli.parser import parse
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings
from tests.deploy.kubernetes import VALUES, Object, environment_of

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
TOKEN = "s3cret"
every_file = pytest.mark.parametrize("name", ["", *VALUES])


def settings_of(container: Object, tokens: Path) -> ServerSettings:
    """Reads a container's command line and variables as the server would."""
    arguments = [each.replace("/run/secrets/rerank/tokens", str(tokens)) for each in container["args"]]
    parsed = parse(arguments)
    assert parsed.command == "serve"
    return read_settings(parsed.flags, environment_of(container))
