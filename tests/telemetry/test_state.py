"""What a scrape tells of models, devices and the release."""

import pytest
from prometheus_client import generate_latest

from rerank_grpc.telemetry.metrics import Metrics
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.telemetry.snapshots import BuildSnapshot, DeviceSnapshot, ModelSnapshot
from rerank_grpc.telemetry.state import StateCollector
from rerank_grpc.tls.serving import CertificateSnapshot
from rerank_grpc.types import State

READY = ModelSnapshot("one", State.READY, 2.5, 1_000, 1_700_000_000.5, 3, 4, 50, 2.25, 60, 7.5, 80.25)
RELEASE = BuildSnapshot("1.0")
NEVER = ModelSnapshot("two", State.UNLOADED, 0.0, 0, None, 0, 0, 0, 0.0, 0, 0.0, 0.0)


def registry_of(
    *models: ModelSnapshot,
    devices: tuple[DeviceSnapshot, ...] = (),
    build: BuildSnapshot = RELEASE,
    dropped: int = 0,
) -> MetricsRegistry:
    registry = MetricsRegistry()
    StateCollector(
        registry,
        models=lambda: models,
        devices=lambda: devices,
        build=lambda: build,
        dropped_lines=lambda: dropped,
    )
    return registry


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rerank_queue_tokens", 50),
        ("rerank_queue_seconds", 2.25),
        ("rerank_queue_capacity_tokens", 60),
        ("rerank_queue_oldest_seconds", 7.5),
        ("rerank_calls_inside", 4),
        ("rerank_device_busy_seconds_total", 80.25),
        ("rerank_model_load_duration_seconds", 2.5),
        ("rerank_model_memory_bytes", 1_000),
        ("rerank_model_last_used_timestamp_seconds", 1_700_000_000.5),
        ("rerank_model_evictions_total", 3),
    ],
)
def test_a_model_tells_how_it_is(name: str, value: float):
    registry = registry_of(READY, NEVER)
    assert registry.get_sample_value(name, {"model": "one"}) == value


def test_a_model_that_was_never_loaded_has_no_time_of_a_load_nor_of_a_use():
    registry = registry_of(READY, NEVER)
    for name in ("rerank_model_load_duration_seconds", "rerank_model_last_used_timestamp_seconds"):
        assert registry.get_sample_value(name, {"model": "two"}) is None
    assert registry.get_sample_value("rerank_model_memory_bytes", {"model": "two"}) == 0


def test_a_model_is_in_one_state_and_not_in_the_others():
    registry = registry_of(READY, NEVER)
    for model in (READY, NEVER):
        values = {
            state: registry.get_sample_value(
                "rerank_model_state", {"model": model.name, "state": state.value}
            )
            for state in State
        }
        assert values == {state: float(state is model.state) for state in State}


def test_devices_the_release_and_the_log_are_told():
    devices = DeviceSnapshot("cuda:0", 30, 70), DeviceSnapshot("cpu", 1, 2)
    build = BuildSnapshot("1.0", "2.11", "cuda:0", "bf16")
    registry = registry_of(devices=devices, build=build, dropped=12)
    assert registry.get_sample_value("rerank_device_memory_used_bytes", {"device": "cuda:0"}) == 30
    assert registry.get_sample_value("rerank_device_memory_free_bytes", {"device": "cpu"}) == 2
    assert registry.get_sample_value("rerank_build_info", build._asdict()) == 1
    assert registry.get_sample_value("rerank_log_dropped_lines_total") == 12


def test_a_server_without_models_tells_its_release_alone():
    registry = MetricsRegistry()
    StateCollector(registry, build=lambda: RELEASE, dropped_lines=int)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines == [
        "rerank_log_dropped_lines_total 0.0",
        'rerank_build_info{device="",precision="",torch="",version="1.0"} 1.0',
    ]


def test_it_stands_beside_the_metrics_of_calls_in_one_registry_and_no_second_time():
    registry = registry_of(READY)
    Metrics(registry, ["one"])
    with pytest.raises(ValueError, match="Duplicated"):
        StateCollector(registry, build=lambda: RELEASE, dropped_lines=int)


def test_a_certificate_tells_its_end_and_what_became_of_new_ones():
    registry = MetricsRegistry()
    certificate = CertificateSnapshot(1_800_000_000.0, 3, 1)
    StateCollector(registry, build=lambda: RELEASE, dropped_lines=int, certificate=lambda: certificate)
    assert registry.get_sample_value("rerank_tls_certificate_expiry_timestamp_seconds") == 1_800_000_000.0
    told = [
        registry.get_sample_value("rerank_tls_reloads_total", {"outcome": outcome})
        for outcome in ("taken", "refused")
    ]
    assert told == [3, 1]
