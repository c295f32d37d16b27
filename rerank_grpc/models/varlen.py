"""Attention over packed parts of any lengths by one call; what computes it is chosen at load."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from itertools import groupby
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.layout import Layout

# How ListModels calls them.
VARLEN, FLASH, SDPA = "packed (varlen)", "packed (flash-attn)", "packed (sdpa)"

# The kernels for variable lengths: 16 bits, from Ampere on, heads that are whole lines of memory.
KERNEL_PRECISIONS = ("bf16", "fp16")
KERNEL_CAPABILITY = (8, 0)
LARGEST_HEAD = 256
HEAD_MULTIPLE = 8


class Kernel(Protocol):
    """Attends within each part, by one call."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Query is  # [num_tokens, heads, size], key and value  # [num_keys, key heads, size].

        Part i's queries see part i's keys: all of them, with `window` those
        that stand nearer than that, with `causal` those up to their own place,
        the last query being the last key's. Returns  # [num_tokens, heads, size].
        """


def choose_attention(
    capability: tuple[int, int] | None, precision: str, head_size: int, installed: frozenset[str]
) -> str:
    """Picks the fastest function for a card; `capability` is None on the CPU, `installed` what imports."""
    usable = (
        capability is not None
        and capability >= KERNEL_CAPABILITY
        and precision in KERNEL_PRECISIONS
        and head_size <= LARGEST_HEAD
        and head_size % HEAD_MULTIPLE == 0
    )
    return next((name for name in (VARLEN, FLASH) if usable and name in installed), SDPA)


@cache
def installed() -> frozenset[str]:
    """Which kernels for variable lengths can be imported here."""
    found = {VARLEN} if importlib.util.find_spec("torch.nn.attention.varlen") else set()
    return frozenset(found | ({FLASH} if importlib.util.find_spec("flash_attn") else set()))


def attention_for(device: torch.device, precision: str, config: Mapping[str, Any]) -> str:
    """Picks for a model, whose config.json says how large its heads are."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    heads = int(config.get("num_attention_heads") or 1)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    return choose_attention(capability, precision, size, installed())


@cache
def kernel_for(name: str) -> Kernel | None:
    """The kernel of a name that choose_attention gave; None where parts are attended one by one.

    Raises ModelLoadError if it is installed but broken.
    """
    makers: dict[str, Callable[[], Kernel]] = {VARLEN: _varlen, FLASH: _flash_attn}
    return makers[name]() if name in makers else None


def _varlen() -> Kernel:
    module: Any = _import("torch.nn.attention.varlen")
    function = module.varlen_attn
    # torch 2.11 takes fewer heads for keys without being told, later ones want to be.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(function).parameters else {}

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        mixed: torch.Tensor = function(
            *(query, key, value, queries.starts, keys.starts, queries.longest, keys.longest),
            scale=scale,
            window_size=window_of(causal=causal, window=window),
            **(grouped if query.shape[1] != key.shape[1] else {}),
        )
        return mixed

    return attend


def _flash_attn() -> Kernel:
    module: Any = _import("flash_attn")
    function = module.flash_attn_varlen_func

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        mixed: torch.Tensor = function(
            *(query, key, value, queries.starts, keys.starts, queries.longest, keys.longest),
            softmax_scale=scale,
            causal=causal,
            window_size=(-1, -1) if causal else window_of(causal=False, window=window),
        )
        return mixed

    return attend


def window_of(*, causal: bool, window: int | None) -> tuple[int, int]:
    """How many keys to the left and to the right a query sees, -1 for all, itself not counted."""
    if causal:
        return (-1, 0)
    return (-1, -1) if window is None else (window - 1, window - 1)


def attend_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Layout, keys: Layout
) -> torch.Tensor:
    """As Kernel, where all see all: a call of scaled_dot_product_attention for neighbours of equal length.

    It needs the lengths on the host.
    """
    parts, place, key_place = [], 0, 0
    for (rows, columns), group in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        count = len(list(group))
        end, key_end = place + count * rows, key_place + count * columns
        own = query[place:end], key[key_place:key_end], value[key_place:key_end]
        folded = [each.unflatten(0, (count, -1)).transpose(1, 2) for each in own]
        parts.append(scaled_dot_product_attention(*folded).transpose(1, 2).flatten(0, 1))
        place, key_place = end, key_end
    return torch.cat(parts)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelLoadError(
            f"{name} is installed but cannot be imported ({type(error).__name__}): reinstall or remove it"
        ) from error
