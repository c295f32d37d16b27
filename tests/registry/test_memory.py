"""Models and batches stay within the free memory of a card, and freed memory goes back to the system."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.config.allowance import MemoryLimit
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels import device
from rerank_grpc.registry import loading, memory
from rerank_grpc.registry.budget import LARGEST_ON_CPU, Cost, measure
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.registry.memory import (
    MOST_KEPT_BYTES,
    TRIM_SECONDS,
    BatchMemory,
    Memory,
    Trimmer,
    check_memory,
)

GIB = 1 << 30
CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """The answers of a card to the questions for its memory, the last one again and again."""
    answers = [Memory(4 * GIB, 0, 0)]
    monkeypatch.setattr(memory, "memory_of", lambda _: answers.pop(0) if len(answers) > 1 else answers[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return answers


def refusal(needed: float, precision: str) -> str:
    with pytest.raises(ModelLoadError) as failure:
        check_memory("some/model", int(needed * GIB), precision, CARD, builtin())
    return str(failure.value)


def test_a_model_that_fits_beside_what_it_works_in_is_not_refused(card: list[Memory]) -> None:
    check_memory("some/model", 3 * GIB, "bf16", CARD, builtin())
    with pytest.raises(ModelLoadError):
        check_memory("some/model", 3 * GIB + 1, "bf16", CARD, builtin())


def test_a_model_too_large_in_fp32_is_told_the_precision_in_which_it_fits(card: list[Memory]) -> None:
    text = refusal(6, "fp32")
    assert "takes about 6.0 GiB in fp32" in text
    assert "4.0 GiB are free on cuda:0" in text
    assert "use precision bf16 (3.0 GiB)" in text
    assert "\n" not in text


def test_an_older_card_is_told_fp16(card: list[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "use precision fp16 (3.0 GiB)" in refusal(6, "fp32")


def test_a_model_too_large_in_every_precision_is_told_one_that_fits(card: list[Memory]) -> None:
    text = refusal(14, "fp16")
    assert "precision" not in text.partition("use ")[2]
    assert re.search(r"use \w+/\S+ \(\d\.\d GiB\), or cpu", text)
    card[:] = [Memory(GIB + (100 << 20), 0, 0)]
    assert "MiB), or cpu" in refusal(14, "bf16")
    card[:] = [Memory(GIB, 0, 0)]
    assert refusal(14, "bf16").endswith("use cpu")


def test_a_card_is_asked_before_the_weights_are_read(
    card: list[Memory], directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    card[:] = [Memory(GIB, 0, 0)]
    monkeypatch.setattr(loading, "choose_device", lambda _: CARD)
    with pytest.raises(ModelLoadError, match="are free on cuda:0"):
        ModelLoader(ServerSettings(device="cuda")).read_model(str(directories["bert"]))


def test_a_card_older_than_torch_was_built_for_is_refused_with_both_numbers() -> None:
    architectures = ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"]
    device.check_age((7, 5), architectures, "cuda:0")
    device.check_age((12, 0), architectures, "cuda:0")
    device.check_age((5, 0), [], "cuda:0")
    with pytest.raises(ModelLoadError, match=r"compute capability 6\.1, .* 7\.5 and later"):
        device.check_age((6, 1), architectures, "cuda:1")


@pytest.mark.parametrize(
    ("free", "largest"), [(GIB // 4, 2_048), (8 * GIB, 4_096)], ids=["little memory", "much"]
)
def test_the_budget_stops_where_the_next_batch_would_not_fit_or_take_half_a_gib(
    card: list[Memory], free: int, largest: int
) -> None:
    batches = BatchMemory(CARD)
    budgets: list[int] = []

    def sample(tokens: int) -> Cost:
        budgets.append(tokens)
        card[:] = [Memory(free, GIB, GIB + tokens * 100_000)]
        batches.measured(tokens)
        return Cost(tokens, 0.001, 0.001)

    rounds = measure(sample, batches.fits)
    assert max(rounds[0]) == max(budgets) == largest


@pytest.mark.parametrize(
    ("most", "free", "fits"),
    [
        (64 * GIB, 8 * GIB, 4_096),  # half a GiB
        (64 * GIB, GIB // 2, 2_048),  # half of what is free
        (GIB, GIB, 1_024),  # an eighth of the limit
        (None, None, 4_096),
        (64 * GIB, 0, 0),
    ],
)
def test_a_batch_on_the_cpu_is_within_what_was_counted_and_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, most: int | None, free: int | None, fits: int
) -> None:
    limit = None if most is None or free is None else MemoryLimit(most, free, "this machine")
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    batches = BatchMemory(torch.device("cpu"), bytes_per_token=100_000)
    batches.measured(512)
    assert batches.fits(fits)
    assert not batches.fits(max(512, 2 * fits))
    assert free is None or free < GIB or batches.fits(512)


def test_the_search_on_a_cpu_tries_no_batch_beyond_what_was_counted() -> None:
    """Small models, whose batches take little, chose 8,192 tokens in benchmarks/results/cpu.md."""
    batches = BatchMemory(torch.device("cpu"), bytes_per_token=1.0)
    rounds = measure(lambda tokens: Cost(tokens, tokens * 1e-6, tokens * 1e-6), batches.fits)
    assert max(rounds[0]) == LARGEST_ON_CPU


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of this process, of which the last figure counts."""
    figures = [1_000]
    monkeypatch.setattr(memory, "used_bytes", lambda _: figures[-1])
    return figures


def test_memory_is_given_back_when_the_process_has_grown_and_no_more_often_than_that(used: list[int]) -> None:
    trimmer = Trimmer()
    assert not trimmer.due(100)
    used.append(1_000 + MOST_KEPT_BYTES + 1)
    assert not trimmer.due(100 + TRIM_SECONDS / 2)
    assert trimmer.due(100 + TRIM_SECONDS)


def test_a_trim_that_frees_little_is_tried_again_later_and_later_but_never_for_the_last_time(
    used: list[int],
) -> None:
    trimmer = Trimmer()
    used.append(1_000 + 2 * MOST_KEPT_BYTES)  # and in use while it is trimmed
    assert trimmer.due(100)
    trimmer.trim()
    assert not trimmer.due(100 + TRIM_SECONDS / 2)
    assert trimmer.due(100 + TRIM_SECONDS)
    trimmer.trim()
    assert not trimmer.due(100 + 2 * TRIM_SECONDS)
    assert trimmer.due(100 + 5 * TRIM_SECONDS)


def test_the_memory_of_a_device_is_told_for_all_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GIB, 4 * GIB))
    assert memory.device_bytes(CARD) == (GIB, 3 * GIB)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads the machine's memory from /proc")
def test_the_memory_of_the_machine_is_that_of_the_cpu():
    found = memory.device_bytes(memory.HOST)
    assert found is not None
    assert min(found) > 0
    assert sum(found) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_device_that_cannot_be_asked_has_no_memory_to_tell(monkeypatch: pytest.MonkeyPatch):
    def broken(_device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert memory.device_bytes(CARD) is None
