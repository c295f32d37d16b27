"""What the operators' pages say in tables and numbers is what the code has."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from rerank_grpc.access.entries import TOKEN
from rerank_grpc.batch.journal import differs
from rerank_grpc.cli.process import ALARM_SECONDS
from rerank_grpc.config.options import (
    CLIENT_TOKEN_VARIABLE,
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    OptionError,
)
from rerank_grpc.config.reading import read_client_settings, read_effective, read_rest_settings, read_settings
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.config.settings_file import MOST_BYTES
from rerank_grpc.errors import BY_REASON, Reason
from rerank_grpc.http import metrics, protocol
from rerank_grpc.kept import Kept
from rerank_grpc.limits import LIMITS
from rerank_grpc.registry import eviction
from rerank_grpc.rest.errors import STATUSES
from rerank_grpc.rest.server import MAX_CONNECTIONS
from rerank_grpc.server.probes import channelz
from rerank_grpc.server.server import (
    HANDSHAKE_SECONDS,
    IDLE_SECONDS,
    MOST_ADMIN_CONNECTIONS,
    MOST_CONNECTIONS,
)
from rerank_grpc.wire.status import CODES
from tests.operations import ROOT, inline, read, rows

PACKAGE = ROOT / "rerank_grpc"
SETTINGS = ServerSettings()
ERRORS = {"ConfigurationError", "ModelLoadError", "OptionError", "Unservable", "TooLarge"}
# Of commands that an operator runs by hand: their remedy stands in the line that they print.
BY_HAND = {"checkpoints/convert.py", "checkpoints/pickles.py", "checkpoints/described.py"}
SERVING = (
    "checkpoints",
    "config",
    "evidence",
    "http",
    "kernels",
    "models",
    "registry",
    "server",
    "telemetry",
)
CLI = ("parser.py", "process.py", "serve.py", "watching.py")


def skeleton(node: ast.AST) -> str:
    """Returns the text of an expression, with dots in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(skeleton, node.values))
    if isinstance(node, ast.BinOp):
        return skeleton(node.left) + skeleton(node.right)
    return "…"


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Parses the modules by which a server starts and loads models."""
    for folder in (*SERVING, "tokenizer"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text("utf-8"))
    for name in CLI:
        yield f"cli/{name}", ast.parse((PACKAGE / "cli" / name).read_text("utf-8"))


def start_errors() -> set[str]:
    """Finds the one-line errors that a start can print, and the objections of the settings' readers."""
    found = set()
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                refused = node.func.id == "ValueError" and path.startswith("config/")
                if path not in BY_HAND and (node.func.id in ERRORS or refused):
                    found.add(skeleton(node.args[0]))
    # What is put together of other texts says nothing by itself.
    return {text for text in found if len(re.findall(r"[a-z]{2,}", text.removeprefix("tokenizer.json"))) > 1}


def told() -> list[str]:
    """Returns the parts of lines that the page on troubleshooting explains."""
    page = read("troubleshooting").partition("\n## It does not start")[2].partition("\n## It ends")[0]
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [part for cell in cells for part in re.findall(r"`([^`]+)`", cell)]


def is_in(part: str, text: str) -> bool:
    return re.search(".*".join(map(re.escape, part.split("..."))), text) is not None


def test_every_line_by_which_a_start_fails_is_explained():
    parts = told()
    unexplained = sorted(text for text in start_errors() if not any(is_in(part, text) for part in parts))
    assert unexplained == []


def test_every_line_that_is_explained_is_one_of_ours():
    modules = [ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")]
    texts = {skeleton(node) for tree in modules for node in ast.walk(tree) if isinstance(node, ast.expr)}
    assert [part for part in told() if not any(is_in(part, text) for text in texts)] == []


def test_every_reason_is_explained_with_its_codes():
    table = rows(read("troubleshooting"), "## Callers get an error")
    found = {row[0].strip("`"): row[1] for row in table}
    assert list(found) and set(found) == {reason.name for reason in Reason}  # noqa: PT018
    for reason in Reason:
        error = BY_REASON[reason]
        code: grpc.StatusCode = CODES[error]
        assert found[reason.name] == f"{code.name}, {STATUSES[error]}"
        why, remedy = next(row[2:] for row in table if row[0] == f"`{reason.name}`")
        assert min(len(why), len(remedy)) > 10


def test_every_exit_status_is_on_the_index_and_has_a_remedy():
    index = [row[0] for row in rows(read(""), "## Exit statuses")]
    assert index == ["0", "1", "2", str(os.EX_SOFTWARE), "142 (SIGALRM)", "143, 130"]
    ends = rows(read("troubleshooting"), "## It ends, or is started again and again")
    statuses = {number for row in ends for number in re.findall(r"\d+", row[0])}
    assert {number for cell in index for number in re.findall(r"\d+", cell)} <= statuses


def count(flags: dict[str, str], variables: dict[str, str]) -> int:
    """Counts the tokens that callers may send."""
    (row,) = (each for each in read_effective(flags, variables) if each.name == "tokens")
    return int(row.texts[0].split()[0])


def test_lists_are_separated_as_the_table_says(tmp_path):
    table = {row[0]: row for row in rows(read("settings"), "## What separates the values of a list")}
    variables, tokens, single, file = (re.findall(r"`([^`]+)`", cell) for cell in list(table)[:4])
    repeatable = {option.variable for option in (*SERVER_OPTIONS, *REST_OPTIONS) if option.repeatable}
    assert set(variables) == repeatable
    assert [row[1] for row in table.values()][:2] == ["commas", "commas"]
    two = {
        "RERANK_MODELS": "embedded, b=/b",
        "RERANK_LAZY_MODELS": "a=/a , b=/b",
        "RERANK_PINS": "embedded,embedded",
        "RERANK_CALIBRATIONS": "embedded=/c, embedded=/c",
    }
    two |= {"RERANK_ALIASES": "a=embedded,b=embedded", "RERANK_REST_CORS": "http://a, http://b"}
    for variable, text in two.items():
        name = variable.removeprefix("RERANK_").lower()
        settings = read_settings({}, {variable: text})
        values = {
            "models": settings.models,
            "lazy_models": [model for model in settings.models if model.lazy],
            "pins": [model for model in settings.models if model.pinned] * 2,
            "calibrations": [model for model in settings.models if model.calibration] * 2,
            "aliases": settings.models[0].aliases,
            "rest_cors": settings.rest.cors,
        }[name]
        assert len(values) == 2, variable
    assert set(two) | {"RERANK_TARGET"} == repeatable
    assert len(read_rest_settings({}, {"RERANK_TARGET": "a:1, b:2"}).targets) == 2
    assert len(read_rest_settings({"target": ["a:1,b:2", "c:3"]}, {}).targets) == 3
    assert tokens == [SERVER_TOKEN_VARIABLES[0]]
    assert count({}, {tokens[0]: "one, two"}) == 2
    assert set(single) == {*SERVER_TOKEN_VARIABLES[1:], CLIENT_TOKEN_VARIABLE, UPSTREAM_TOKEN_VARIABLE}
    for variable in SERVER_TOKEN_VARIABLES[1:]:
        assert count({}, {variable: "one,two"}) == 1
    assert read_client_settings({}, {CLIENT_TOKEN_VARIABLE: "one,two"}).token == "one,two"
    assert file == ["--token-file"]
    (tmp_path / "tokens").write_text("one,two\nthree\n")
    assert count({"token-file": str(tmp_path / "tokens")}, {}) == 2


def test_an_empty_variable_counts_as_unset_and_a_misspelt_one_is_refused():
    assert read_settings({}, {"RERANK_MODELS": ""}) == SETTINGS
    with pytest.raises(
        OptionError, match="RERANK_MODLES: unknown environment variable; did you mean RERANK_MODELS"
    ):
        read_settings({}, {"RERANK_MODLES": "embedded"})


NUMBERS: dict[str, list[tuple[str, object]]] = {
    "": [
        (r"^\| (\d+) \| gRPC", SETTINGS.port),
        (r"^\| (\d+) \| REST", SETTINGS.rest.port),
        (r"^\| (\d+) \| the admin port", SETTINGS.admin_port),
        (r"^\| (\d+) \| metrics", SETTINGS.metrics_port),
        (r"without tokens; (\d+) where REST runs alone", RestSettings().metrics_port),
        (r"in progress have (\d+) s \(`--grace`\)", SETTINGS.grace_seconds),
        (r"`RERANK_MODELS_DIR` \| `(\w+)`", SETTINGS.models_dir),
    ],
    "settings": [(r"at most (\d+) KiB", MOST_BYTES >> 10)],
    "running": [
        (r"at most ([\d,]+) for gRPC", MOST_CONNECTIONS),
        (r"([\d,]+) for REST", MAX_CONNECTIONS),
        (r"(\d+) on the admin port", MOST_ADMIN_CONNECTIONS),
        (r"without a call after a (minute)", {60.0: "minute"}[IDLE_SECONDS]),
        (r"an idle one for (\d+) s", SETTINGS.rest.keep_alive),
        (r"(\d+) for the metrics", metrics.MOST_CONNECTIONS),
        (r"to speak HTTP/2 within (\d+) s", HANDSHAKE_SECONDS),
        (r"A body may take (\d+) s", protocol.BODY_SECONDS),
        (r"longer only at (\d+) KiB/s", protocol.BODY_BYTES_PER_SECOND >> 10),
        (r"no more than (\d+) s without a byte", protocol.NO_PROGRESS_SECONDS),
        (r"as long as that took \((\d+) s to", eviction.LEAST_STAY_SECONDS),
        (r"as long as that took \(1 s to (\d+) min", eviction.MOST_STAY_SECONDS / 60),
    ],
    "troubleshooting": [
        (r"Up to ([\d,]+) documents", LIMITS.documents),
        (r"documents of ([\d,]+) characters", LIMITS.characters),
        (r"the message has more than (\d+) MiB", LIMITS.message_bytes >> 20),
        (r"A token is 1 to ([\d,]+) visible", int(TOKEN.pattern.rpartition(",")[2].rstrip("}"))),
        (r"fit the grace of (\d+) s", SETTINGS.grace_seconds),
    ],
    "debugging": [
        (r"at most (\d+) entries", channelz.MOST_RESULTS),
        (r"as old as (twenty) times", {20: "twenty"}[channelz.KEPT_FACTOR]),
    ],
    "manifests": [(r"the grace of (\d+) s", SETTINGS.grace_seconds)],
    "systemd": [(r"above the grace of (\d+) s", SETTINGS.grace_seconds)],
    "rest": [(r"its metrics are at port (\d+)", RestSettings().metrics_port)],
}  # fmt: skip


@pytest.mark.parametrize("page", NUMBERS)
def test_numbers_in_sentences_are_the_codes(page):
    text = read(page)
    for pattern, value in NUMBERS[page]:
        (said,) = set(re.findall(pattern, text, re.MULTILINE))
        assert said.replace(",", "") == (f"{value:g}" if isinstance(value, float) else str(value)), pattern


def test_the_process_ends_within_two_seconds_after_its_grace():
    assert ALARM_SECONDS < 2
    assert "the process ends within 2 s after it" in read("")


def test_what_one_version_has_kept_is_not_read_by_another_and_stays(tmp_path):
    kept = Kept("references", tmp_path)
    older, newer = ({"package": version, "model": "m"} for version in ("0.1.0", "0.2.0"))
    kept.write(older, {"answer": 1})
    assert kept.read(newer) is None
    kept.write(newer, {"answer": 2})
    assert (kept.read(older), kept.read(newer)) == ({"answer": 1}, {"answer": 2})


def test_a_batch_that_another_version_began_is_refused_by_name():
    told = differs(Path("out"), "format", "rerank-grpc", "0.1.0", "0.2.0")
    assert "begun with format rerank-grpc '0.1.0', and now it is '0.2.0'" in told


def test_the_pages_name_metrics_panels_that_the_dashboard_has():
    panels = {row[0] for row in rows(read("watching"), "## The dashboard")}
    named = re.findall(
        r"[Pp]anels? ([A-Z][\w/]*(?: [a-z]+)*?)(?: and ([A-Z][\w/]*))?(?= counts|;|\.)",
        read("troubleshooting"),
    )
    found = {name for pair in named for name in pair if name}
    assert found
    assert found <= panels


def test_paths_of_the_pages_are_the_same_as_in_the_unit():
    unit = (ROOT / "deploy/systemd/rerank-grpc.service").read_text("utf-8")
    for path in ("/etc/rerank-grpc/rerank.toml", "/etc/rerank-grpc/tokens", "/etc/rerank-grpc/environment"):
        assert path in inline(read("systemd"))
        assert path in unit
