"""What the service makes of a CPU, and its peers beside it, in one interleaved run.

    python -m benchmarks.cpu                          all cases, the most telling ones first
    python -m benchmarks.cpu --cases base/W2          one case
    python -m benchmarks.cpu --rounds 3               fewer rounds of each
    python -m benchmarks.cpu --estimate               how long it takes; nothing is measured
    python -m benchmarks.cpu --prepare                checkpoints, peers, their forms of the models and the
                                                      logits of transformers in fp32; nothing is measured
    python -m benchmarks.cpu --report                 the page again, from the samples that are there
    python -m benchmarks.cpu --trial --rounds 1 --documents 4 --cases base/W2
                                                      tries the script: writes nothing

A case is a shape and a workload. In each round every system scores it once,
and the plain matrix product is measured too; efficiencies and ratios are taken
within a round, and their median over the rounds is reported. A finished round
is kept: the run can be interrupted and goes on where it was. `--fresh` starts
over. A sample during which other processes used the CPU is taken again. Peers
get environments of their own, see environments.py.

`--documents` cuts each call to its first documents on a slow machine, and the
page says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import checkpoints, convert, counting, cpu_page, environments, report, worker, workloads
from benchmarks.environments import Unavailable
from benchmarks.running import Worker, available_memory, resident, sample
from benchmarks.systems import CASES, OURS, PEERS, REFERENCES, TRIALS

THREADS = 2
ROUNDS = 5
SAMPLES = report.RESULTS / "cpu.json"
WARM_UP = "W2:8"
# Of a shape with more weights than these, errors are those of the first documents, of fewer if they are
# long: fp32 takes minutes.
LARGE, COMPARED, COMPARED_LONG = 200e6, 25, 5

# For estimates: FLOP/s of products and, where no sample tells, useful FLOP/s; seconds of a start, and of what
# is around each sample.
PRODUCT_RATES = {"fp32": 150e9, "bf16": 400e9, "int8": 800e9}
RATES = {"fp32": 90e9, "bf16": 180e9, "int8": 400e9}
OUR_RATES = {"fp32": 170e9, "bf16": 370e9, "int8": 600e9}
START_SECONDS, AROUND_SECONDS = 13.0, 0.7

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A shape and a workload, counted, and the systems that score it."""

    name: str
    shape: checkpoints.Shape
    workload: str
    path: Path
    counted: counting.Counted
    systems: tuple[str, ...]

    @classmethod
    def of(cls, name: str, documents: int = 0) -> Case:
        shape, _, rest = name.partition("/")
        workload = rest.split()[0] + (f":{documents}" if documents else "")
        path, called = checkpoints.checkpoint(shape), workloads.named(workload)
        counted = counting.count(checkpoints.SHAPES[shape], path, called)
        systems = (CASES | TRIALS)[name]
        return cls(name, checkpoints.SHAPES[shape], workload, path, counted, systems)

    @property
    def flop(self) -> float:
        return self.shape.useful_flop(self.counted.lengths, self.counted.prefix)

    @property
    def compared(self) -> str:
        """The workload whose scores are compared: this one, or its first documents."""
        most = COMPARED_LONG if workloads.named(self.workload).max_tokens > 512 else COMPARED
        if self.shape.linear_weights < LARGE or len(self.documents(self.workload)) <= most:
            return self.workload
        return f"{self.workload.partition(':')[0]}:{most}"

    @staticmethod
    def documents(workload: str) -> tuple[str, ...]:
        return workloads.named(workload).documents

    @property
    def facts(self) -> Data:
        documents = len(self.documents(self.workload))
        whole = len(self.documents(self.workload.partition(":")[0]))
        return {
            "like": self.shape.like,
            "tokens": self.counted.tokens,
            "prefix": self.counted.prefix,
            "flop": self.flop,
            "documents": documents,
            "left_out": whole - documents,
            "compared": len(self.documents(self.compared)),
        }


def main() -> None:
    options = parsed()
    data: Data = json.loads(SAMPLES.read_text()) if SAMPLES.is_file() else {"cases": {}}
    if options.report:
        print(cpu_page.write(data))
        return
    cases = [Case.of(name, options.documents) for name in options.cases]
    chosen = {case.name: systems_of(case, options) for case in cases}
    if options.trial:
        data = {"cases": {}}
    if options.fresh:
        for case in cases:
            data["cases"].pop(case.name, None)
    print_estimates(cases, chosen, data, options.rounds)
    if options.estimate:
        return
    if options.prepare:
        for case in cases:
            prepare(case, chosen[case.name])
        return
    data |= {"machine": report.machine(), "threads": THREADS}
    data["versions"] = report.versions("torch", "transformers", "tokenizers", "grpcio")
    for case in cases:
        measure(case, chosen[case.name], data, options)
    if options.trial:
        print(cpu_page.page(data))
        return
    if "base/W2" in options.cases:
        data["memory"] = {kind: resident("base", kind) for kind in ("fp32", "bf16", "int8")}
    data["peers"] = {name: environments.versions_of(name) for name in environments.SHOWN}
    save(data)
    print(cpu_page.write(data))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=[*CASES, *TRIALS], default=list(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--systems", nargs="*", default=[], help="these alone, e.g. 'rerank-grpc bf16'")
    parser.add_argument("--skip", nargs="*", default=[], help="systems to leave out, e.g. 'infinity bf16'")
    parser.add_argument("--documents", type=int, default=0, help="the first documents of each call alone")
    parser.add_argument("--fresh", action="store_true", help="forget the samples of these cases")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, measure nothing")
    parser.add_argument("--prepare", action="store_true", help="make what the cases need, measure nothing")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    parser.add_argument(
        "--trial", action="store_true", help="wait for no quiet, print the page, write nothing"
    )
    options = parser.parse_args()
    known = {system for name in options.cases for system in (CASES | TRIALS)[name]}
    if unknown := sorted({*options.systems, *options.skip} - known):
        parser.error(f"no case has the system {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return options


def systems_of(case: Case, options: argparse.Namespace) -> list[str]:
    """The systems of a case that the options leave."""
    return [
        name
        for name in case.systems
        if name not in options.skip and (not options.systems or name in options.systems)
    ]


def prepare(case: Case, systems: list[str]) -> None:
    """Makes everything that a case needs and that a later run finds."""
    progress(f"{case.name}: logits of transformers in fp32: {'kept' if reference(case) else 'not available'}")
    for system in systems:
        try:
            environments.python_of(PEERS[system.partition(" ")[0]])
            convert.provide(system, case.path)
        except Unavailable as error:
            progress(f"{case.name}: {system}: {error}")


def reference(case: Case, *, score: bool = True) -> list[float]:
    """The logits of transformers in fp32, kept beside the checkpoints: they do not change.

    Empty without kept ones if it is not to `score` them, or cannot.
    """
    folder = checkpoints.cache_folder() / "references"
    texts = counting.texts_of(workloads.named(case.compared)).encode()
    digest = hashlib.sha256(texts).hexdigest()[:12]
    file = folder / f"{case.shape.name}-{checkpoints.RECIPE}-{digest}.json"
    if not file.is_file():
        if not score:
            return []
        progress(f"{case.name}: scoring by transformers in fp32, once")
        try:
            running = Worker(REFERENCES[case.shape.reads], case.shape.name, THREADS)
        except Unavailable as error:
            progress(f"{case.name}: no reference: {error}")
            return []
        scores = running.score(case.compared)["scores"]
        running.close()
        folder.mkdir(exist_ok=True)
        file.write_text(json.dumps(scores))
    found: list[float] = json.loads(file.read_text())
    return found


def print_estimates(cases: list[Case], chosen: dict[str, list[str]], data: Data, rounds: int) -> None:
    """Says how long the rounds that are missing will take, if nothing disturbs them."""
    whole = 0.0
    for case in cases:
        missing = rounds - len(data["cases"].get(case.name, {"rounds": []})["rounds"])
        names = chosen[case.name]
        start = START_SECONDS * len(names) if missing > 0 else 0.0
        each = sum(seconds_of(case, name, names, data) for name in names)
        whole += start + max(0, missing) * each
        print(
            f"{case.name}: {max(0, missing)} rounds of {each:.0f} s, {start:.0f} s to start "
            f"{len(names)} systems; {whole / 60:.0f} minutes until then",
            file=sys.stderr,
        )


def seconds_of(case: Case, name: str, names: list[str], data: Data) -> float:
    """What a system takes in one round, by its samples of any case, or by RATES."""
    system, kind = name.split()
    if system == "product":
        before = sum(each.split()[0] in OURS and each.split()[1] == kind for each in names)
        flop = worker.product_flop(case.shape) * (worker.REPEATS + 1)
        return (flop / PRODUCT_RATES[kind] + AROUND_SECONDS) * (2 + before)
    known = [
        each["flop"] / round_["seconds"][name]
        for each in data["cases"].values()
        for round_ in each["rounds"]
        if name in round_["seconds"]
    ]
    guessed = (OUR_RATES if system in OURS else RATES)[kind]
    return case.flop / (median(known) if known else guessed) + AROUND_SECONDS


def measure(case: Case, systems: list[str], data: Data, options: argparse.Namespace) -> None:
    """Measures the rounds of a case that are missing."""
    found = data["cases"].setdefault(case.name, {"rounds": [], "errors": {}, "skipped": {}})
    if found["rounds"] and found["documents"] != case.facts["documents"]:
        raise SystemExit(
            f"{case.name}: its samples are of {found['documents']} documents: give --documents "
            f"{found['documents']}, or --fresh"
        )
    found |= case.facts
    if len(found["rounds"]) >= options.rounds:
        return
    found["skipped"] = {name: "left out by hand" for name in case.systems if name not in systems}
    # A trial does without what would have to be installed for it.
    expected = reference(case, score=not options.trial)
    workers: dict[str, Worker] = {}
    try:
        for system in systems:
            progress(f"{case.name}: starting {system}")
            try:
                workers[system] = started(case, system)
            except Unavailable as error:
                found["skipped"][system] = str(error)
                progress(f"{case.name}: {system} skipped: {error}")
        while len(found["rounds"]) < options.rounds:
            found["rounds"].append(one_round(case, workers, found, expected, quiet=not options.trial))
            if not options.trial:
                save(data)
    finally:
        for running in workers.values():
            running.close()


def started(case: Case, system: str) -> Worker:
    """Starts a system and warms it up; raises Unavailable."""
    needed = (case.path / "model.safetensors").stat().st_size * 2.2
    if not system.startswith("product") and needed > available_memory():
        raise Unavailable("not enough memory beside the other systems")
    running = Worker(system, case.shape.name, THREADS)
    running.score(WARM_UP)
    return running


def one_round(
    case: Case, workers: dict[str, Worker], found: Data, expected: list[float], *, quiet: bool
) -> Data:
    """Runs every system once; products come as FLOP/s, all others as seconds."""
    number = len(found["rounds"])
    result: Data = {"at": report.now(), "seconds": {}, "rates": {}, "others": {}}
    rates: dict[str, list[float]] = {}
    for name in order_of(list(workers), number):
        answer, others = sample(workers[name], case.workload, quiet=quiet)
        result["others"][name] = round(max(others, result["others"].get(name, 0)), 3)
        if name.startswith("product"):
            rates.setdefault(name.split()[1], []).append(answer["scores"][0])
            shown = f"{answer['scores'][0] / 1e9:.0f} GFLOP/s"
        else:
            result["seconds"][name] = round(answer["seconds"], 4)
            if expected:
                found["errors"][name] = error(answer["scores"][: len(expected)], expected)
            shown = f"{answer['seconds']:.2f} s, {case.flop / answer['seconds'] / 1e9:.0f} GFLOP/s"
        progress(f"{case.name}: round {number + 1}: {name}: {shown}, others {others:.0%}")
    result["rates"] = {kind: median(samples) for kind, samples in rates.items()}
    if expected:
        found["deviation"] = deviation(expected)
    return result


def order_of(names: list[str], number: int) -> list[str]:
    """The order of a round: another one begins in each, and products stand between.

    The product is measured before each of ours and at both ends, so that its
    rate is that of the whole round.
    """
    names = names[number % len(names) :] + names[: number % len(names)]
    products = [name for name in names if name.startswith("product")]
    order = list(products)
    for name in names:
        if name in products:
            continue
        if name.split()[0] in OURS:
            order += [each for each in products if each.split()[1] == name.split()[1]]
        order.append(name)
    return order + products


def error(found: list[float], expected: list[float]) -> dict[str, float]:
    """The differences' root mean square and largest, as shares of the reference's standard deviation."""
    differences = [a - b for a, b in zip(found, expected, strict=True)]
    square = sum(each * each for each in differences) / len(differences)
    scale = deviation(expected)
    return {"rms": square**0.5 / scale, "max": max(map(abs, differences)) / scale}


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def save(data: Data) -> None:
    report.RESULTS.mkdir(exist_ok=True)
    unfinished = SAMPLES.with_suffix(".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    unfinished.replace(SAMPLES)


def progress(text: str) -> None:
    print(f"{report.now()[11:19]} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
