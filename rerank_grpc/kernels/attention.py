"""Attention over packed parts of any lengths by one call, by a kernel that is chosen and tried at load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import Kernel, Layout
from rerank_grpc.kernels.device import DTYPES

log = logging.getLogger(__name__)

# The most that a mean of a few normal values is off in 16 bits; another mask is off by much more.
KERNEL_ERROR = 0.05


class Attention(Enum):
    """The attention of a model; the value is the label that ListModels shows.

    PADDED is transformers' own attention over padded sequences; all others
    attend over packed ones: SDPA part by part, VARLEN, FLASH and NATIVE, the
    CPU's kernels in C, in one call.
    """

    VARLEN = "packed (varlen)"
    FLASH = "packed (flash-attn)"
    NATIVE = "packed (kernels)"
    SDPA = "packed (sdpa)"
    PADDED = "padded"

    @property
    def label(self) -> str:
        """The text for people."""
        return self.value


# The kernels and the modules that hold them, the fastest first.
MODULES = {Attention.VARLEN: "torch.nn.attention.varlen", Attention.FLASH: "flash_attn"}


def choose_attention(device: torch.device, precision: str, config: Mapping[str, Any]) -> Attention:
    """Picks the fastest attention that runs on a device, for the heads that a config.json describes."""
    heads = int(config.get("num_attention_heads") or 1)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if kernels_take(capability, precision, size):
        for attention in installed():
            if works(attention, device, precision, size):
                return attention
    return Attention.SDPA


def kernels_take(capability: tuple[int, int] | None, precision: str, head_size: int) -> bool:
    """Whether the kernels for variable lengths take such heads; `capability` is None on the CPU.

    They compute in 16 bits, from Ampere on, with heads that are whole lines of memory.
    """
    if capability is None or capability < (8, 0) or precision not in ("bf16", "fp16"):
        return False
    return head_size <= 256 and head_size % 8 == 0


@cache
def installed() -> tuple[Attention, ...]:
    """Lists the kernels that can be imported here, the fastest first."""
    return tuple(attention for attention, module in MODULES.items() if importlib.util.find_spec(module))


def works(attention: Attention, device: torch.device, precision: str, head_size: int) -> bool:
    """Whether a kernel runs here, aligns the causal mask to the last key, and keeps to a window before it.

    A kernel may not be built for this card; with more keys than queries, some versions align to the first.
    """
    query, key, value = torch.randn(3, 5, 1, head_size, generator=torch.Generator().manual_seed(0))
    query = query[2:]
    q, k, v = (each.to(device, DTYPES[precision]) for each in (query, key, value))
    try:
        kernel = kernel_for(attention)
        assert kernel is not None
        queries, keys = Layout.of((1, 2), device), Layout.of((1, 4), device)
        found = [
            kernel(q, k, v, queries, keys, causal=True, window=window).float().cpu() for window in (None, 2)
        ]
    except Exception as error:
        log.warning("attention %s does not run on %s (%s)", attention.label, device, type(error).__name__)
        return False
    q, k, v = (each[1:].transpose(0, 1) for each in (query, key, value))
    for mixed, leftmost in zip(found, (-4, 1), strict=True):
        seen = torch.ones(2, 4, dtype=torch.bool).tril(2).triu(leftmost)
        second = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1)
        if not torch.allclose(mixed, torch.cat([value[:1], second]), rtol=0, atol=KERNEL_ERROR):
            log.warning("attention %s computes something else on %s", attention.label, device)
            return False
    return True


@cache
def kernel_for(attention: Attention) -> Kernel | None:
    """The kernel that attends in one call; None where parts are attended one by one."""
    if attention not in MODULES:
        return None
    module: Any = importlib.import_module(MODULES[attention])
    if attention is Attention.FLASH:
        return _kernel(module.flash_attn_varlen_func, _flash_options)
    # torch 2.11 takes fewer heads for keys without being told, later ones want to be.
    told = "enable_gqa" in inspect.signature(module.varlen_attn).parameters
    return _kernel(module.varlen_attn, partial(_varlen_options, told=told))


def _varlen_options(
    *, grouped: bool, told: bool, causal: bool = False, window: int | None = None, scale: float | None = None
) -> dict[str, Any]:
    options = {"scale": scale, "window_size": window_of(causal=causal, window=window)}
    return options | ({"enable_gqa": True} if told and grouped else {})


def _flash_options(
    *, grouped: bool, causal: bool = False, window: int | None = None, scale: float | None = None
) -> dict[str, Any]:
    return {"softmax_scale": scale, "causal": causal, "window_size": window_of(causal=causal, window=window)}


def _kernel(function: Callable[..., Tensor], options: Callable[..., dict[str, Any]]) -> Kernel:
    """Makes a kernel of a library's function; `options` translates a Kernel's options to its own."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, **asked: Any
    ) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return function(
            *(query, key, value, queries.starts, keys.starts, queries.longest, keys.longest),
            **options(grouped=grouped, **asked),
        )

    return kernel


def window_of(*, causal: bool, window: int | None) -> tuple[int, int]:
    """The keys to the left and to the right that a query sees, -1 for all, itself not counted."""
    left = -1 if window is None else window - 1
    return (left, 0 if causal else left)


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, scale: float | None = None
) -> Tensor:
    """Attends both ways as a Kernel does, by one call per equal length in a row; the layouts need lengths."""
    parts, start, key_start = [], 0, 0
    for (rows, columns), group in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        count = len(list(group))
        end, key_end = start + count * rows, key_start + count * columns
        if rows:
            own = query[start:end], key[key_start:key_end], value[key_start:key_end]
            q, k, v = (each.unflatten(0, (count, -1)).transpose(1, 2) for each in own)
            mixed = scaled_dot_product_attention(q, k, v, scale=scale)
            parts.append(mixed.transpose(1, 2).flatten(0, 1))
        start, key_start = end, key_end
    return torch.cat(parts)
