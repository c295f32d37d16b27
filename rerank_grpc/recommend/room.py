"""The memory that a model needs here, as `rerank-grpc plan` counts it, and whether it is there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from rerank_grpc.checkpoints.checkpoint import find_weights, read_config
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.kernels.device import int8_by_features
from rerank_grpc.registry.loading import chosen_device
from rerank_grpc.registry.needs import Need, limit_of, need_of, need_on_card
from rerank_grpc.units import size


class Room(NamedTuple):
    """The need of a model in its precision, and why there is no room for it; "" if there is."""

    precision: str
    device: str
    need: Need
    problem: str = ""


def room_for(source: str, directory: Path, longest: int, settings: ServerSettings) -> Room:
    """Counts by the headers of the weights; raises ModelLoadError for files that are damaged or missing."""
    device, precision = chosen_device(source, settings, has_int8=partial(int8_by_features, settings.kernels))
    weights, config, limit = find_weights(directory), read_config(directory), limit_of(device)
    if device.type == "cuda":
        need = need_on_card(weights, config, precision)
    else:
        need = need_of(weights, config, precision, settings.engine.max_batch_tokens, longest, limit)
    problem = ""
    if limit is not None and need.peak > limit.most:
        problem = f"it would need {size(need.peak)} in {precision}, and {limit.source} has {size(limit.most)}"
    elif limit is not None and need.load > limit.free:
        problem = (
            f"its load would need {size(need.load)} in {precision}, and {size(limit.free)} are free in "
            f"{limit.source} now"
        )
    return Room(precision, str(device), need, problem)
