"""A file is read as it was written; any other is refused with the field and what was expected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rerank_grpc.calibration.file import read_calibration, write_calibration
from rerank_grpc.errors import ConfigurationError
from tests.calibration.made import ISOTONIC, PLATT, made
from tests.command import environment

TOKENS, CHUNKS = "options.max_tokens_per_document", "options.max_chunks_per_document"


@pytest.fixture
def path(tmp_path):
    """A file that holds a calibration."""
    found = tmp_path / "m.calibration.json"
    write_calibration(found, made())
    return found


def refused(path) -> str:
    """Says by which line a file is refused."""
    with pytest.raises(ConfigurationError) as caught:
        read_calibration(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("each", [PLATT, ISOTONIC], ids=repr)
def test_what_is_written_is_read_the_same(path, each):
    write_calibration(path, made(each))
    assert read_calibration(path) == made(each)
    assert list(path.parent.iterdir()) == [path]


def test_an_editors_byte_order_mark_is_no_obstacle(path):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_calibration(path) == made()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["format"], "x", 'format: an object with "format": "rerank-grpc calibration" is expected'),
        (["version"], 2, "version: 1 is expected"),
        (["version"], True, "version: 1 is expected"),
        (["map", "slope"], -0.1, "map.slope: a number of 0 or more is expected"),
        (["map", "slope"], "3", "map.slope: a finite number is expected"),
        (["map", "slope"], True, "map.slope: a finite number is expected"),
        (["map", "slope"], 10**400, "map.slope: a finite number is expected"),
        (["map", "intercept"], float("nan"), "NaN: a finite number is expected"),
        (["map", "intercept"], float("inf"), "Infinity: a finite number is expected"),
        (["map", "method"], "beta", "map.method: one of platt, isotonic is expected"),
        (["map", "method"], [], "map.method: one of platt, isotonic is expected"),
        (["map"], 3, "map.method: one of platt, isotonic is expected"),
        (["map"], {"method": "isotonic", "knots": [[0, 0.5], [0, 0.6]]}, "map.knots[1]: a logit above"),
        (["map"], {"method": "isotonic", "knots": [[0, 0.5], [1, 0.4]]}, "map.knots[1]: a probability not"),
        (["map"], {"method": "isotonic", "knots": [[0, 0.5, 1]]}, "map.knots[0]: a list of 2 is expected"),
        (["map"], {"method": "isotonic", "knots": {}}, "map.knots: a list is expected"),
        (["map", "knots"], [], "map.knots: no such field is known; these are: slope, intercept"),
        (["model", "scoring"], "x", "model.scoring: one of sigmoid, cosine"),
        (["model", "revision"], "", "model.revision: a commit or a digest of the weights is expected"),
        (["model", "revision"], None, "model.revision: a text of at most"),
        (["model"], [], "model: an object is expected"),
        (["options", "max_tokens_per_document"], -1, "options.max_tokens_per_document: a count is expected"),
        (["options", "max_tokens_per_document"], 1.5, "options.max_tokens_per_document: a count is expected"),
        (["figures", "before", "ece"], 1.5, "figures.before.ece: a number from 0 to 1 is expected"),
        (["figures", "clean_separation"], 1, "figures.clean_separation: true or false is expected"),
        (["thresholds", 0, "aim"], "f1", 'thresholds[0].aim: "precision" or "recall" is expected'),
        (["labels", "unjudged"], "", 'labels.unjudged: "irrelevant" or "left-out" is expected'),
        (["sl\x1bope"], 1, "sl\\x1bope: no such field is known"),
        (["options", "max_tokens_per_document"], 5 * 10**9, f"{TOKENS}: a number from 0 to 4,294,967,295"),
        (["options", "max_chunks_per_document"], 5 * 10**9, f"{CHUNKS}: a number from 1 to 64"),
        (["options", "max_chunks_per_document"], 65, f"{CHUNKS}: a number from 1 to 64"),
        (["options", "max_chunks_per_document"], 0, f"{CHUNKS}: a number from 1 to 64"),
        (["options", "instruction"], "a\ud800", "options.instruction: holds a lone surrogate"),
        (["made_by"], "\udfff", "made_by: holds a lone surrogate"),
        (["made_by"], "a\x1bb", "made_by: a text without control characters"),
        (["model", "name"], "a\nb", "model.name: a text without control characters"),
        (["model", "hub_id"], "a\tb", "model.hub_id: a text without control characters"),
        (["model", "revision"], "1\x9b", "model.revision: a text without control characters"),
        (["model", "family"], "be\u2028rt", "model.family: a text without control characters"),
        (["model", "precision"], "\ud800", "model.precision: holds a lone surrogate"),
        (["made"], "yesterday", "made: a time by RFC 3339 is expected"),
        (["made"], "2026-11-30", "made: a time by RFC 3339 is expected"),
        (["made"], "2026-11-30T18:00:00", "made: a time by RFC 3339 is expected"),
        (["made"], "20261130T180000Z", "made: a time by RFC 3339 is expected"),
        (["made"], "2026-02-30T18:00:00Z", "made: a time by RFC 3339 is expected"),
        (["made"], "2026-11-30T18:00:00+99:00", "made: a time by RFC 3339 is expected"),
        (["made"], "٢٠٢٦-11-30T18:00:00Z", "made: a time by RFC 3339 is expected"),
    ],
    ids=str,
)
def test_a_field_edited_by_hand_is_named(path, place, value, said):
    content = json.loads(path.read_bytes())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    assert refused(path).startswith(said)


@pytest.mark.parametrize("when", ["2026-11-30T18:00:00Z", "2026-11-30t18:00:00.25+05:30"])
def test_a_time_by_rfc_3339_is_read(path, when):
    write_calibration(path, replace(made(), made=when))
    assert read_calibration(path).made == when


def test_every_field_is_needed(path):
    content = json.loads(path.read_bytes())
    for outer, inner in [(name, None) for name in content] + [("map", "slope"), ("model", "revision")]:
        rest = json.loads(path.read_bytes())
        del (rest[outer] if inner else rest)[inner or outer]
        path.with_name("less").write_text(json.dumps(rest))
        assert refused(path.with_name("less")).startswith(f"{outer}.{inner}" if inner else outer)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "is not JSON of a calibration"),
        (b'{"a": 1, "a": 2}', "a: one value is expected, and there are several"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "is not JSON of a calibration"),
        (b"null", "format: "),
        (b" " * (2 << 20), "the file: at most 1,048,576 bytes are expected"),
    ],
    ids=lambda each: repr(each[:20]),
)
def test_another_file_is_refused(path, content, said):
    path.write_bytes(content)
    assert refused(path).startswith(said)


def test_a_file_cut_off_is_refused_wherever_the_cut_is(path):
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert refused(path).startswith(("line ", "is not UTF-8"))


def test_a_gigabyte_is_refused_without_being_read(path):
    os.truncate(path, 1 << 30)
    assert refused(path).startswith("the file: at most")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo").startswith("the path: a regular file is expected")
    assert refused(tmp_path).startswith("the path: a regular file is expected")
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop").startswith("is a link that leads back to itself")
    assert refused(tmp_path / "none").startswith("no such file or directory")


FULL = """
import resource, signal, sys
from rerank_grpc.calibration.file import write_calibration
from tests.calibration.made import ISOTONIC, made
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as on a full disk
try:
    write_calibration(sys.argv[1], made(ISOTONIC))
except OSError as error:
    print(error.strerror)
"""


def test_what_cannot_be_written_whole_leaves_the_old_one(path):
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, env=environment(), capture_output=True, check=True, text=True)
    assert done.stdout == "File too large\n"
    assert read_calibration(path) == made()
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(path):
    mask = os.umask(0o022)
    try:
        write_calibration(path, made())
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
