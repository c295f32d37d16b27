"""Limits of the container: a quota of processor time, and memory as `rerank-grpc plan` tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pytest

from benchmarks import resources, workloads
from benchmarks.checkpoints import cache_folder
from tests.image.containers import HARDENED, Container, once, running

W2 = workloads.passages(32)
LOAD = {"query": W2.query, "documents": W2.documents}
CALLS = 5
MIB = 1 << 20
# The model of base's shape, where the benchmarks have made one: it is too large to be made for a test.
BASE = cache_folder() / "checkpoints" / "base-1"
NEEDS_BASE = pytest.mark.skipif(
    not (BASE / "model.safetensors").is_file(),
    reason="no checkpoint of base's shape: `python -m benchmarks.cpu --prepare --cases base/W2` makes one",
)
# The files of that folder are their owner's.
OF_BASE = (*HARDENED, f"--volume={BASE}:/models/base:ro", "--user=0:0")
# Beside the weights, while base is loaded in bf16; and the tenth that is added for the container.
LOAD_MIB, SPARE = 500, 1.1


def scheduled(container: Container) -> tuple[float, float]:
    """How many seconds the periods of its quota have lasted, and for how many it was held back."""
    text = container.run(
        "sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat 2>/dev/null || :"
    )
    found = {name: int(number) for name, number in (line.split() for line in text.splitlines())}
    # Nanoseconds in control groups of version 1, microseconds in those of version 2.
    held = found["throttled_time"] / 1e9 if "throttled_time" in found else found["throttled_usec"] / 1e6
    return found["nr_periods"] * resources.PERIOD_SECONDS, held


@contextmanager
def serving(
    image: str, *engine: str, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Container]:
    """A container that answers W2 some times before the body, and is alive and healthy behind it."""
    with running(image, engine=engine, variables=variables) as container:
        container.wait()
        for _ in range(CALLS):
            status, answer = container.ask("/v1/rerank", LOAD)
            assert (status, len(answer["results"])) == (200, 32), answer
        yield container
        assert container.state("OOMKilled") == "false"
        assert container.healthy()


@pytest.mark.parametrize("model", ["embedded", pytest.param("base", marks=NEEDS_BASE)])
def test_a_server_of_one_cpu_is_not_held_back_by_its_own_threads(image: str, model: str):
    engine = OF_BASE if model == "base" else HARDENED
    named = {"RERANK_MODELS": f"/models/{model}" if model == "base" else model, "RERANK_PRECISION": "bf16"}
    with running(image, engine=(*engine, "--cpus=1"), variables=named) as container:
        container.wait()
        before = scheduled(container)
        for _ in range(CALLS):
            assert container.ask("/v1/rerank", LOAD)[0] == 200
        after = scheduled(container)
    passed, held = (late - early for early, late in zip(before, after, strict=True))
    print(f"{model}: held back for {held:.3f} of {passed:.1f} s")
    assert passed > 0
    # Many periods end so, for a moment: threads that parse and answer work beside the one that computes.
    assert held <= resources.THROTTLED * passed, f"{held:.3f} of {passed:.1f} s"


def planned(image: str, *words: str, engine: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """What `rerank-grpc plan` tells inside the image, in bytes."""
    told: Mapping[str, Any] = json.loads(once(image, "plan", *words, "--json", engine=engine).stdout)
    return told


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_container_with_the_memory_that_plan_tells_and_a_tenth_lives(image: str, precision: str):
    memory = f"--memory={int(SPARE * planned(image, 'embedded', '--precision', precision)['peak'])}"
    with serving(image, *HARDENED, memory, variables={"RERANK_PRECISION": precision}) as container:
        assert container.state("Running") == "true"


@NEEDS_BASE
def test_base_in_bf16_lives_with_its_weights_500_mib_and_a_tenth(image: str):
    told = planned(image, "/models/base", "--precision", "bf16", engine=OF_BASE[-2:])
    memory = int(SPARE * (told["parts"]["weights"] + LOAD_MIB * MIB))
    named = {"RERANK_MODELS": "/models/base", "RERANK_PRECISION": "bf16"}
    with serving(image, *OF_BASE, f"--memory={memory}", variables=named) as container:
        most = container.run("sh", "-c", "cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes || :")
        print(f"limit {memory // MIB} MiB, at most {int(most or 0) // MIB} MiB used, pages of files too")
        assert container.state("Running") == "true"


def test_a_model_that_does_not_fit_is_refused_in_one_line_instead_of_killed(image: str):
    done = once(image, "serve", engine=("--memory=256m",), check=False)
    assert done.returncode == 1, done
    assert "at its peak in" in done.stderr
    assert "this container may use 256.0 MiB: give it" in done.stderr
    assert "Traceback" not in done.stderr
