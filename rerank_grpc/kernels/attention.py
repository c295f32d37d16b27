"""Attention over packed parts of any lengths by one call; what computes it is chosen at load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cache
from itertools import groupby
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.device import DTYPES

log = logging.getLogger(__name__)

# How ListModels calls them.
VARLEN, FLASH, SDPA = "packed (varlen)", "packed (flash-attn)", "packed (sdpa)"

# The kernels for variable lengths: 16 bits, from Ampere on, heads that are whole lines of memory.
KERNEL_PRECISIONS = ("bf16", "fp16")
KERNEL_CAPABILITY = (8, 0)
LARGEST_HEAD = 256
HEAD_MULTIPLE = 8
# Of a few normal values' mean in 16 bits; another mask is off by much more.
TOLERANCE = 0.05


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
    """Picks for a model, whose config.json says how large its heads are, and tries what it has picked."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    heads = int(config.get("num_attention_heads") or 1)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    usable = installed()
    while (name := choose_attention(capability, precision, size, usable)) != SDPA:
        if works(name, device, precision, size):
            break
        usable -= {name}
    return name


def works(name: str, device: torch.device, precision: str, head_size: int) -> bool:
    """Whether a kernel runs here, and aligns the causal mask to the last key.

    It may have been built without this card in mind, and with more keys than
    queries some versions align to the first.
    """
    query, key, value = torch.randn(3, 5, 1, head_size, generator=torch.Generator().manual_seed(0))
    query = query[2:]
    queries, keys = (
        Layout(torch.tensor(starts, dtype=torch.int32).to(device), longest)
        for starts, longest in (((0, 1, 3), 2), ((0, 1, 5), 4))
    )
    rows = [each.to(device, DTYPES[precision]) for each in (query, key, value)]
    try:
        kernel = kernel_for(name)
        assert kernel is not None
        found = kernel(rows[0], rows[1], rows[2], queries, keys, causal=True).float().cpu()
    except Exception as error:
        log.warning("attention %s does not run on %s (%s)", name, device, type(error).__name__)
        return False
    seen = torch.ones(2, 4, dtype=torch.bool).tril(2)
    last = [each.transpose(0, 1) for each in (query[1:], key[1:], value[1:])]
    expected = scaled_dot_product_attention(last[0], last[1], last[2], attn_mask=seen).transpose(0, 1)
    right = torch.allclose(found, torch.cat([value[:1], expected]), rtol=0, atol=TOLERANCE)
    if not right:
        log.warning("attention %s computes something else on %s", name, device)
    return right


@cache
def kernel_for(name: str) -> Kernel | None:
    """The kernel of a name that choose_attention gave; None where parts are attended one by one."""
    makers: dict[str, Callable[[], Kernel]] = {VARLEN: _varlen, FLASH: _flash_attn}
    return makers[name]() if name in makers else None


def _varlen() -> Kernel:
    module: Any = importlib.import_module("torch.nn.attention.varlen")
    function = module.varlen_attn
    # torch 2.11 takes fewer heads for keys without being told, later ones want to be.
    told = "enable_gqa" in inspect.signature(function).parameters

    def options(*, causal: bool, window: int | None, scale: float | None, grouped: bool) -> dict[str, Any]:
        found = {"scale": scale, "window_size": window_of(causal=causal, window=window)}
        return found | ({"enable_gqa": True} if told and grouped else {})

    return _kernel(function, options)


def _flash_attn() -> Kernel:
    module: Any = importlib.import_module("flash_attn")

    def options(*, causal: bool, window: int | None, scale: float | None, grouped: bool) -> dict[str, Any]:
        wide = (-1, -1) if causal else window_of(causal=False, window=window)
        return {"softmax_scale": scale, "causal": causal, "window_size": wide}

    return _kernel(module.flash_attn_varlen_func, options)


def _kernel(function: Callable[..., torch.Tensor], options: Callable[..., dict[str, Any]]) -> Kernel:
    """Makes a kernel of a library's function; `options` are its names for what a Kernel is told."""

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
        grouped = query.shape[1] != key.shape[1]
        return function(
            *(query, key, value, queries.starts, keys.starts, queries.longest, keys.longest),
            **options(causal=causal, window=window, scale=scale, grouped=grouped),
        )

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
