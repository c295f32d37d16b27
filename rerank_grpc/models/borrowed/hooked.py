"""Transformers' own bodies over packed sequences, with our attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rerank_grpc.kernels.attention import Attention, kernel_for
from rerank_grpc.kernels.base import Kernel, Layout
from rerank_grpc.kernels.causal import CausalParts, GatheredParts, attend_window, causal_parts
from rerank_grpc.kernels.plain import aligned
from rerank_grpc.models.base import PackedTokens

# The name of our attention in transformers. No mask function may be registered under it: transformers
# would call it, and it synchronises the device; without one it makes no mask. And it may not contain
# "flash": transformers would take the model for one that its own integration runs.
HOOK = "rerank_grpc_packed"


# Arguments that transformers' layers pass to all attention functions, and that change nothing in evaluation.
INDIFFERENT = frozenset({"position_ids", "use_cache", "dropout", "deterministic"})

# Rotary embeddings that take each position by itself.
STEADY_ROTATIONS = ("default", "linear", "yarn", "llama3", "proportional")


class NotPackable(Exception):
    """A network asks for what the packed pass does not compute; the message names it."""


@dataclass(slots=True)
class AttentionCall:
    """The attention of all layers in one pass: causal if there are causal parts, else both ways."""

    layout: Layout
    kernel: Kernel | None
    causal: CausalParts | GatheredParts | None
    layers: int = 0  # those that have attended


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    call: AttentionCall,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attends as transformers' functions do: [1, heads, num_tokens, size] → [1, num_tokens, heads, size].

    Raises NotPackable for a mask, and for arguments whose effect is not known.
    """
    _check_arguments(others | {"attention_mask": attention_mask})
    if is_causal is not None and is_causal != (call.causal is not None):
        raise NotPackable(f"is_causal={is_causal}")
    call.layers += 1
    if call.causal is not None:
        return call.causal.attend_causal(module.layer_idx, query, key, value, scaling, sliding_window), None
    layout, kernel = call.layout, call.kernel
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [num_tokens, heads, size]
    k, v, keys = layout.seen(k, v)
    if kernel is not None and aligned(layout, keys, sliding_window):
        return kernel(q, k, v, layout, keys, window=sliding_window, scale=scaling)[None], None
    parts = zip(
        query.split(layout.lengths, dim=2),
        *(each.transpose(0, 1)[None].split(keys.lengths, dim=2) for each in (k, v)),
        strict=True,
    )
    mixed = [attend_window(q, k, v, scaling, sliding_window) for q, k, v in parts]
    return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises NotPackable for soft caps, sinks, biases, masks and whatever else a layer may ask for."""
    for name, value in arguments.items():
        if name not in INDIFFERENT and value is not None and value is not False:
            raise NotPackable(name)


AttentionInterface.register(HOOK, attend)


class HookedBody:
    """Runs a body of transformers that attends by the HOOK, where the rest takes each token by itself.

    Raises NotPackable for rotations that depend on the longest sequence of a pass, and for a body that takes
    nothing for its attention.
    """

    def __init__(self, body: Any, attention: Attention, *, causal: bool = False) -> None:
        if kind := stretching_rotation(body.config):
            raise NotPackable(f"rotary embedding {kind!r}")
        self.body = body
        self._kernel = kernel_for(attention)
        self._causal = causal
        parameters = inspect.signature(body.forward).parameters
        if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            raise NotPackable("attention of its own")  # which nothing reaches
        self._takes = frozenset(parameters)
        self._reads_types = "token_type_ids" in parameters and reads_types(body)

    @contextmanager
    def without_kernel(self) -> Iterator[None]:
        """Attends part by part, which takes float32 as well."""
        kernel, self._kernel = self._kernel, None
        try:
            yield
        finally:
            self._kernel = kernel

    def __call__(self, packed: PackedTokens) -> Tensor:
        """Returns the last rows  # [num_tokens, hidden]; raises NotPackable if a layer asks for more."""
        causal = None
        if self._causal:
            causal = causal_parts(packed.contexts, packed.prefixes, packed.layout, self._kernel)
        call = AttentionCall(packed.layout, self._kernel, causal)
        inputs: dict[str, Any] = {"position_ids": packed.position_ids[None]}
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        if self._reads_types:
            inputs["token_type_ids"] = packed.token_type_ids[None]
        output = self.body(input_ids=packed.input_ids[None], call=call, **inputs)
        if not call.layers:
            raise NotPackable("attention of its own")
        rows: Tensor = output.last_hidden_state[0]
        return rows


def stretching_rotation(config: Any) -> str:
    """Names a rotary embedding by which the longest sequence of a pass changes the others; "" for none."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in parameters.values() if isinstance(each, dict)]
    kinds = [str(each.get("rope_type", "default")) for each in by_layer or [parameters]]
    return next((kind for kind in kinds if kind not in STEADY_ROTATIONS), "")


def reads_types(network: Any) -> bool:
    """Whether a network distinguishes the tokens of a second text."""
    return int(getattr(network.config, "type_vocab_size", 0) or 0) > 1


def attends_causally(body: Any) -> bool:
    """Whether the layers of a body of transformers say that a token sees what stands before it alone."""
    if not getattr(body.config, "is_causal", True):
        return False
    said = [module.is_causal for module in body.modules() if hasattr(module, "is_causal")]
    return bool(said) and all(said)
