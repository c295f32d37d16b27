"""The tables of the page, each from the committed results."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks import report
from benchmarks.scaling.layers import of_added
from benchmarks.scaling.rates import (
    CARDS,
    CPU,
    GPU,
    MEASURED_CORES,
    Assumptions,
    cards,
    cores,
    machines_of,
    operations_of,
    rented,
    seconds_of_hundred,
)
from benchmarks.simulate.costs import measured, read
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.limits import LIMITS, MIB
from rerank_grpc.server import methods, server

WANTED = (10, 1_000, 100_000, 10_000_000)  # documents a second
DOCUMENTS_A_CALL, BYTES_A_DOCUMENT = 100, 600
CORES, CARD = "for base in int8 on 2 cores", "on an H100, estimated"
QUICK = "measured: `benchmarks/results/quick.json`"
SERIES = "measured: `benchmarks/results/scaling.json`"


def of_rates(assumed: Assumptions) -> Iterator[list[str]]:
    yield ["model", "100 documents, s", "documents/s, 2 cores", "documents/s, a core"]
    for (name, case), rate in zip(CPU.items(), cores(assumed), strict=True):
        both = rate.per_second * MEASURED_CORES
        yield [name, f"{seconds_of_hundred(*case):.2f}", f"{both:.1f}", f"{rate.per_second:.1f}"]


def of_cpus(assumed: Assumptions) -> Iterator[list[str]]:
    yield ["model", *(f"{wanted:,}/s" for wanted in WANTED)]
    for rate in cores(assumed):
        cells = []
        for wanted in WANTED:
            paid = rented(rate.units(wanted, assumed.busy), assumed.machine_cores)
            cells.append(
                f"{machines_of(paid, assumed.machine_cores)} ({rate.per_million(paid, wanted):,.2f})"
            )
        yield [rate.name, *cells]


def of_gpus(assumed: Assumptions) -> Iterator[list[str]]:
    yield ["model, card", "GFLOP a document", "documents/s", *(f"{wanted:,}/s" for wanted in WANTED)]
    operations = [operations_of(case) for case, _ in GPU.values() for _ in CARDS]
    for rate, each in zip(cards(assumed), operations, strict=True):
        units = [(rate.units(wanted, assumed.busy), wanted) for wanted in WANTED]
        cells = [f"{count:,} ({rate.per_million(count, wanted):,.2f})" for count, wanted in units]
        yield [rate.name, f"{each / 1e9:.0f}", f"{rate.per_second:,.0f}", *cells]


def of_layers(assumed: Assumptions) -> Iterator[list[str]]:
    """Everything that grows with the number of documents, for base on CPUs and on a card."""
    found = {rate.name: rate for rate in (*cores(assumed), *cards(assumed))}
    core, card = found["bge-reranker-base, int8"], found["bge-reranker-base, H100"]
    series = read("scaling")["series"]
    yield ["", *(f"{wanted:,}/s" for wanted in WANTED)]
    calls = [wanted / DOCUMENTS_A_CALL for wanted in WANTED]
    yield ["calls/s", *(f"{each:,.1f}" if each < 1 else f"{each:,.0f}" for each in calls)]
    yield ["Gbit/s of texts", *(f"{wanted * BYTES_A_DOCUMENT * 8 / 1e9:,.3g}" for wanted in WANTED)]
    for title, unit, units in (
        (f"CPU servers of {assumed.machine_cores} cores", core, assumed.machine_cores),
        (f"CPU servers of {MEASURED_CORES} cores", core, MEASURED_CORES),
        ("GPU servers", card, 1),
    ):
        counts = [math.ceil(unit.units(each, assumed.busy) / units) for each in WANTED]
        yield [f"{title}, base", *(f"{each:,}" for each in counts)]
        pairs = zip(calls, counts, strict=True)
        yield ["… calls/s of a server", *(f"{call / count:,.2g}" for call, count in pairs)]
        yield ["… connections of 1,000 clients", *(f"{1_000 * each:,}" for each in counts)]
        yield ["… series of metrics", *(f"{series['one_model'] * each:,}" for each in counts)]


def of_limits(assumed: Assumptions) -> Iterator[list[str]]:
    """The service's own limits, as the code has them."""
    settings, engine = ServerSettings(), EngineSettings()
    found, core = read("scaling")["series"], measured("base-int8")
    base, card = (
        {rate.name: rate.per_second for rate in rates}[name]
        for rates, name in (
            (cores(assumed), "bge-reranker-base, int8"),
            (cards(assumed), "bge-reranker-base, H100"),
        )
    )
    calls, streams = settings.max_calls, 2 * max(settings.max_calls, server.LEAST_STREAMS)
    threads = calls + calls // 2 + 2 * max(calls, methods.TEXTS_CAPACITY) + methods.SPARE_THREADS
    overhead = read("quick")["overhead"]
    yield ["limit", "value", "source"]
    files = "a quarter of the open files, at most"
    yield ["connections of a port", f"{files} {server.MOST_CONNECTIONS:,}", "`server/server.py`"]
    yield ["calls on one connection", f"{streams}", "`server/server.py`: 2 × `--max-calls`"]
    inside = calls * DOCUMENTS_A_CALL
    full = f"{calls}; of {DOCUMENTS_A_CALL} documents each {inside / (2 * base):,.0f} s of work {CORES}"
    full += f", {inside / card:.1f} s {CARD}"
    yield ["calls inside a server", full, "`config/settings.py`: `--max-calls`"]
    yield ["text inside a server", f"{LIMITS.characters_inside // MIB} Mi characters", "`limits.py`"]
    yield ["threads for Rerank", f"{threads}", "`server/methods.py`"]
    queue = f"{engine.max_queue_tokens:,} tokens"
    case = read("cpu")["cases"]["base/W2"]
    on_card = engine.max_queue_tokens / (card * case["tokens"] / case["documents"])
    drain = (
        f"{engine.max_queue_tokens / core.tokens_per_second:,.0f} s of work {CORES}, {on_card:.1f} s {CARD}"
    )
    yield ["queue of a model", f"{queue}: {drain}", "`config/settings.py`: `--max-queue-tokens`"]
    yield ["documents of a call", f"{LIMITS.documents:,}", "`limits.py`"]
    yield ["request, reply", f"{LIMITS.message_bytes // MIB}, {LIMITS.reply_bytes // MIB} MiB", "`limits.py`"]
    rate = overhead["service_calls_per_second"]["median"]
    yield ["calls/s of a server", f"{rate:,.0f} of one document, with a model that costs nothing", QUICK]
    hundred = overhead["service_100_ms"]["median"]
    yield ["time beside the device", f"{hundred:.1f} ms for 100 documents, tokenizing included", QUICK]
    each = f"{found['one_model']} after a first call, {found['bytes'] / 1e3:.0f} kB a scrape; further ones:"
    each += f" {found['further_model']} a model, {found['further_method']} a method that is called,"
    each += f" {found['further_code']} a status code with which a method ends"
    yield ["series of metrics", each, SERIES]


def of_balancing(assumed: Assumptions) -> Iterator[list[str]]:
    """What the simulator says of each rule."""
    found = read("scaling")
    yield ["rule", *(f"{case['replicas']} at {case['load']:.0%}" for case in found["balancing"])]
    for rule in found["balancing"][0]["rules"]:
        cells = []
        for case in found["balancing"]:
            each = case["rules"][rule]
            refused = 1 - each["answered"] / each["calls"]
            cells.append(f"{each['p50']:.1f} / {each['p99']:.1f}" + (f", {refused:.1%}" if refused else ""))
        yield [rule, *cells]
    counted = (f"{case['seconds']:,.0f}" for case in found["balancing"])
    yield [f"seconds that count, after {found['warm_up']:g} others", *counted]


TABLES = {
    "rates": of_rates,
    "cpus": of_cpus,
    "gpus": of_gpus,
    "layers": of_layers,
    "limits": of_limits,
    "balancing": of_balancing,
    "added": of_added,
}


def table(name: str, assumed: Assumptions) -> str:
    header, *rows = TABLES[name](assumed)
    return report.table(header, rows)
