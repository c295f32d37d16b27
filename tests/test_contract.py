"""The contract: what is generated, what may not break, and the limits it states."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.limits import LIMITS
from rerank_grpc.v1 import rerank_pb2
from rerank_grpc.wire.status import CODES, SHORTEST_DELAY_SECONDS

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("proto/rerank/v1/rerank.proto")
BUF = ROOT / "tools/buf/node_modules/.bin/buf"


@pytest.fixture
def buf(tmp_path):
    """Returns a function that runs buf on a copy of the contract, changed as told."""
    if not BUF.exists():
        if os.environ.get("CI"):
            pytest.fail("buf is missing: `make lint` installs it")
        pytest.skip("buf is missing: `make lint` installs it")

    def run(*arguments, change=lambda text: text):
        target = tmp_path / PROTO
        # The baseline is of all protocols that are served, so none may be missing.
        shutil.copytree(ROOT / "proto", tmp_path / "proto", dirs_exist_ok=True)
        target.write_text(change((ROOT / PROTO).read_text()))
        shutil.copy(ROOT / "buf.yaml", tmp_path)
        return subprocess.run([BUF, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


AGAINST = ("breaking", "--against", str(ROOT / "tools/buf/rerank.v1.binpb"))


def test_the_contract_breaks_nothing_that_was_released(buf):
    done = buf(*AGAINST)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("string query = 2;", "string query = 99;", "Previously present field"),
        ("float relevance_score = 3;", "double relevance_score = 3;", "changed type"),
        ("MODEL_STATE_READY = 3;", "MODEL_STATE_READY = 7;", "enum value"),
        ("rpc Health(HealthRequest)", "rpc Healthy(HealthRequest)", "Previously present RPC"),
    ],
)
def test_a_renumbered_or_changed_field_fails(buf, old, new, complaint):
    done = buf(*AGAINST, change=lambda text: text.replace(old, new))
    assert done.returncode == 100
    assert complaint in done.stdout


def test_a_field_without_a_comment_fails(buf):
    assert buf("lint").returncode == 0
    added = "message ListModelsRequest {\n  string filter = 1;\n}"
    done = buf("lint", change=lambda text: text.replace("message ListModelsRequest {}", added))
    assert "should have a non-empty comment" in done.stdout


def test_the_stubs_are_what_the_contract_generates():
    command = [sys.executable, "scripts/generate_stubs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_stream_takes_the_very_fields_of_the_unary_call():
    def fields(message):
        return [
            (field.number, field.name, field.type, field.is_repeated, field.has_presence, field.message_type)
            for field in message.DESCRIPTOR.fields
        ]

    assert fields(rerank_pb2.StreamRerankRequest) == fields(rerank_pb2.RerankRequest)
    summary = {field.name: field.type for field in rerank_pb2.RerankSummary.DESCRIPTOR.fields}
    response = {field.name: field.type for field in rerank_pb2.RerankResponse.DESCRIPTOR.fields}
    assert summary.items() <= response.items()
    assert response.keys() - summary.keys() == {"results"}


def test_every_reason_of_the_contract_is_an_error_of_ours():
    names = set(rerank_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert names == {reason.value for reason in Reason}


def comments():
    """Reads each comment of the contract, by the declaration it first stands above."""
    block: list[str] = []
    found: dict[str, str] = {}
    for line in (ROOT / PROTO).read_text().splitlines():
        line = line.strip()
        if line.startswith("//"):
            block.append(line.removeprefix("//").strip())
            continue
        if block and line:
            found.setdefault(line, " ".join(block))
        block = []
    return found


@pytest.mark.parametrize(
    ("declaration", "stated"),
    [
        ("string text = 1;", f"At most {LIMITS.characters:,} characters"),
        ("string id = 2;", f"At most {LIMITS.id_characters:,} characters"),
        ("message RerankRequest {", f"At most {LIMITS.message_bytes >> 20} MiB"),
        ("string query = 2;", f"at most {LIMITS.characters:,} characters"),
        ("repeated Document documents = 3;", f"1 to {LIMITS.documents:,};"),
        ("bool return_documents = 5;", f"maximum receive size to {LIMITS.reply_bytes >> 20} MiB"),
        ("string instruction = 7;", f"At most {LIMITS.characters:,} characters"),
        ("uint32 max_chunks_per_document = 10;", f"At most {LIMITS.chunks};"),
        ("ERROR_REASON_QUEUE_FULL = 5;", f"{ServerSettings().max_calls} by default"),
    ],
)
def test_the_limits_stated_are_the_limits_kept(declaration, stated):
    assert stated in comments()[declaration]


def test_the_code_of_a_reason_is_the_one_stated():
    stated = comments()
    for cls, code in CODES.items():
        if cls.reason is not None:
            number = rerank_pb2.ErrorReason.Value(cls.reason.value)
            assert f" {code.name}" in stated[f"{cls.reason.value} = {number};"]


def test_the_shortest_delay_stated_is_the_one_kept():
    assert f"at least {SHORTEST_DELAY_SECONDS * 1000:.0f} ms" in (ROOT / PROTO).read_text()
