"""The need of a model told from its files, and the loads that are refused for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import resources
from rerank_grpc.checkpoints.checkpoint import find_weights, read_config, read_header
from rerank_grpc.config.allowance import MemoryLimit, share_of
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.limits import (
    ANSWER_BYTES,
    BODIES_BYTES,
    BODY_COPIES,
    CHARACTER_BYTES,
    LIMITS,
    TEXT_LANES,
    UNREAD_BYTES,
)
from rerank_grpc.registry import loading, needs
from rerank_grpc.registry.budget import LARGEST_ON_CPU
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.registry.memory import ModelBudget, Shortage, TooLarge, most_batch_tokens
from rerank_grpc.registry.needs import (
    Need,
    batch_token_bytes,
    check_free,
    check_need,
    held_bytes,
    models_budget,
    need_of,
)
from tests import random_models

MIB, GIB = 1 << 20, 1 << 30
# Measured figures lie between these shares of what is told.
LEAST, MOST = 0.55, 1.0
LEAST_OF_INT8 = 0.5


def need(directory: Path, precision: str, limit: MemoryLimit | None = None) -> Need:
    return need_of(find_weights(directory), read_config(directory), precision, limit=limit)


def stored(directory: Path) -> int:
    headers = [read_header(path) for path in find_weights(directory)]
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0] for each in headers for entry in each.values()
    )


def limited(monkeypatch: pytest.MonkeyPatch, most: int, free: int) -> None:
    limit = MemoryLimit(most, free, "this container")
    for module in (loading, needs):
        monkeypatch.setattr(module, "memory_limit", lambda: limit)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_weights_are_counted_as_they_are_held(directories: dict[str, Path], family: str) -> None:
    directory = directories[family]
    fp32, bf16, int8 = (need(directory, each).weights for each in ("fp32", "bf16", "int8"))
    assert 0.9 * stored(directory) <= fp32 <= stored(directory)
    assert fp32 // 2 <= bf16 <= 0.55 * fp32  # vectors stay fp32
    assert int8 < bf16


def test_a_decoder_keeps_prefixes_and_an_encoder_none(directories: dict[str, Path], tmp_path: Path) -> None:
    assert need(directories["bert"], "fp32").prefixes == 0
    directory = random_models.qwen3_reranker(tmp_path)
    decoder = need(directory, "bf16")
    assert decoder.prefixes > 0
    assert need(directory, "int8-all").weights < need(directory, "int8").weights < decoder.weights
    assert held_bytes(find_weights(directory), read_config(directory), "bf16") == (
        decoder.weights + decoder.prefixes
    )


def test_a_smaller_batch_and_a_smaller_limit_need_less(directories: dict[str, Path]) -> None:
    directory = directories["bert"]
    large = need(directory, "fp32")
    small = need_of(find_weights(directory), read_config(directory), "fp32", batch_tokens=512)
    assert small.batch * LARGEST_ON_CPU == large.batch * 512
    shared = need(directory, "fp32", MemoryLimit(GIB, GIB, "this container"))
    assert shared.queued * 8 == large.queued
    assert shared.peak < large.peak


def test_a_batch_is_as_large_as_the_largest_that_is_tried_and_as_the_longest_sequence(
    directories: dict[str, Path],
) -> None:
    paths, config = find_weights(directories["bert"]), read_config(directories["bert"])
    wide = {**config, "hidden_size": 1_024, "intermediate_size": 4_096}
    token = batch_token_bytes(wide, "fp32")
    for most in (256 * MIB, GIB, 4 * GIB, 64 * GIB):
        limit = MemoryLimit(most, most, "this container")
        tried = most_batch_tokens(token, limit)
        assert need_of(paths, wide, "fp32", limit=limit).batch == tried * token
        longer = wide | {"max_position_embeddings": 3 * LARGEST_ON_CPU}
        assert need_of(paths, longer, "fp32", limit=limit).work == 3 * LARGEST_ON_CPU * token
        known = need_of(paths, longer, "fp32", longest=LARGEST_ON_CPU, limit=limit)
        assert known.work == LARGEST_ON_CPU * token


def test_a_model_of_long_sequences_is_refused_with_what_makes_them_shorter(
    directories: dict[str, Path],
) -> None:
    paths, config = find_weights(directories["bert"]), read_config(directories["bert"])
    longer = {**config, "hidden_size": 1_024, "intermediate_size": 4_096, "max_position_embeddings": 131_072}
    limit = MemoryLimit(4 * GIB, 4 * GIB, "this machine")
    with pytest.raises(TooLarge, match=r"or give the model a smaller max_tokens in a --catalogue$"):
        check_need("long", lambda limit: need_of(paths, longer, "bf16", limit=limit), limit, "bf16")


def test_what_waits_costs_what_the_worst_texts_take() -> None:
    """A text with one emoji in it has four bytes a character, and its message one to four."""
    emoji = "\U0001f600" * 1_000
    taken = sys.getsizeof(emoji) - sys.getsizeof("") + len(emoji.encode())
    assert taken <= 1_000 * CHARACTER_BYTES + sys.getsizeof(emoji[:1])
    texts = CHARACTER_BYTES * LIMITS.characters_inside
    bodies = BODY_COPIES * BODIES_BYTES
    assert needs.queued_bytes(None) >= texts + bodies + TEXT_LANES * ANSWER_BYTES + UNREAD_BYTES
    least = share_of(0)
    assert least * BODIES_BYTES >= LIMITS.body_bytes
    assert least * LIMITS.characters_inside >= LIMITS.message_bytes


def test_the_documented_limit_of_base_is_accepted() -> None:
    """Weights and 500 MiB, and a tenth more: benchmarks/resources.py has base live in it."""
    weights = 530 * MIB
    most = int((weights + resources.LOAD_MIB * MIB) * resources.SPARE)
    limit = MemoryLimit(most, most, "this container")
    config = {"model_type": "xlm-roberta", "hidden_size": 768, "intermediate_size": 3_072}
    token = batch_token_bytes(config, "bf16")
    base = Need(
        needs.PROCESS_BYTES,
        needs.OTHER_BYTES,
        weights,
        14 * MIB,
        0,
        most_batch_tokens(token, limit) * token,
        needs.queued_bytes(limit),
        needs.HEAP_BYTES,
    )
    check_need("base", lambda _: base, limit, "bf16")


def test_the_embedded_model_takes_what_is_told(tmp_path: Path) -> None:
    """The same figures of base's shape are in benchmarks/results/resources.md."""
    told = resources.planned("embedded", "fp32")
    with resources.serving("embedded", "fp32", tmp_path) as server:
        server.wait()
        load = server.mark() // MIB
        rest = resources.held(server.process.pid) // MIB
    assert LEAST * told["load"] <= load <= MOST * told["load"]
    assert LEAST * told["rest"] <= rest <= MOST * told["rest"]


def test_the_results_are_within_what_is_told() -> None:
    for case, found in json.loads(resources.RESULTS.read_text("utf-8"))["cases"].items():
        told = found["plan"]
        # int8 is told as a processor without the kernels would take it, whose operations make copies.
        least = LEAST_OF_INT8 if case.endswith("int8") else LEAST
        for name, measured in (("load", found["load_mib"]), ("rest", found["rest_mib"])):
            assert least * told[name] <= measured <= MOST * told[name], f"{case}: {name}"
        assert found["peak_mib"] <= MOST * told["peak"], case


def test_a_model_beyond_the_limit_is_refused_before_its_weights_are_read(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 256 * MIB, 200 * MIB)
    loader = ModelLoader(ServerSettings(device="cpu", precision="fp32"))
    with pytest.raises(TooLarge) as refused:
        loader.prepare(ModelSpec("mine", str(directories["bert"])))
    text = str(refused.value)
    assert "model mine needs" in text
    assert "this container may use 256.0 MiB: give it" in text
    assert "use a smaller --precision" in text
    assert "\n" not in text


def test_a_model_for_which_too_little_is_free_now_may_be_tried_again(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 8 * GIB, 1 * MIB)
    loader, spec = ModelLoader(ServerSettings(device="cpu")), ModelSpec("mine", str(directories["bert"]))
    loader.prepare(spec)
    with pytest.raises(ModelLoadError, match=r"1\.0 MiB of 8\.0 GiB are free in this container") as refused:
        loader.load(spec, lambda *_: None)
    assert not isinstance(refused.value, TooLarge)


def test_an_unknown_limit_refuses_nothing(directories: dict[str, Path]) -> None:
    wanted = need(directories["bert"], "fp32")
    check_need("mine", lambda _: wanted, None, "fp32")
    check_free("mine", wanted.load, None, "fp32")
    check_need("mine", lambda _: wanted, MemoryLimit(wanted.peak, 0, "this machine"), "fp32")
    with pytest.raises(TooLarge):
        check_need("mine", lambda _: wanted, MemoryLimit(wanted.peak - 1, 0, "this machine"), "fp32")


def test_the_process_that_asks_transformers_is_counted_for_a_first_load_only(
    directories: dict[str, Path],
) -> None:
    small = need(directories["bert"], "fp32", MemoryLimit(GIB, GIB, "this container"))
    assert small.load == small.process + small.other
    assert small.later_load < small.load
    limit = MemoryLimit(GIB, small.later_load - small.process, "this container")
    check_free("mine", small.later_load - small.process, limit, "fp32")
    with pytest.raises(Shortage) as refused:
        check_free("mine", small.load - small.process, limit, "fp32")
    assert refused.value.missing == small.load - small.later_load


@pytest.mark.parametrize("weights", [50 * MIB, GIB, 3 * GIB, 20 * GIB])
def test_the_limit_that_a_refusal_asks_for_is_enough_and_no_more(weights: int) -> None:
    def within(limit: MemoryLimit | None) -> Need:
        batch = most_batch_tokens(30_000, limit) * 30_000
        return Need(200 * MIB, 280 * MIB, weights, 10 * MIB, 0, batch, needs.queued_bytes(limit), 40 * MIB)

    def peak(most: int) -> int:
        return within(MemoryLimit(most, most, "this container")).peak

    asked = needs.least_limit(within)
    assert peak(asked) <= asked
    assert all(peak(asked - less) > asked - less for less in (1, MIB, 100 * MIB))


def test_all_models_together_take_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(device="cpu", engine=EngineSettings())
    limited(monkeypatch, 4 * GIB, 4 * GIB)
    left = models_budget(settings).room()
    assert left is not None
    assert 3 * GIB < left < 4 * GIB
    assert models_budget(settings).room(batches=MIB) == left - MIB
    assert models_budget(ServerSettings(device="cpu", model_memory=GIB)).room(batches=MIB) == GIB
    assert models_budget(ServerSettings(device="cpu", model_memory=64 * GIB)).room() == left
    monkeypatch.setattr(needs, "memory_limit", lambda: None)
    assert models_budget(settings).room() is None


def test_the_remedy_names_the_smaller_bound() -> None:
    both = ModelBudget(GIB, 2 * GIB, "this container")
    assert both.remedy() == "raise --model-memory"
    assert both.remedy(batches=GIB + 1) == "raise the memory limit of this container"
    assert ModelBudget(None, GIB, "this machine").remedy() == "raise the memory limit of this machine"
    assert ModelBudget(GIB).remedy() == "raise --model-memory"
