"""`rerank-grpc config`: the settings that a server would have, and where each comes from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from rerank_grpc.cli import terminal
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.options import CONFIG_OPTION, REST_OPTIONS, SERVER_OPTIONS, Option, OptionError
from rerank_grpc.config.origins import Effective
from rerank_grpc.config.reading import read_effective
from rerank_grpc.config.settings_file import write_file

_OWN = {"serve": SERVER_OPTIONS, "rest": REST_OPTIONS}


def options() -> list[Option]:
    """Lists the options of both servers, each name once."""
    names = [option.name for option in SERVER_OPTIONS]
    return [CONFIG_OPTION, *SERVER_OPTIONS, *(each for each in REST_OPTIONS if each.name not in names)]


def run(parsed: argparse.Namespace) -> int:
    """Prints the settings; raises OptionError where the server itself would, and for an option it lacks."""
    own = {option.name for option in (CONFIG_OPTION, *_OWN[parsed.of])}
    for name, given in parsed.flags.items():
        if given is not None and name not in own:
            raise OptionError(f"--{name}: `rerank-grpc {parsed.of}` has no such option: see config --for")
    rows = read_effective(parsed.flags, rest=parsed.of == "rest")
    for line in write_file(rows) if parsed.toml else _table(rows, Screen.of(sys.stdout)):
        print(line)
    return 0


def _table(rows: Iterable[Effective], screen: Screen) -> Iterable[str]:
    cells = [
        (row.name, ", ".join(row.texts) or "none", ", ".join(map(str, row.origins)) or "default")
        for row in rows
    ]
    return terminal.table(("setting", "value", "from"), cells, screen)
