"""Makes the registry that the settings describe."""

from __future__ import annotations

from collections.abc import Callable

from rerank_grpc.config.settings import Settings
from rerank_grpc.registry.loading import (
    Loader,
    finder_for,
    here,
    loader_for,
    preparer_for,
    ready_at_once,
)
from rerank_grpc.registry.registry import Registry


def registry_for(
    settings: Settings,
    load: Loader | None = None,
    *,
    on_change: Callable[[], None] = lambda: None,
    on_hang: Callable[[], None] = lambda: None,
) -> Registry:
    """Makes the registry that the settings describe; `load` replaces what loads real models."""
    return Registry(
        settings.models,
        load or loader_for(settings),
        prepare=ready_at_once if load else preparer_for(settings),
        find=here if load else finder_for(settings),
        budget=settings.model_memory,
        idle_seconds=settings.idle_seconds,
        # Those who wait hold worker threads: half of them stay for models that are there.
        max_waiting=max(1, settings.max_calls // 2),
        on_change=on_change,
        on_hang=on_hang,
    )
