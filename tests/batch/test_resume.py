"""A run that is ended at any moment goes on after its last complete block, and ends in the same output."""

import contextlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from multiprocessing import Pipe, Process

import pytest

from rerank_grpc.batch.blocks import Block
from rerank_grpc.batch.journal import JOURNAL, Entry, Journal
from rerank_grpc.batch.rows import BadRow
from rerank_grpc.batch.workers import Done, Workers, _Worker
from rerank_grpc.errors import ConfigurationError
from tests.batch.conftest import BLOCK
from tests.batch.files import arguments, begin, read_lines, rerank, rows, variables, write_lines
from tests.support import wait_for

pytestmark = pytest.mark.timeout(400)  # several commands, each of which may take its own time


def entries(output):
    path = output.with_name(output.name + ".partial") / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process, output, blocks, within=0.0, seconds=60.0):
    """Kills the command once there are so many blocks, or a moment later; False if it was finished before."""
    try:
        wait_for(lambda: process.poll() is not None or entries(output) >= blocks, seconds)
        if within and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(within)
    finally:
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def killed_after(blocks, source, output, model, *, within=0.0, counted=None):
    """Starts the command, and kills it once it has so many more blocks, or a moment later."""
    before = entries(output)
    # One more may be scored meanwhile, and never all.
    process = begin(source, output, model, *BLOCK, counted=counted, most=blocks + 1)
    assert kill_after(process, output, before + blocks, within)


def test_kills_at_random_moments_cost_no_more_than_the_last_block(tmp_path, source, whole, model):
    output, counted, moments = tmp_path / "out.jsonl", tmp_path / "counted", random.Random(5)
    starts = (1, 3, 3)
    for blocks in starts:
        late = moments.uniform(0.001, 0.05)
        killed_after(blocks, source, output, model, within=late, counted=counted)
    killed = len(starts)
    done = rerank(source, output, model, *BLOCK, counted=counted)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("goes on after ")
    assert output.read_bytes() == whole.read_bytes()
    lines = [line.split() for line in counted.read_text().splitlines()]
    scored = [(int(block), int(size)) for block, size in lines]
    pairs = sum(len(row["documents"]) for row in read_lines(source))
    sizes = dict(scored)
    assert sum(sizes.values()) == pairs
    twice = sum(size for _, size in scored) - pairs
    assert twice <= killed * max(sizes.values())
    assert max(Counter(block for block, _ in scored).values()) <= 1 + killed


def test_what_is_torn_is_scored_again(tmp_path, source, whole, model):
    output, counted = tmp_path / "out.jsonl", tmp_path / "counted"
    folder = tmp_path / "out.jsonl.partial"
    killed_after(4, source, output, model)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    blocks = [json.loads(line)["block"] for line in lines]
    (folder / JOURNAL).write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    part = folder / f"part-{blocks[1]:07d}.jsonl"
    part.write_bytes(part.read_bytes()[:-7])
    (folder / "part-0000099.jsonl.tmp").write_bytes(b"{")
    done = rerank(source, output, model, *BLOCK, counted=counted)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()
    again = {int(line.split()[0]) for line in counted.read_text().splitlines()}
    assert again & set(blocks) == {blocks[1], blocks[-1]}
    assert not folder.exists()


def test_a_run_that_was_ended_while_it_joined_parts_joins_them_again(tmp_path, source, whole, model):
    output, counted = tmp_path / "out.jsonl", tmp_path / "counted"
    process = begin(source, output, model, *BLOCK)
    assert process.wait() == 0
    report = output.with_name("out.jsonl.batch.json")
    folder = tmp_path / "out.jsonl.partial"
    begun = json.loads(report.read_text())["begun"]
    journal = Journal.open(folder, ".jsonl")
    journal.begin(begun)
    journal.close()
    done = rerank(source, output, model, *BLOCK, counted=counted)
    assert (done.returncode, counted.exists()) == (0, False)
    assert "is finished already: " in done.stderr
    assert not folder.exists()
    assert output.read_bytes() == whole.read_bytes()


def test_a_finished_output_is_left_alone_and_keeps_its_status(tmp_path, model):
    made = write_lines(tmp_path / "in.jsonl", [*rows(3), "{"])
    output = tmp_path / "out.jsonl"
    assert rerank(made, output, model).returncode == 3
    before = output.read_bytes()
    again = rerank(made, output, model)
    assert (again.returncode, output.read_bytes()) == (3, before)
    assert again.stderr.splitlines()[0].startswith(f"{output} is finished already: ")
    other = rerank(made, output, model, "--top-n", "1")
    assert other.returncode == 1
    assert "was made of another input, model or options" in other.stderr
    (tmp_path / "own.jsonl").write_text("mine")
    refused = rerank(made, tmp_path / "own.jsonl", model)
    assert refused.returncode == 1
    assert "was not made by this command" in refused.stderr


def test_an_unfinished_output_goes_on_with_the_same_alone(tmp_path, source, model, directories):
    output = tmp_path / "out.jsonl"
    killed_after(2, source, output, model)
    changed = write_lines(tmp_path / "in.jsonl", [rows(400)[0] | {"id": "zero"}, *rows(400)[1:]])
    # As long as the input, and different after the part whose digest is kept.
    late = rows(400)
    late[20]["query"] = late[20]["query"][::-1]
    subtle = write_lines(tmp_path / "late.jsonl", late)
    for changes, reason in (
        ((changed, output, model, *BLOCK), "was begun with another file"),
        ((subtle, output, model, *BLOCK), "was begun with another file"),
        ((source, output, model, *BLOCK, "--top-n", "3"), "was begun with options top-n 0, and now it is 3"),
        ((source, output, model, "--block-pairs", "300"), "was begun with options block-pairs 200"),
        ((source, output, directories["roberta"], *BLOCK), "was begun with model source"),
    ):
        done = rerank(*changes)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert reason in done.stderr


def test_two_processes_do_not_write_one_output(tmp_path):
    first = Journal.open(tmp_path / "out.partial", ".jsonl")
    with pytest.raises(ConfigurationError, match="is in use by another process"):
        Journal.open(tmp_path / "out.partial", ".jsonl")
    first.close()
    Journal.open(tmp_path / "out.partial", ".jsonl").close()


def test_the_journal_keeps_bad_rows_and_parts_in_the_inputs_order(tmp_path):
    journal = Journal.open(tmp_path / "out.partial", ".jsonl")
    journal.begin({"max_batch_tokens": 1})
    journal.append()
    for number in (2, 0, 1):
        bad = [BadRow(number * 10, None, "why"), BadRow(number * 10 + 1, "ü", "why")]
        journal.complete(number, Entry("d", 0, 1, 1, 2, 0), b"%d" % number if number != 1 else b"", bad)
    journal.close()
    again = Journal.open(tmp_path / "out.partial", ".jsonl")
    assert [each.number for each in again.bad_rows()] == [0, 1, 10, 11, 20, 21]
    assert [path.read_bytes() for path in again.parts()] == [b"0", b"2"]
    again.close()


def test_a_worker_that_is_killed_is_told_and_costs_its_block_alone(tmp_path, source, whole, model):
    output = tmp_path / "out.jsonl"
    process = begin(source, output, model, *BLOCK, most=3)
    wait_for(lambda: entries(output) >= 1, 60)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    assert process.wait() == 1
    assert rerank(source, output, model, *BLOCK).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


def children(pid):
    """The processes of a command that hold a model."""
    found = subprocess.run(
        ["ps", "-ww", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line]


def test_a_full_disk_is_one_line_and_costs_the_block_alone(tmp_path, source, whole, model):
    output = tmp_path / "out.jsonl"
    limit = ["bash", "-c", 'ulimit -f 40; trap "" XFSZ; exec "$@"', "bash"]
    done = subprocess.run(
        [*limit, *arguments(source, output, model, *BLOCK)],
        capture_output=True,
        encoding="utf-8",
        env=variables(),
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    assert "the same command goes on after the last complete block" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert rerank(source, output, model, *BLOCK).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


def test_a_folder_that_is_not_the_commands_is_left_alone(tmp_path):
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    journal = Journal.open(folder, ".jsonl")
    with pytest.raises(ConfigurationError, match=r"notes\.txt was not made by this command"):
        journal.begin({})
    journal.close()
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_start_that_did_not_begin_leaves_no_folder(tmp_path):
    Journal.open(tmp_path / "out.partial", ".jsonl").close()
    assert not list(tmp_path.iterdir())


def test_an_input_with_fewer_rows_than_were_scored_is_refused(tmp_path, source, model):
    output = tmp_path / "out.jsonl"
    made = write_lines(tmp_path / "in.jsonl", rows(400))
    killed_after(2, made, output, model)
    folder = tmp_path / "out.jsonl.partial"
    with (folder / JOURNAL).open("r+") as file:
        line = json.loads(file.readline())
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(line | {"block": 999, "size": 0}) + "\n")
    done = rerank(made, output, model, *BLOCK)
    assert done.returncode == 1
    assert "was begun with another file" in done.stderr.splitlines()[-1]


def test_a_worker_that_has_ended_gives_what_it_had_done_and_then_the_reason(monkeypatch):
    pipe, other = Pipe()
    other.send(Done(0, b"{}", 1, 1, [], 1, 1))
    other.close()
    ended = Process(target=print)
    ended.start()
    ended.join()
    workers = Workers.__new__(Workers)
    workers._workers = [_Worker(ended, pipe, "worker 1", [0])]
    kept: list[Done] = []
    with pytest.raises(ConfigurationError, match="worker 1 was ended by status 0"):
        workers.score(iter([Block(1)]), 1, kept.append)
    assert [each.number for each in kept] == [0]
