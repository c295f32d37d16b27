"""The memory that a model needs: while it is loaded, at rest, and at most under load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rerank_grpc.checkpoints.checkpoint import FLOATS, read_header
from rerank_grpc.config.allowance import MemoryLimit, memory_limit, share_of
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.kernels.device import DTYPES, INT8
from rerank_grpc.limits import (
    ANSWER_BYTES,
    BODIES_BYTES,
    BODY_COPIES,
    CHARACTER_BYTES,
    LIMITS,
    LOBBY_PARTS,
    MIB,
    TEXT_LANES,
    UNREAD_BYTES,
)
from rerank_grpc.models.bodies.families import OWN_FAMILIES, plan_of
from rerank_grpc.models.bodies.plan import NoPlan
from rerank_grpc.models.limits import kept_token_bytes
from rerank_grpc.registry.memory import (
    RESERVE_BYTES,
    ModelBudget,
    Shortage,
    TooLarge,
    memory_of,
    most_batch_tokens,
)
from rerank_grpc.runner.prefixes import MAX_KEPT_TOKENS
from rerank_grpc.units import size

# Measured by benchmarks/resources.py: the server's own process with all that it imports, and the other one
# that asks transformers, which has ended before the weights are read.
PROCESS_BYTES, OTHER_BYTES = 200 * MIB, 280 * MIB
BORROWED_BYTES = 100 * MIB  # of transformers in the server's own process, for a model without an own body
# Freed memory that the C library keeps: a part of each batch, and the tokenizer's vocabulary.
HEAP_BYTES = 48 * MIB
# The names of tables, which stay in the type of activations, and of the products that int8 leaves alone.
TABLES, HEADS, EXACT = "embed", "lm_head", "down_proj"


@dataclass(frozen=True, slots=True)
class Need:
    """The parts of a process's memory, in bytes, without pages of files: the kernel takes them back."""

    process: int  # the interpreter and the libraries
    other: int  # the process that asks transformers at a first start
    weights: int  # as they are held
    reading: int  # beside the weights while they are read
    prefixes: int  # the keys and values that are kept at most
    batch: int  # the activations of the largest batch that is tried
    queued: int  # the texts, bodies and answers that are inside at most
    heap: int  # freed memory that is kept
    sequence: int = 0  # the activations of the longest sequence, which is a batch by itself

    @property
    def load(self) -> int:
        """The peak of a first start, whose other process has ended before the weights are read."""
        return max(self.process + self.other, self.later_load)

    @property
    def later_load(self) -> int:
        """The peak of a load for which the answers of transformers are kept."""
        return self.process + self.weights + max(self.reading, self.batch)

    @property
    def rest(self) -> int:
        """The memory of a loaded model without calls."""
        return self.process + self.weights + self.heap

    @property
    def work(self) -> int:
        """The activations of whatever is the largest under load."""
        return max(self.batch, self.sequence)

    @property
    def peak(self) -> int:
        """The most under load."""
        return max(self.load, self.rest + self.prefixes + self.work + self.queued)


# The need of a model in a server within a memory limit.
NeedWithin: TypeAlias = Callable[[MemoryLimit | None], Need]


def need_of(
    weights: Iterable[Path],
    config: Mapping[str, Any],
    precision: str,
    batch_tokens: int | None = None,
    longest: int = 0,
    limit: MemoryLimit | None = None,
) -> Need:
    """Counts by the headers of the weights' files and config.json; raises ModelLoadError for damaged ones.

    Batches are of at most `batch_tokens`, where they are configured, and sequences of at most `longest`,
    where that is known to be less than the network's positions. The largest batch that is tried otherwise,
    and the bounds of what waits, are those of a server within the memory `limit`.
    """
    entries = [(name, entry) for path in weights for name, entry in read_header(path).items()]
    own = str(config.get("model_type")) in OWN_FAMILIES
    token = batch_token_bytes(config, precision)
    positions = _number(config, "max_position_embeddings", 512)
    sequence = min(longest or positions, positions)
    return Need(
        process=PROCESS_BYTES + (0 if own else BORROWED_BYTES),
        other=OTHER_BYTES,
        weights=sum(_held(name, entry, precision) for name, entry in entries),
        reading=max((_reading(name, entry, precision) for name, entry in entries), default=0)
        + (sum(_lost(name, entry, precision) for name, entry in entries) if precision in INT8 else 0),
        prefixes=MAX_KEPT_TOKENS * kept_token_bytes(config, DTYPES[precision]),
        batch=(batch_tokens or most_batch_tokens(token, limit)) * token,
        queued=queued_bytes(limit),
        heap=HEAP_BYTES,
        sequence=sequence * token,
    )


def need_on_card(weights: Iterable[Path], config: Mapping[str, Any], precision: str) -> Need:
    """Counts the bytes of a GPU, likewise: weights, prefixes, and what is reserved to work in."""
    need = need_of(weights, config, precision)
    return Need(0, 0, need.weights, 0, need.prefixes, RESERVE_BYTES, 0, 0)


def limit_of(device: torch.device) -> MemoryLimit | None:
    """Returns what this process may use: of a GPU what is free now."""
    memory = memory_of(device)
    return (
        memory_limit()
        if memory is None
        else MemoryLimit(memory.free, memory.free, f"what is free on {device}")
    )


def held_bytes(weights: Iterable[Path], config: Mapping[str, Any], precision: str) -> int:
    """Returns the bytes of a checkpoint's weights in a precision, and of the prefixes that it may keep."""
    need = need_of(weights, config, precision)
    return need.weights + need.prefixes


def _held(name: str, entry: Mapping[str, Any], precision: str) -> int:
    """The bytes of one weight: vectors are fp32 in any precision."""
    shape = entry["shape"]
    if entry["dtype"] not in FLOATS or HEADS in name:
        return 0
    return int(math.prod(shape)) * (_width(name, precision) if len(shape) > 1 else torch.float32.itemsize)


def _width(name: str, precision: str) -> int:
    kept = TABLES in name or (precision == "int8" and EXACT in name)
    return 1 if precision in INT8 and not kept else DTYPES[precision].itemsize


def _lost(name: str, entry: Mapping[str, Any], precision: str) -> int:
    """The bytes of what rounding takes off one weight, which int8 holds until the first pass."""
    held = _held(name, entry, precision)
    return held if len(entry["shape"]) > 1 and _width(name, precision) == 1 else 0


def _reading(name: str, entry: Mapping[str, Any], precision: str) -> int:
    """The bytes of one product's weights in the copies that are made to lay them out; a table has none."""
    if TABLES in name or HEADS in name or len(entry["shape"]) < 2:
        return 0
    copies = 4 * torch.float32.itemsize if precision in INT8 else 3 * DTYPES[precision].itemsize
    return int(math.prod(entry["shape"])) * copies


def batch_token_bytes(config: Mapping[str, Any], precision: str) -> int:
    """Returns the bytes of activations for one token of a batch, at the widest place of a layer.

    The factors are fitted to measured peaks, which are up to a quarter lower; int8 counts the copies that
    torch's own operations make, where the kernels in C make none.
    """
    try:
        plan = plan_of(str(config.get("model_type")), config)
        hidden = plan.hidden
        wide = plan.width * (2 if any(layer.gated for layer in plan.layers) else 1)
    except NoPlan:
        hidden = _number(config, "hidden_size", 768)
        wide = 2 * _number(config, "intermediate_size", 4 * hidden)
    if precision in INT8:
        return torch.float32.itemsize * (8 * wide + 10 * hidden)
    return DTYPES[precision].itemsize * (2 * wide + 12 * hidden)


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    found = config.get(name)
    return found if isinstance(found, int) and found > 0 else default


def queued_bytes(limit: MemoryLimit | None) -> int:
    """Returns the most bytes of texts, bodies and answers inside a server within a memory limit."""
    characters = LIMITS.characters_inside + LIMITS.characters_inside // LOBBY_PARTS
    answers = TEXT_LANES * ANSWER_BYTES + UNREAD_BYTES
    bounds = BODY_COPIES * BODIES_BYTES + CHARACTER_BYTES * characters + answers
    return int(bounds * (1.0 if limit is None else share_of(limit.most)))


# ---------------- The check against a limit


def check_need(name: str, within: NeedWithin, limit: MemoryLimit | None, precision: str) -> None:
    """Raises TooLarge for a model that the limit cannot hold at its peak, even alone."""
    need = within(limit)
    if limit is None or need.peak <= limit.most:
        return
    smaller = "" if precision in INT8 else ", or use a smaller --precision"
    if need.sequence > need.batch:
        smaller += ", or give the model a smaller max_tokens in a --catalogue"
    raise TooLarge(
        f"model {name} needs {size(need.peak)} at its peak in {precision} (weights {size(need.weights)}), "
        f"and {limit.source} may use {size(limit.most)}: give it {size(least_limit(within))}{smaller}"
    )


def least_limit(within: NeedWithin) -> int:
    """Returns the least memory limit of a server that allows a peak; batches and what waits grow with it."""
    least = 0
    while (peak := within(MemoryLimit(least, least, "")).peak) > least:
        least = peak
    return least


def check_free(name: str, wanted: int, limit: MemoryLimit | None, precision: str) -> None:
    """Raises Shortage where other models or processes leave too little for the `wanted` bytes of a load."""
    if limit is None or wanted <= limit.free:
        return
    raise Shortage(
        f"model {name} takes {size(wanted)} more while it is loaded in {precision}, and "
        f"{size(limit.free)} of {size(limit.most)} are free in {limit.source}: unload a model, "
        "or end another process",
        wanted - limit.free,
    )


def models_budget(settings: ServerSettings) -> ModelBudget:
    """Returns what all models together may take: --model-memory, and on a CPU what the limit leaves.

    The limit leaves what the process itself and what waits do not take.
    """
    limit, option = memory_limit(), settings.model_memory
    on_card = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
    if limit is None or on_card:
        return ModelBudget(option)
    return ModelBudget(option, max(0, limit.most - PROCESS_BYTES - queued_bytes(limit)), limit.source)
