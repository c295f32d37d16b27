"""The page of the client: its programs run, and its tables tell of every error and the real numbers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rerank_grpc import client as exported
from rerank_grpc.client import RerankError
from rerank_grpc.client.channel import LEAST_HANG_TIMEOUT, channel_options
from rerank_grpc.client.core import MAX_RETRIES
from rerank_grpc.client.errors import OUT_SECONDS
from rerank_grpc.client.many import CONCURRENCY, READ_AHEAD
from rerank_grpc.client.parts import AT_ONCE
from rerank_grpc.limits import LIMITS, MIB
from tests.client.conftest import ROOT
from tests.command import environment, served

PAGE = (ROOT / "docs/python.md").read_text("utf-8")
BLOCKS = re.findall(r"<!-- (test(?: of several)?) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
EXPECTED = (
    r"^0\.\d\d Bamboo is what pandas eat\.\n0\.\d\d Pandas",
    r"^0 embedded\n$",
    r"1 of 2\n(?s:.*)what do pandas eat -> bamboo\n(?s:.*)capital of France -> Paris\n$",
    r"^0\n$",
)


@pytest.fixture(scope="module")
def targets():
    with served() as one, served() as other:
        yield one.target, other.target


def test_every_program_of_the_page_is_run():
    assert len(BLOCKS) == len(EXPECTED) == PAGE.count("```python")


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_a_program_does_what_the_page_says(targets, number):
    _, text = BLOCKS[number]
    for name, target in zip(("rerank-a:50051", "rerank-b:50051"), targets, strict=True):
        text = text.replace(name, target)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text.replace("localhost:50051", targets[0])],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(EXPECTED[number], done.stdout)


def test_the_table_of_errors_has_each_of_them_once():
    errors = {
        name
        for name in exported.__all__
        if isinstance(each := getattr(exported, name), type) and issubclass(each, RerankError)
    }
    listed = re.findall(r"(?m)^\| `([A-Z]\w+)` \|", PAGE)
    assert sorted(listed) == sorted(errors - {"RerankError", "TransportError"})


def test_the_numbers_of_the_page_are_the_clients():
    options = dict(channel_options("rerank.internal:50051", 3))
    assert options["grpc.keepalive_time_ms"] == 330_000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 10_000
    assert options["grpc.initial_reconnect_backoff_ms"] == 200
    assert options["grpc.max_reconnect_backoff_ms"] == 2_000
    assert options["grpc.min_reconnect_backoff_ms"] == 5_000
    assert (MAX_RETRIES, OUT_SECONDS, LEAST_HANG_TIMEOUT) == (4, 1, 2)
    assert (CONCURRENCY, READ_AHEAD, AT_ONCE) == (8, 4, 4)
    assert (LIMITS.documents, LIMITS.message_bytes, LIMITS.reply_bytes) == (1_000, 8 * MIB, 16 * MIB)
    assert LIMITS.deadline_seconds == 120
