"""The benchmark of the CPU counts what it says it counts, judges rounds as it says, and runs end to end."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import counting, cpu, cpu_page, report, starting, targets, workloads
from benchmarks.checkpoints import SHAPES
from benchmarks.systems import CASES, NAMES, PEERS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


# What is counted as useful


@pytest.mark.parametrize("length", [1, 64, 65, 66, 129, 130, 512])
def test_a_window_counts_the_pairs_that_a_local_layer_sees(length: int):
    shape = SHAPES["modernbert"]
    seen = sum(abs(row - column) <= shape.window for row in range(length) for column in range(length))
    assert shape.seen_locally(length) == seen


def test_a_modernbert_of_22_layers_has_8_that_see_everything():
    shape = SHAPES["modernbert"]
    attention = shape.useful_flop([512]) - 2 * 512 * shape.linear_weights
    assert attention == 4 * 768 * (8 * 512**2 + 14 * shape.seen_locally(512))
    assert shape.linear_weights == 22 * 768 * (2304 + 768 + 2304 + 1152)


def test_a_prefix_counts_once_and_what_comes_later_is_not_seen():
    shape = SHAPES["qwen3-0.6b"]
    together = shape.useful_flop([50, 70], prefix=90)
    apart = shape.useful_flop([50], prefix=90) + shape.useful_flop([70], prefix=90)
    assert apart - together == shape.useful_flop([], prefix=90)
    # A prefix and one document are one sequence, of which causal attention sees half.
    assert shape.useful_flop([50], prefix=90) == pytest.approx(shape.useful_flop([140]))


@pytest.mark.parametrize("name", ["base", "modernbert", "modernbert-large", "qwen3-0.6b", "minilm"])
def test_the_products_are_all_the_weights_of_a_layer(name: str):
    import torch
    import transformers

    shape = SHAPES[name]
    kinds: dict[str, Any] = {
        "bert": transformers.BertConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "modernbert": transformers.ModernBertConfig,
        "qwen3": transformers.Qwen3Config,
    }
    settings: dict[str, Any] = {
        "vocab_size": 8,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
    }
    if shape.kv_heads:
        settings |= {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_size}
    with torch.device("meta"):
        network = transformers.AutoModel.from_config(kinds[shape.family](**settings))
    layers = network.encoder.layer if hasattr(network, "encoder") else network.layers
    weights = sum(each.weight.numel() for each in layers.modules() if isinstance(each, torch.nn.Linear))
    assert shape.linear_weights == shape.layers * weights


def test_a_call_can_be_cut_to_its_first_documents():
    whole, cut = workloads.named("W3@1500"), workloads.named("W3@1500:3")
    assert cut.documents == whole.documents[:3]
    assert (cut.query, cut.max_tokens) == (whole.query, 1500)


def test_a_language_model_reads_its_prompt_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from benchmarks import checkpoints
    from rerank_grpc.config.settings import ServerSettings
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.tokenizer.tokenizer import tokenizer_for

    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    path, workload = checkpoints.checkpoint("tiny-qwen3"), workloads.named("W2:5")
    counted = counting.count(SHAPES["tiny-qwen3"], path, workload)
    card = ModelLoader(ServerSettings(device="cpu", precision="fp32")).read_model(str(path)).card
    sequences = (
        tokenizer_for(card).tokenize(workloads.request_of(workload.query, workload.documents)).sequences
    )
    prefix = sequences[0].prefix
    assert prefix is not None
    assert sum(map(len, prefix.chain())) == pytest.approx(counted.prefix, abs=1)
    assert list(map(len, sequences)) == pytest.approx(counted.lengths, abs=1)


# How rounds are judged


def case(**seconds: float) -> dict[str, Any]:
    """A case of two rounds, the second of which took the machine twice as long."""
    rounds = [
        {
            "seconds": {name.replace("_", " "): value * slow for name, value in seconds.items()},
            "rates": {"bf16": 400e9 / slow},
            "others": {"ours": 0.01},
        }
        for slow in (1, 2)
    ]
    return {
        "like": "a model",
        "rounds": rounds,
        "flop": 400e9,
        "tokens": 10,
        "prefix": 0,
        "documents": 2,
        "left_out": 0,
        "compared": 2,
        "errors": {},
        "skipped": {},
    }


def test_shares_and_ratios_are_taken_within_a_round():
    found = case(ours_bf16=1.25, theirs_bf16=2.5)
    assert targets.shares(found, "ours bf16") == pytest.approx([0.8, 0.8])
    assert targets.ratios(found, "ours bf16", "theirs bf16") == pytest.approx([2, 2])


@pytest.mark.parametrize(("seconds", "met"), [(1.0, "yes"), (1.2, "no")])
def test_a_target_is_met_or_not(seconds: float, met: str):
    samples = targets.shares(case(ours_bf16=seconds), "ours bf16")
    assert targets.Target("share", 0.92, samples).row()[-1] == met
    inverse = [1 / sample for sample in samples]
    assert targets.Target("time", 1 / 0.92, inverse, most=True).row()[-1] == met


def test_the_page_shows_every_target_and_says_which_was_not_measured():
    measured = case(**{"rerank-grpc_bf16": 1.0})
    data = {"threads": 2, "versions": {}, "cases": {"modernbert/W2": measured}}
    page = cpu_page.page(data)
    (row,) = [line for line in page.splitlines() if line.startswith("| modernbert/W2, bf16 ÷ plain")]
    assert row.endswith("| ≥ 0.92 | 1.00 (1.00–1.00) | yes |")
    (row,) = [line for line in page.splitlines() if line.startswith("| qwen3-0.6b/W2, bf16 ÷ plain")]
    assert row.endswith("| not measured |  |")
    assert "`python -m benchmarks.cpu --cases 'modernbert/W2' --rounds 2`" in page
    assert "left out.**" not in page
    measured["left_out"] = 60
    assert "Cut: 60 more documents" in cpu_page.page(data)


def test_a_system_of_some_rounds_is_shown_as_such():
    found = case(**{"rerank-grpc_bf16": 1.0, "openvino_bf16": 2.0})
    del found["rounds"][1]["seconds"]["openvino bf16"]
    found["skipped"] = {"openvino bf16": "left out by hand", "infinity bf16": "left out by hand"}
    section = cpu_page.section("base/W2", found)
    assert "| OpenVINO, sorted bf16 | 2.00 (2.00–2.00), 1 of 2 rounds |" in section
    assert "| **rerank-grpc bf16** | 1.50 (1.00–2.00) |" in section
    assert section.endswith("Not measured: Infinity bf16: left out by hand.")


def test_the_page_shows_what_other_scripts_have_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    start = {"seconds": 5.0, "processor_seconds": 7.0, "resident_mib": 900.0, "peak_mib": 990.0}
    starts = {"base": {"first": start, "starts": [start] * 3, "weights_mib": 530.0}}
    (tmp_path / "starting.json").write_text(json.dumps(starts))
    busy = {"shares": [0.95, 0.96, 0.97], "header": ["callers", "busy"], "rows": [["8", "0.96"]]}
    (tmp_path / "busy.json").write_text(json.dumps(busy))
    lines = cpu_page.page({"threads": 2, "versions": {}, "cases": {}}).splitlines()
    assert "| base | 5.0 (5.0–5.0) | 7.0 (7.0–7.0) | 900 | 370 | 990 |" in lines
    assert "| 8 | 0.96 |" in lines
    assert "| READY, second start, base: seconds | ≤ 6 | 5.0 (5.0–5.0) | yes |" in lines
    assert "| resident memory of base bf16 minus its weights: MiB | ≤ 360 | 370 (370–370) | no |" in lines
    assert "| device busy with 8 REST callers | ≥ 0.97 | 0.960 (0.950–0.970) | no |" in lines
    (missing,) = [line for line in lines if line.startswith("| measured budget's rate")]
    assert missing.endswith("| not measured |  |")


def test_a_server_that_never_gets_ready_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho at $HOME >&2\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(starting, "SECONDS", 5)
    with pytest.raises(SystemExit, match=f"none within 5 s: at {tmp_path / 'home'}"):
        starting.start("embedded", tmp_path / "home")


def test_each_system_of_each_case_has_a_name_and_an_environment():
    names = {system.partition(" ")[0] for systems in CASES.values() for system in systems}
    assert names == names & set(NAMES) & set(PEERS)
    for name, systems in CASES.items():
        kinds = {each.split()[1] for each in systems if each.startswith("rerank-grpc")}
        assert kinds <= {each.split()[1] for each in systems if each.startswith("product")}, name


def test_the_product_is_measured_around_and_before_each_of_ours():
    systems = ["product bf16", "rerank-grpc bf16", "openvino bf16"]
    assert cpu.order_of(systems, 0) == [
        "product bf16",
        "product bf16",
        "rerank-grpc bf16",
        "openvino bf16",
        "product bf16",
    ]
    first = [next(each for each in cpu.order_of(systems, turn) if "product" not in each) for turn in range(3)]
    assert set(first) == {"rerank-grpc bf16", "openvino bf16"}


def test_samples_of_other_lengths_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    short = cpu.Case.of("tiny/W1", 3)
    data = {"cases": {"tiny/W1": {"rounds": [{}], **cpu.Case.of("tiny/W1").facts}}}
    with pytest.raises(SystemExit, match="samples are of 100 documents"):
        cpu.measure(short, [], data, argparse.Namespace(rounds=2, trial=True))


# End to end


@pytest.mark.timeout(260)
def test_a_trial_scores_a_case_and_writes_nothing(tmp_path: Path):
    results = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    arguments = ("--trial", "--rounds", "1", "--documents", "4", "--cases", "tiny-modernbert/W1")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENCH_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| **rerank-grpc fp32**")]
    assert float(row.split("|")[2].split()[0]) > 0
    assert "Not measured: " not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == results
