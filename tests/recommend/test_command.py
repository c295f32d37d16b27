"""`rerank-grpc recommend` as its user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.cli import main
from tests.command import environment, run
from tests.recommend.shapes import write_catalogue

QUICK = ("--candidates=2,4", "--tokens=16", "--seconds=0.3", "--max-batch-tokens=1024", "--device=cpu")
FIELDS = {
    "model": str,
    "id": str,
    "at_hand": bool,
    "basis": str,
    "documents_per_second": float,
    "latencies": list,
    "tokens_per_document": float,
    "others_share": float,
    "load_seconds": float,
    "resident_bytes": int,
    "most_bytes_of_a_server": int,
    "precision": str,
    "device": str,
    "parameters_millions": int,
    "max_tokens": int,
    "languages": list,
    "licence": str,
    "quality": list,
    "fits_candidates": list,
}


def test_json_has_the_embedded_model_by_its_own_weights_and_another_by_its_shape(tmp_path: Path) -> None:
    catalogue, output = write_catalogue(tmp_path), tmp_path / "output"
    ended = run(
        *("recommend", "embedded", "tiny-bert", "tiny-broken", "tiny-twin", *QUICK),
        *("--catalogue", str(catalogue), "--json", "--commercial", "--latency-ms=60000"),
        *("--output", str(output)),
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert json.loads((output / "recommend.json").read_text()) == told
    assert (output / "recommend.png").read_bytes().startswith(b"\x89PNG")
    assert set(told) == {
        "form",
        "machine",
        "measured_with",
        "demands",
        "models",
        "left_out",
        "advice",
    }
    assert told["measured_with"] == {"candidates": [2, 4], "tokens_per_document": 16, "seconds": 0.3}
    assert told["left_out"] == {
        "tiny-broken": "its licence, none stated, does not allow commercial use",
        "tiny-twin": "its licence, CC-BY-NC-4.0, does not allow commercial use",
    }
    by_name = {each["model"]: each for each in told["models"]}
    assert {name: each["basis"] for name, each in by_name.items()} == {
        "tiny-bert": "random weights",
        "embedded": "own weights",
    }
    assert told["models"][0]["model"] == "tiny-bert"  # it alone has a figure of its quality
    for each in told["models"]:
        assert {name: type(each[name]) for name in FIELDS} == FIELDS
        assert each["reference"] is None
        assert each["problem"] is None
        assert each["fits_candidates"] == [2, 4]
        assert set(each["latencies"][0]) == {"candidates", "calls", "p50", "p95"}
    assert by_name["tiny-bert"]["quality"] == [
        {"benchmark": "B", "value": 50, "source": "https://example.org/table", "notes": []}
    ]
    assert told["advice"][0].startswith("For 2 candidates in 60.0 s: tiny-bert (")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_is_done_and_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    # So many that it is not done before the signal comes, however late that is.
    names = ["tiny-bert", "tiny-modern", "tiny-deberta", "tiny-electra", "tiny-mpnet", "tiny-qwen"]
    catalogue, own = write_catalogue(tmp_path, *names), tmp_path / "temporary"
    own.mkdir()
    command = [sys.executable, "-m", "rerank_grpc", "recommend", *names, *QUICK]
    process = subprocess.Popen(
        [*command, "--catalogue", str(catalogue)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(TMPDIR=str(own)),
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("1 of 6: tiny-bert: random weights, about ")
        process.send_signal(number)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    first, second, *_ = output.splitlines()
    assert first.split()[:2] == ["model", "docs/s"]
    assert second.startswith("tiny-bert ")
    assert "For 2 candidates in 300 ms: " in output
    assert max(map(len, output.splitlines())) <= 100
    assert [name for name in os.listdir(own) if name.startswith("rerank-grpc-recommend-")] == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["acme/unknown"], 1, "neither on this machine nor in the catalogue"),
        (["--candidates", "20,x"], 2, "'20,x' is not a list of whole numbers"),
        (["--candidates", "0"], 2, "'0' is not a list of whole numbers"),
        (["--tokens", "9000"], 2, "'9000' is not a whole number from 1 to 8,192"),
        (["--seconds", "-1"], 2, "'-1' is not a number above 0"),
        (["--latency-ms", "nan"], 2, "'nan' is not a number above 0"),
        (["--languages", "zh,,en"], 2, "'zh,,en' is not a list of words"),
        (["--precision", "fp64"], 2, "--precision"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", *arguments]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_constraints_that_leave_nothing_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "embedded", "--languages", "zh"]) == 1
    output = capsys.readouterr().out
    assert "left out by --languages, --licence or --commercial: embedded" in output
    assert "No model was measured: nothing can be recommended." in output


def test_a_shape_in_the_wrong_form_is_an_error_of_the_catalogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    text = '[[model]]\nid = "acme/x"\nkind = "cross-encoder"\nfamily = "bert"\n'
    for line, said in (
        ("shape = 3", "shape is 3, which is of the wrong type"),
        ('quality = [{ benchmark = "B" }]', "quality has benchmark, value, languages and source"),
        (
            'quality = [{ benchmark = "B", value = 101, languages = ["en"], source = "s" }]',
            "value is a number from 0 to 100",
        ),
        (
            'quality = [{ benchmark = "B", value = 1, languages = ["en"], source = "s", notes = "n" }]',
            "and perhaps notes",
        ),
    ):
        path.write_text(text + line)
        assert main(["recommend", "--catalogue", str(path)]) == 1
        assert said in capsys.readouterr().err
