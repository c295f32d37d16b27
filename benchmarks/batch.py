"""Measures `rerank-grpc batch`: a million tiny pairs in bounded memory, its share of the engine, resumes.

    python -m benchmarks.batch

Writes results/batch.json and results/batch.md.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report

ROWS, DOCUMENTS = 100_000, 10  # a million pairs
WORDS = ("reset", "password", "account", "panda", "bamboo", "invoice", "paid", "late", "train", "ticket")
SHARE_ROWS = 150  # of the embedded model
ROUNDS = 3
KILLS = 3


def main() -> None:
    """Measures all parts, or those that are named, path, share, million, resume; the others stay."""
    named = sys.argv[1:] or list(PARTS)
    file = report.RESULTS / "batch.json"
    data = json.loads(file.read_text("utf-8")) if file.exists() else {}
    data |= {
        "when": report.now(),
        "machine": report.machine(),
        "versions": report.versions("rerank-grpc", "torch", "tokenizers", "pyarrow"),
    }
    with tempfile.TemporaryDirectory() as place:
        for name in named:
            before = report.load_average()
            data[name] = PARTS[name](Path(place)) | {"load_average": [before, report.load_average()]}
            if all(part in data for part in PARTS):
                report.write("batch", data, page(data))
            else:
                file.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def measure_million(folder: Path) -> dict[str, Any]:
    """A million tiny pairs with a tiny checkpoint: the time, and the peak of each process."""
    source, output = folder / "million.jsonl", folder / "million-out.jsonl"
    with source.open("w") as file:
        for number in range(ROWS):
            file.write(json.dumps(tiny_row(number)) + "\n")
    small, model = small_input(folder)
    few = run(small, folder / "small-out.jsonl", model)
    all_of_it = run(source, output, model)
    return {
        "rows": ROWS,
        "pairs": ROWS * DOCUMENTS,
        "input_bytes": source.stat().st_size,
        "output_bytes": output.stat().st_size,
        "twentieth": few,
        **all_of_it,
    }


def small_input(folder: Path) -> tuple[Path, Path]:
    """A twentieth of the million, and the tiny model."""
    small = folder / "small.jsonl"
    small.write_text("".join(json.dumps(tiny_row(number)) + "\n" for number in range(ROWS // 20)))
    return small, tiny_model(folder / "tiny")


def measure_share(folder: Path) -> dict[str, Any]:
    """The rate of `batch` against that of the engine alone, with the embedded model, in turns."""
    source = folder / "share.jsonl"
    rows = [natural_row(number) for number in range(SHARE_ROWS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine, batch, pairs = [], [], sum(len(row["documents"]) for row in rows)
    for turn in range(ROUNDS):
        engine.append(engine_rate(source))
        found = run(source, folder / f"share-{turn}.jsonl", "embedded", "--precision", "fp32")
        batch.append(found)
    rates = [found["pairs_per_second"] for found in batch]
    return {
        "pairs": pairs,
        "engine_pairs_per_second": engine,
        "batch_pairs_per_second": rates,
        "batches_full": [found["batches_full"] for found in batch],
        "share_of_medians": round(sorted(rates)[ROUNDS // 2] / sorted(engine)[ROUNDS // 2], 3),
    }


IN_TURNS = """
import json, sys, time
from pathlib import Path
from rerank_grpc.batch.blocks import Size, blocks
from rerank_grpc.batch.reading import Input
from rerank_grpc.batch.results import encode
from rerank_grpc.batch.scoring import Scorer
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.types import Call, Priority
scorer = Scorer("embedded", ServerSettings(device="cpu", precision="fp32"))
engine, budget = scorer._model.engine, scorer.facts.max_batch_tokens
spent = {"engine": [0.0, 0.0], "path": [0.0, 0.0]}
def timed(name, function):
    began, used = time.monotonic(), time.process_time()
    found = function()
    spent[name][0] += time.monotonic() - began
    spent[name][1] += time.process_time() - used
    return found
def alone(sequences):
    with engine.admit(Call(), Priority.BATCH) as admission:
        admission.submit(sequences).wait()
def path(block):
    scored = scorer.score(scorer.prepare(block), max_batch_tokens=budget)
    return encode(scored.rows, "jsonl", whole_ids=False)
for block in blocks(Input.of(Path(sys.argv[1])).rows(), size=Size.of(None, budget)):
    parts = scorer.prepare(block).parts
    sequences = [each for row in parts for part in row for each in part.sequences]
    timed("engine", lambda: alone(sequences))
    timed("path", lambda: path(block))
print(json.dumps(spent))
scorer.close()
"""


def measure_path(folder: Path) -> dict[str, Any]:
    """The engine alone and the whole path of a block, in turns, so that other work slows both alike."""
    source = folder / "path.jsonl"
    rows = [natural_row(number) for number in range(SHARE_ROWS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = subprocess.run(
        [sys.executable, "-c", IN_TURNS, str(source)], capture_output=True, text=True, check=True
    )
    spent = json.loads(found.stdout)
    (wall, cpu), (path_wall, path_cpu) = spent["engine"], spent["path"]
    return {
        "pairs": sum(len(row["documents"]) for row in rows),
        "engine_seconds": round(wall, 2),
        "path_seconds": round(path_wall, 2),
        "engine_cpu_seconds": round(cpu, 2),
        "path_cpu_seconds": round(path_cpu, 2),
        "share": round(wall / path_wall, 3),
        "share_of_processor_time": round(cpu / path_cpu, 3),
    }


ENGINE = """
import json, sys, time
from rerank_grpc.batch.scoring import Scorer
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.types import Call, Document, Priority, RerankRequest
scorer = Scorer("embedded", ServerSettings(device="cpu", precision="fp32"))
model, sequences = scorer._model, []
for line in open(sys.argv[1]):
    row = json.loads(line)
    request = RerankRequest(row["query"], tuple(map(Document, row["documents"])))
    sequences += model.tokenizer.tokenize(request).sequences
began = time.monotonic()
with model.engine.admit(Call(), Priority.BATCH) as admission:
    admission.submit(sequences).wait()
print(time.monotonic() - began)
scorer.close()
"""


def engine_rate(source: Path) -> float:
    """Pairs a second of the engine, given all sequences at once: no reading, tokenizing nor writing."""
    found = subprocess.run(
        [sys.executable, "-c", ENGINE, str(source)], capture_output=True, text=True, check=True
    )
    pairs = sum(len(json.loads(line)["documents"]) for line in source.open())
    return round(pairs / float(found.stdout), 1)


def measure_resume(folder: Path) -> dict[str, Any]:
    """Kills at random moments, and the pairs that are scored again because of them."""
    source, model = small_input(folder)
    options = ("--block-pairs", "2000")
    whole = folder / "whole.jsonl"
    run(source, whole, model, *options)
    chosen, output = random.Random(1), folder / "resumed.jsonl"
    kills, kept = 0, []
    for blocks in range(4, 4 + 6 * KILLS, 6):
        process = subprocess.Popen(command(source, output, model, *options), stderr=subprocess.DEVNULL)
        journal = output.with_name("resumed.jsonl.partial") / "_journal.jsonl"
        while process.poll() is None and (not journal.exists() or lines_of(journal) < blocks):
            time.sleep(0.002)
        time.sleep(chosen.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        kept.append(lines_of(journal))
    found = run(source, output, model, *options)
    return {
        "pairs": ROWS // 20 * DOCUMENTS,
        "block_pairs": 2_000,
        "kills": kills,
        "blocks_kept_at_each": kept,
        "pairs_scored_by_the_last_start": found["scored"],
        "equal_to_an_uninterrupted_run": output.read_bytes() == whole.read_bytes(),
    }


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def command(source: Path, output: Path, model: Path | str, *more: str) -> list[str]:
    where = ["--input", str(source), "--output", str(output), "--model", str(model), "--device", "cpu"]
    return [sys.executable, "-m", "rerank_grpc", "batch", *where, *more]


def run(source: Path, output: Path, model: Path | str, *more: str) -> dict[str, Any]:
    """Runs the command; its own figures, and the peaks of its processes in MiB."""
    began = time.monotonic()
    process = subprocess.Popen(command(source, output, model, *more), stderr=subprocess.PIPE, text=True)
    peaks: dict[str, float] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, ended))
    watcher.start()
    _, said = process.communicate()
    ended.set()
    watcher.join()
    assert process.returncode == 0, said
    last = said.splitlines()[-1]
    rate = re.search(r"([\d,.]+) pairs/s", last)
    fill = re.search(r"batches (\d+)% full", last)
    by_this = re.search(r"([\d,]+) of them by this start", last) or re.match(r"([\d,]+) pairs", last)
    assert rate is not None, last
    assert fill is not None, last
    assert by_this is not None, last
    return {
        "seconds": round(time.monotonic() - began, 1),
        "pairs_per_second": float(rate[1].replace(",", "")),
        "batches_full": int(fill[1]),
        "scored": int(by_this[1].replace(",", "")),
        "peak_mib": peaks,
    }


def watch(pid: int, peaks: dict[str, float], ended: threading.Event) -> None:
    """Reads the peaks of a command and of its worker until it ends."""
    while not ended.wait(0.2):
        for name, process in (("command", pid), *(("worker", child) for child in workers(pid))):
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            if found := re.search(r"VmHWM:\s+(\d+)", status):
                peaks[name] = max(peaks.get(name, 0), int(found[1]) >> 10)


def workers(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path.parent / "cmdline").read_bytes():
                yield int(path.parent.name)
        except (OSError, IndexError):
            continue


def tiny_row(number: int) -> dict[str, Any]:
    chosen = random.Random(number)
    texts = [f"{number} {place} {' '.join(chosen.choices(WORDS, k=3))}" for place in range(DOCUMENTS)]
    return {"id": number, "query": f"{chosen.choice(WORDS)} {number}", "documents": texts}


def natural_row(number: int) -> dict[str, Any]:
    from tests.random_models import texts

    chosen, paragraphs = random.Random(number), texts()
    documents = [chosen.choice(paragraphs)[:600] for _ in range(DOCUMENTS)]
    return {"id": number, "query": chosen.choice(paragraphs)[:50], "documents": documents}


def tiny_model(path: Path) -> Path:
    from tests.random_models import bert

    return bert(path, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def page(data: dict[str, Any]) -> str:
    share, million, resume = data["share"], data["million"], data["resume"]
    path = data["path"]
    few = million["twentieth"]
    peaks = [
        [
            f"{pairs:,}",
            *(f"{found['peak_mib'][name]:.0f}" for name in ("command", "worker")),
            f"{found['seconds']:.0f}",
            f"{found['pairs_per_second']:,.0f}",
        ]
        for pairs, found in ((few["scored"], few), (million["scored"], million))
    ]
    rates = [
        [
            "engine alone, tokenized beforehand",
            *(f"{rate:,.0f}" for rate in share["engine_pairs_per_second"]),
        ],
        ["`batch`, from file to file", *(f"{rate:,.0f}" for rate in share["batch_pairs_per_second"])],
    ]
    loads = ", ".join(
        f"{name} {data[name]['load_average'][0]} to {data[name]['load_average'][1]}" for name in PARTS
    )
    return "\n\n".join(
        [
            "# Reranking files",
            "`python -m benchmarks.batch` wrote this page. Other work ran on the machine meanwhile: "
            f"load average, {loads}.",
            report.facts(os.cpu_count() or 1, data["versions"]),
            "## A million tiny pairs",
            "Rows of ten documents of five words, a BERT of one layer. Peaks in MiB; times with the start.",
            report.table(["pairs", "peak of the command", "peak of its worker", "seconds", "pairs/s"], peaks),
            "## Share of the engine's rate",
            f"The embedded model in fp32, {path['pairs']:,} pairs of about 600 characters. Block by block "
            "in one process, engine alone and then tokenizing, scoring and writing, one after another: "
            f"{path['engine_cpu_seconds']:.1f} s of the processor against {path['path_cpu_seconds']:.1f} s, "
            f"a share of **{path['share_of_processor_time']:.2f}**. By the clock it was "
            f"{path['engine_seconds']:.1f} s against {path['path_seconds']:.1f} s: other work had its part. "
            "The command tokenizes ahead, and reads and writes in another process.",
            "The command itself against the engine alone, each in a process of its own; "
            "other work on the machine moves these rates more than they differ. "
            f"The batches were {min(share['batches_full'])} % full.",
            report.table(["pairs/s", *(f"round {n + 1}" for n in range(ROUNDS))], rates),
            "## Ended by kill −9 and started again",
            f"{resume['kills']} kills of a run of {resume['pairs']:,} pairs in blocks of "
            f"{resume['block_pairs']:,}; complete blocks at each: "
            f"{', '.join(map(str, resume['blocks_kept_at_each']))}. The last start scored "
            f"{resume['pairs_scored_by_the_last_start']:,} pairs. Equal to an uninterrupted run, "
            f"byte for byte: {'yes' if resume['equal_to_an_uninterrupted_run'] else 'NO'}.",
        ]
    )


PARTS = {"path": measure_path, "share": measure_share, "million": measure_million, "resume": measure_resume}


if __name__ == "__main__":
    main()
