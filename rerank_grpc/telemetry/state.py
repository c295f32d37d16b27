"""Reads the state of models, devices and the log when Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Metric

from rerank_grpc.telemetry import families
from rerank_grpc.telemetry.families import MetricFamily
from rerank_grpc.telemetry.snapshots import BuildSnapshot, DeviceSnapshot, ModelSnapshot
from rerank_grpc.tls.serving import CertificateSnapshot
from rerank_grpc.types import State

_Labels: TypeAlias = tuple[str, ...]  # the values of a family's labels, in their order


class StateCollector:
    """Turns snapshots, which it asks for at each scrape, into metrics; a server without models has none.

    Its functions are called on the thread that scrapes, and must hold no lock for long.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        build: Callable[[], BuildSnapshot],
        dropped_lines: Callable[[], int],
        models: Callable[[], Sequence[ModelSnapshot]] = tuple,
        devices: Callable[[], Sequence[DeviceSnapshot]] = tuple,
        certificate: Callable[[], CertificateSnapshot | None] = lambda: None,
    ) -> None:
        self._build, self._dropped_lines = build, dropped_lines
        self._models, self._devices, self._certificate = models, devices, certificate
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Yields the families, which the registry checks for names that are taken."""
        return [_empty(family) for family in families.FAMILIES if family in _OF_STATE]

    def collect(self) -> Iterable[Metric]:
        """Yields the metrics of one moment."""
        models, devices = self._models(), self._devices()
        for family, value in _OF_MODELS.items():
            values = {(model.name,): value(model) for model in models}
            yield _filled(family, {labels: each for labels, each in values.items() if each is not None})
        yield _filled(
            families.MODEL_STATE,
            {(model.name, state.value): float(model.state is state) for model in models for state in State},
        )
        yield _filled(families.DEVICE_MEMORY_USED, {(each.device,): each.used_bytes for each in devices})
        yield _filled(families.DEVICE_MEMORY_FREE, {(each.device,): each.free_bytes for each in devices})
        if (shown := self._certificate()) is not None:
            yield _filled(families.CERTIFICATE_EXPIRY, {(): shown.expires})
            outcomes: dict[_Labels, float] = {
                ("taken",): float(shown.taken),
                ("refused",): float(shown.refused),
            }
            yield _filled(families.CERTIFICATE_RELOADS, outcomes)
        yield _filled(families.LOG_DROPPED, {(): self._dropped_lines()})
        yield _filled(families.BUILD_INFO, {tuple(self._build()): 1})


_OF_MODELS: dict[MetricFamily, Callable[[ModelSnapshot], float | None]] = {
    families.QUEUE_TOKENS: lambda model: model.queued_tokens,
    families.QUEUE_SECONDS: lambda model: model.queued_seconds,
    families.QUEUE_CAPACITY: lambda model: model.capacity_tokens,
    families.QUEUE_OLDEST: lambda model: model.oldest_seconds,
    families.CALLS_INSIDE: lambda model: model.calls_inside,
    families.DEVICE_BUSY: lambda model: model.busy_seconds,
    families.MODEL_LOAD_SECONDS: lambda model: model.load_seconds or None,
    families.MODEL_MEMORY: lambda model: model.memory_bytes,
    families.MODEL_LAST_USED: lambda model: model.last_used,
    families.MODEL_EVICTIONS: lambda model: model.evictions,
}
_OF_STATE = frozenset(
    (
        *_OF_MODELS,
        families.MODEL_STATE,
        families.DEVICE_MEMORY_USED,
        families.DEVICE_MEMORY_FREE,
        families.CERTIFICATE_EXPIRY,
        families.CERTIFICATE_RELOADS,
        families.LOG_DROPPED,
        families.BUILD_INFO,
    )
)


def _empty(family: MetricFamily) -> Metric:
    return Metric(family.name.removesuffix("_total"), family.meaning, family.kind)


def _filled(family: MetricFamily, values: Mapping[_Labels, float]) -> Metric:
    metric = _empty(family)
    for labels, value in values.items():
        metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
    return metric
