"""Rotary embeddings: the angle of each pair of a head's columns for one place, as config.json asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rerank_grpc.models.bodies.plan import NoPlan, RotationPlan

Parameters: TypeAlias = Mapping[str, Any]  # of rope_parameters, or rope_scaling
# From the frequencies without a change, theta and parameters to those that are asked for, and a factor
Change: TypeAlias = Callable[[Tensor, float, Parameters], tuple[Tensor, float]]


def rotation(size: int, theta: float, parameters: Parameters, positions: int) -> RotationPlan:
    """Reads a rotation of heads of `size`; raises NoPlan for kinds and parameters not known here.

    `positions` are those of the network, which stand for the original ones where those are not named.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    change = CHANGES.get(str(kind))
    if change is None or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise NoPlan(f"rotary embedding {str(kind)[:40]!r}")
    # In float32: places of tens of thousands make the last bit of a frequency show.
    frequencies = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    # Null stands for the default, but turns a switch off.
    stated = {name: value for name, value in parameters.items() if value is not None or name == "truncate"}
    named = {"original_max_position_embeddings": positions} | stated
    try:
        changed, factor = change(frequencies, theta, named)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise NoPlan(f"rotary embedding {str(kind)[:40]!r} of other parameters") from error
    plan = RotationPlan(tuple(changed.tolist()), factor)
    if not all(map(math.isfinite, (*plan.frequencies, plan.factor))):
        raise NoPlan(f"rotary embedding {str(kind)[:40]!r} of infinite frequencies")
    return plan


def _unchanged(frequencies: Tensor, _theta: float, _parameters: Parameters) -> tuple[Tensor, float]:
    return frequencies, 1.0


def _linear(frequencies: Tensor, _theta: float, parameters: Parameters) -> tuple[Tensor, float]:
    return frequencies / parameters["factor"], 1.0


def _llama3(frequencies: Tensor, _theta: float, parameters: Parameters) -> tuple[Tensor, float]:
    """Divides low frequencies by a factor, keeps high ones, and blends between."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    if not 0 < low < high:
        raise ValueError("transformers blends other columns")
    turns = original / (2 * math.pi / frequencies)  # within the original positions
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(frequencies: Tensor, theta: float, parameters: Parameters) -> tuple[Tensor, float]:
    """Blends likewise, along columns, and scales cosines and sines."""
    factor, size = parameters["factor"], 2 * len(frequencies)
    original = parameters["original_max_position_embeddings"]

    def column(turns: float) -> float:
        """The column that turns so often within the original positions."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = column(parameters.get("beta_fast") or 32), column(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0
    slow = ((torch.arange(len(frequencies), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * slow + frequencies * (1 - slow), _yarn_factor(factor, parameters)


def _yarn_factor(factor: float, parameters: Parameters) -> float:
    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (named := parameters.get("attention_factor")) is not None:
        return float(named)
    scale, all_scale = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return grown(scale) / grown(all_scale) if scale and all_scale else grown(1.0)


CHANGES: Mapping[str, Change] = {
    "default": _unchanged,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
