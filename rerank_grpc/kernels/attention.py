"""Attention over packed parts of any lengths by one call, by a kernel that is chosen and tried at load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import Kernel, Layout
from rerank_grpc.kernels.device import DTYPES

log = logging.getLogger(__name__)

# The kernels for variable lengths: 16 bits, from Ampere on, heads that are whole lines of memory.
KERNEL_PRECISIONS = ("bf16", "fp16")
KERNEL_CAPABILITY = (8, 0)
LARGEST_HEAD = 256
HEAD_MULTIPLE = 8
# Of the mean of a few normal values in 16 bits; another mask is off by much more.
TOLERANCE = 0.05


class Attention(Enum):
    """How a model attends; the value is the label that ListModels shows.

    PADDED is transformers' own attention over padded sequences; all others
    attend over packed ones: SDPA part by part, VARLEN and FLASH in one call.
    """

    VARLEN = "packed (varlen)"
    FLASH = "packed (flash-attn)"
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
    """Whether the kernels for variable lengths take such heads; `capability` is None on the CPU."""
    return (
        capability is not None
        and capability >= KERNEL_CAPABILITY
        and precision in KERNEL_PRECISIONS
        and head_size <= LARGEST_HEAD
        and head_size % HEAD_MULTIPLE == 0
    )


@cache
def installed() -> tuple[Attention, ...]:
    """Lists the kernels that can be imported here, the fastest first."""
    return tuple(
        attention for attention, module in MODULES.items() if importlib.util.find_spec(module) is not None
    )


def works(attention: Attention, device: torch.device, precision: str, head_size: int) -> bool:
    """Whether a kernel runs here, and aligns the causal mask to the last key.

    A kernel may have been built without this card in mind, and with more keys
    than queries some versions align to the first.
    """
    query, key, value = torch.randn(3, 5, 1, head_size, generator=torch.Generator().manual_seed(0))
    query = query[2:]
    queries, keys = (
        Layout(torch.tensor(starts, dtype=torch.int32).to(device), longest)
        for starts, longest in (((0, 1, 3), 2), ((0, 1, 5), 4))
    )
    rows = [each.to(device, DTYPES[precision]) for each in (query, key, value)]
    try:
        kernel = kernel_for(attention)
        assert kernel is not None
        found = kernel(rows[0], rows[1], rows[2], queries, keys, causal=True).float().cpu()
    except Exception as error:
        log.warning("attention %s does not run on %s (%s)", attention.label, device, type(error).__name__)
        return False
    seen = torch.ones(2, 4, dtype=torch.bool).tril(2)
    last = [each.transpose(0, 1) for each in (query[1:], key[1:], value[1:])]
    expected = scaled_dot_product_attention(last[0], last[1], last[2], attn_mask=seen).transpose(0, 1)
    right = torch.allclose(found, torch.cat([value[:1], expected]), rtol=0, atol=TOLERANCE)
    if not right:
        log.warning("attention %s computes something else on %s", attention.label, device)
    return right


@cache
def kernel_for(attention: Attention) -> Kernel | None:
    """The kernel that attends in one call; None where parts are attended one by one."""
    if attention is Attention.VARLEN:
        return _varlen()
    return _flash_attn() if attention is Attention.FLASH else None


def _varlen() -> Kernel:
    module: Any = importlib.import_module(MODULES[Attention.VARLEN])
    function = module.varlen_attn
    # torch 2.11 takes fewer heads for keys without being told, later ones want to be.
    told = "enable_gqa" in inspect.signature(function).parameters

    def options(*, causal: bool, window: int | None, scale: float | None, grouped: bool) -> dict[str, Any]:
        found = {"scale": scale, "window_size": window_of(causal=causal, window=window)}
        return found | ({"enable_gqa": True} if told and grouped else {})

    return _kernel(function, options)


def _flash_attn() -> Kernel:
    module: Any = importlib.import_module(MODULES[Attention.FLASH])

    def options(*, causal: bool, window: int | None, scale: float | None, grouped: bool) -> dict[str, Any]:
        wide = (-1, -1) if causal else window_of(causal=False, window=window)
        return {"softmax_scale": scale, "causal": causal, "window_size": wide}

    return _kernel(module.flash_attn_varlen_func, options)


def _kernel(function: Callable[..., torch.Tensor], options: Callable[..., dict[str, Any]]) -> Kernel:
    """Makes a kernel of a library's function; `options` translates a Kernel's options to its own."""

    def kernel(
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
        grouped = query.shape[1] != key.shape[1]
        return function(
            *(query, key, value, queries.starts, keys.starts, queries.longest, keys.longest),
            **options(causal=causal, window=window, scale=scale, grouped=grouped),
        )

    return kernel


def window_of(*, causal: bool, window: int | None) -> tuple[int, int]:
    """The keys to the left and to the right that a query sees, -1 for all, itself not counted."""
    if causal:
        return (-1, 0)
    return (-1, -1) if window is None else (window - 1, window - 1)


def attend_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Layout, keys: Layout
) -> torch.Tensor:
    """Attends both ways as a Kernel does, by one call for neighbours of equal length.

    The layouts must hold the lengths.
    """
    parts, start, key_start = [], 0, 0
    for (rows, columns), group in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        count = len(list(group))
        end, key_end = start + count * rows, key_start + count * columns
        own = query[start:end], key[key_start:key_end], value[key_start:key_end]
        folded = [each.unflatten(0, (count, -1)).transpose(1, 2) for each in own]
        parts.append(scaled_dot_product_attention(*folded).transpose(1, 2).flatten(0, 1))
        start, key_start = end, key_end
    return torch.cat(parts)
