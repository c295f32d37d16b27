"""What a layer before the servers adds, and loses under faults, as measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.scaling.rates import CPU, Assumptions, seconds_of_hundred
from benchmarks.simulate.costs import read


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer before the servers, as measured.

    `added` is the milliseconds that it adds to the median of a call of 1 and of 100 documents; `faults` the
    calls that failed, of how many, while one of two servers was killed and while one hung.
    """

    name: str
    added: tuple[float, float]
    faults: tuple[tuple[int, int], tuple[int, int]]
    source: str


def layers() -> list[Layer]:
    """The layers before servers, as results/balancing.json and ray.json have it."""
    found, ray = read("balancing"), read("ray")
    made = []
    for way, name in (("client", "round robin by the client"), ("nginx", "nginx"), ("haproxy", "HAProxy")):
        one, hundred = (float(found["cost"][size][way]["added_p50_ms"]) for size in ("1", "100"))
        killed, hung = (
            (sum(each["failed"].values()), each["calls"])
            for each in (found["faults"][way][fault] for fault in ("killed", "hangs"))
        )
        made.append(Layer(name, (one, hundred), (killed, hung), "`benchmarks/results/balancing.json`"))
    one, hundred = (float(ray["latency"][size]["added_p50_ms"]) for size in ("1", "100"))
    killed, hung = ((ray[fault]["failed"], ray[fault]["calls"]) for fault in ("kill", "stop"))
    made.append(
        Layer("Ray Serve, HAProxy mode", (one, hundred), (killed, hung), "`benchmarks/results/ray.json`")
    )
    return made


def of_added(assumed: Assumptions) -> Iterator[list[str]]:
    yield [
        "layer",
        "1 document, ms",
        "100 documents, ms",
        "failed: one killed",
        "failed: one hangs",
        "source",
    ]
    for each in layers():
        failed = (f"{count} of {calls:,}" for count, calls in each.faults)
        yield [each.name, *(f"{added:.1f}" for added in each.added), *failed, each.source]


def told_of_added() -> str:
    """A sentence of what the layers add."""
    *others, ray = layers()
    one, hundred = (max(each.added[size] for each in others) for size in (0, 1))
    scaling = read("ray")["scaling"]
    base = seconds_of_hundred(*CPU["bge-reranker-base, int8"])
    return (
        f"Round robin and the proxies add {one:.1f} ms at most to a call of one document and {hundred:.1f} "
        f"ms to one of 100; Ray Serve adds {ray.added[0]:.1f} and {ray.added[1]:.1f} ms, and two of its "
        f"replicas answered {scaling['times']:.2f} times as many calls as one ({scaling['two']:.0f} a second "
        f"of a model that sleeps). Beside the {base:.1f} s that base needs for 100 documents on two cores, "
        "none of them is felt; beside a card's milliseconds they are."
    )
