"""`rerank-grpc batch` reranks files: every form, in order, and bad rows are told."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_grpc.batch.scoring import cpu_threads
from rerank_grpc.cli import main
from rerank_grpc.config import allowance
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.reranker import build_reranker
from rerank_grpc.types import Document, RerankRequest
from tests.batch.conftest import BLOCK
from tests.batch.files import begin, read_lines, rerank, rows, write_lines
from tests.batch.test_resume import children, entries
from tests.support import wait_for
from tests.terminals import Terminal


def test_results_are_those_of_the_reranker_in_the_order_of_the_input(source, whole, model):
    settings = ServerSettings(models=(ModelSpec("m", str(model)),), device="cpu", precision="fp32")
    reranker = build_reranker(settings)
    reranker.registry.start()
    reranker.registry.wait_until_loaded()
    made, found = read_lines(source), read_lines(whole)
    assert [row["id"] for row in found] == [row["id"] for row in made]
    for row, answer in list(zip(made, found, strict=True))[:60]:
        request = RerankRequest(row["query"], tuple(map(Document, row["documents"])))
        expected = {each.index: each for each in reranker.rerank(request).results}
        assert sorted(each["index"] for each in answer["results"]) == sorted(expected)
        logits = [each["logit"] for each in answer["results"]]
        assert logits == sorted(logits, reverse=True)
        for each in answer["results"]:
            assert each["logit"] == pytest.approx(expected[each["index"]].logit, abs=1e-4)
            assert each["relevance_score"] == pytest.approx(expected[each["index"]].relevance_score, abs=1e-5)
    reranker.registry.close()


def test_parquet_goes_in_and_comes_out_as_a_file_or_as_a_folder(tmp_path, source, whole, model):
    made = read_lines(source)
    for row in made:
        row["documents"] = [{"id": f"d{n}", "text": text} for n, text in enumerate(row["documents"])]
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "in.parquet")
    for output in (tmp_path / "out.parquet", tmp_path / "folder"):
        done = rerank(tmp_path / "in.parquet", output, model, *BLOCK)
        assert done.returncode == 0, done.stderr
        found = pq.read_table(output)
        assert found.schema.field("results").type.value_type.field("logit").type == pa.float32()
        expected = read_lines(whole)
        for row, answer in zip(expected, found.to_pylist(), strict=True):
            assert (row["id"], [each["index"] for each in row["results"]]) == (
                answer["id"],
                [each["index"] for each in answer["results"]],
            )
            assert [f"d{each['index']}" for each in answer["results"]] == [
                each["id"] for each in answer["results"]
            ]
            assert [each["logit"] for each in row["results"]] == pytest.approx(
                [each["logit"] for each in answer["results"]]
            )
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names[:2] == ["_batch.json", "part-0000000.parquet"]
    assert not list(tmp_path.glob("*.partial"))


def test_flat_pairs_get_a_score_a_row(tmp_path, model):
    made = [{"query": row["query"], "document": text} for row in rows(20) for text in row["documents"]]
    lines = write_lines(tmp_path / "in.jsonl.gz", made)
    assert rerank(lines, tmp_path / "out.jsonl", model).returncode == 0
    found = read_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(1, len(made) + 1))
    assert set(found[0]) == {"id", "relevance_score", "logit"}
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "in.parquet")
    assert rerank(tmp_path / "in.parquet", tmp_path / "out.parquet", model).returncode == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["id", "relevance_score", "logit"]
    assert table.column("id").to_pylist() == list(range(1, len(made) + 1))
    assert table.column("logit").to_pylist() == pytest.approx([row["logit"] for row in found])


def test_bad_rows_go_to_a_side_file_and_the_others_are_scored(tmp_path, model):
    good = rows(4)
    made = [good[0], "{", good[1] | {"documents": []}, good[1], good[1], good[2] | {"query": 3}, good[3]]
    output = tmp_path / "out.jsonl"
    done = rerank(write_lines(tmp_path / "in.jsonl", made), output, model)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == f"4 rows were not scored: {output}.bad.jsonl says why"
    assert [row["id"] for row in read_lines(output)] == ["q0", "q1", "q3"]
    bad = read_lines(tmp_path / "out.jsonl.bad.jsonl")
    assert [(each["row"], each.get("id")) for each in bad] == [(2, None), (3, "q1"), (5, "q1"), (6, "q2")]
    assert bad[0]["reason"].startswith("is not JSON")
    assert bad[2]["reason"] == "id: row 4 has the same"


def test_a_file_of_bad_rows_alone_and_an_empty_one_give_an_empty_output(tmp_path, model):
    bad = write_lines(tmp_path / "bad.jsonl", ["{"] * 5)
    assert rerank(bad, tmp_path / "out.parquet", model).returncode == 3
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert rerank(empty, tmp_path / "out.jsonl", model).returncode == 0
    assert read_lines(tmp_path / "out.jsonl") == []


def test_a_row_of_more_documents_than_a_request_holds_keeps_their_order(tmp_path, model):
    documents = [f"{number} of many" for number in range(2_100)]
    made = write_lines(tmp_path / "in.jsonl", [{"id": "a", "query": "1999 of many", "documents": documents}])
    assert rerank(made, tmp_path / "out.jsonl", model, "--top-n", "2050").returncode == 0
    (row,) = read_lines(tmp_path / "out.jsonl")
    indices = [each["index"] for each in row["results"]]
    assert len(set(indices)) == 2_050
    assert max(indices) >= 2_050


def test_two_workers_give_the_same_output_as_one_with_their_threads(tmp_path, source, model):
    outputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for output in outputs:
        done = rerank(source, output, model, *BLOCK, "--workers", "2")
        assert done.returncode == 0, done.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_pipe_gets_lines_that_tell_the_rate(source, tmp_path, model):
    done = rerank(source, tmp_path / "out.jsonl", model)
    assert re.fullmatch(
        r"[\d,]+ pairs of 400 rows, in [\d.]+ s, [\d,]+ pairs/s, batches \d+% full",
        done.stderr.splitlines()[-1],
    )
    assert "\r" not in done.stderr


def test_a_terminal_gets_one_line_that_is_renewed(source, tmp_path, model):
    where = ["--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--model", str(model)]
    options = ["--device", "cpu", "--block-pairs", "50", "--max-batch-tokens", "256"]
    with Terminal(80, 12, "batch", *where, *options) as terminal:
        terminal.wait_for(r"[\d,]+ pairs of 400 rows, in ")
        assert terminal.end() == 0
        assert b"\r" in terminal.raw
        assert not terminal.drawn.wrapped
        assert sum("pairs of" in text for text in terminal.lines) == 1


@pytest.mark.parametrize(
    ("output", "more", "reason"),
    [
        ("out.csv", (), "ends in neither .parquet nor .jsonl, nor names a folder"),
        ("out.jsonl.gz", (), "is written as .jsonl, and can be packed then"),
        (".", (), "--output: . has no name of its own"),
        ("..", (), "has no name of its own"),
        ("out.jsonl", ("--instruction", "find it"), "takes no instruction"),
        ("out.jsonl", ("--model", "/nowhere"), "/nowhere"),
        ("out.jsonl", ("--workers", "0"), "'0' is not a whole number above 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(source, tmp_path, model, output, more, reason):
    done = rerank(source, output if output == "." else tmp_path / output, model, *more)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("rerank-grpc: error: ")
    assert reason in line


def test_the_report_says_what_the_output_was_made_of(whole, model):
    report = json.loads(whole.with_name("out.jsonl.batch.json").read_text())
    assert report["rows"] == 400
    assert report["bad"] == 0
    assert report["begun"]["model"]["source"] == str(model)
    assert report["begun"]["model"]["precision"] == "fp32"
    assert report["begun"]["max_batch_tokens"] == 1024


@pytest.mark.parametrize(
    ("missing", "more", "remedy"),
    [("pyarrow", [], "rerank-grpc[batch]"), ("ray", ["--ray", "auto"], "rerank-grpc[server,ray]")],
)
def test_a_missing_package_is_one_line_with_the_remedy(tmp_path, monkeypatch, capsys, missing, more, remedy):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "rerank_grpc.batch.on_ray", raising=False)
    name = "in.parquet" if missing == "pyarrow" else "in.jsonl"
    made = write_lines(tmp_path / name, rows(1))
    assert main(["batch", "--input", str(made), "--output", str(tmp_path / "out.jsonl"), *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"needs {missing}, which is not installed" in line
    assert remedy in line


def test_ctrl_c_ends_the_command_and_its_worker_and_the_next_start_goes_on(tmp_path, source, whole, model):
    output = tmp_path / "out.jsonl"
    # Where these tests run behind a shell they ignore the signal, and what they start would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = begin(source, output, model, *BLOCK, most=4)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: entries(output) >= 2, 60)
    (worker,) = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    assert rerank(source, output, model, *BLOCK).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("report", ["[]", '{"begun": {}, "rows": 1, "pairs": 1, "bad": 0}'])
def test_a_report_that_is_not_the_commands_is_no_proof_of_an_output(tmp_path, source, capsys, report):
    (tmp_path / "out.jsonl").write_text("mine")
    (tmp_path / "out.jsonl.batch.json").write_text(report)
    assert main(["batch", "--input", str(source), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "was not made by this command" in capsys.readouterr().err


def test_the_command_and_its_workers_follow_a_quota_of_processors(tmp_path, source, monkeypatch):
    monkeypatch.setattr(allowance, "processors", lambda _root: allowance.Processors(4, 2.5, 2))
    for variable in allowance.THREADS_VARIABLES:  # so that both are put back behind the test
        monkeypatch.setenv(variable, "")
        del os.environ[variable]
    unknown = str(tmp_path / "out.txt")  # a form that is not written: the command ends before any work
    assert main(["batch", "--input", str(source), "--output", unknown, "--model=embedded"]) == 1
    assert [os.environ[variable] for variable in allowance.THREADS_VARIABLES] == ["2", "2"]
    assert (cpu_threads(1), cpu_threads(2), cpu_threads(3)) == (2, 1, 1)
