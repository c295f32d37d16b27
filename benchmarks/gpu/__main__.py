"""What the service makes of one GPU: every figure of it in one run, within 200 seconds.

    python -m benchmarks.gpu                      on a machine with a card; writes results/gpu.{json,md}
    python -m benchmarks.gpu --steps base,qwen3   some steps alone
    python -m benchmarks.gpu --profile v2-m3      where the time of a full batch of one shape goes
    python -m benchmarks.gpu --dry-run            every step with tiny shapes, on any machine; writes nothing

It makes its checkpoints on the card, compares the scores with transformers in
fp32 there, and takes each figure as a ratio of samples that take turns. Each
step is a process of its own, so that one that fails or hangs costs the others
nothing. All of them prepare side by side: import, compute references, start
servers. Then one after the other measures, while the others are idle. Each
figure is printed the moment it is there; the results are written after each
step, with a copy in the folder that the variable OUT names.

It needs what a CUDA image usually has: torch, transformers, sentence-transformers
and grpcio. What is missing is left out, and the table says so: the rows through
gRPC need grpcio-health-checking and grpcio-reflection, too, and grpcio and
protobuf as new as the stubs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

from benchmarks import checkpoints
from benchmarks.gpu.children import Child, TimeIsUp
from benchmarks.gpu.findings import Findings, facts_of, say
from benchmarks.gpu.size import CARD, Size, size_of
from benchmarks.gpu.steps import PROFILE, STEPS, Planned, planned
from benchmarks.servers import LOCK_VARIABLE

# A dozen processes load models at once, each of which would take all cores for itself.
MANY_PROCESSES = {"OMP_NUM_THREADS": "4", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
ALL_LOCAL = {"HF_HUB_OFFLINE": "1"}  # nothing is asked of the hub
LEAST_SECONDS = 4.0  # left for a step, or it is not begun
LOOK_SECONDS = 0.05


def main(arguments: list[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    size = size_of(dry=chosen.dry_run, rounds=chosen.rounds, limit=chosen.limit)
    began = monotonic()
    if not size.dry:
        check_card()
    findings = Findings(size, command_of(chosen))
    names = [PROFILE + name for name in chosen.profile] or chosen.steps
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {LOCK_VARIABLE: str(Path(folder) / "turn")}
        for name, value in (MANY_PROCESSES | ALL_LOCAL).items():
            os.environ.setdefault(name, value)
        run = Run(size, findings, began, "gpu-profile" if chosen.profile else "gpu")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its processes would outlive it
        try:
            run.start(names)
            findings.facts = facts_of(size)
            run.prepare()
            run.measure()
        finally:
            run.stop()
            run.write()
    print("\n" + findings.page(notes=False))
    if findings.failed:
        raise SystemExit("benchmarks.gpu: a step failed; its error is above")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to try the script")
    known = ", ".join(STEPS)
    made.add_argument("--steps", type=steps_of, default=list(STEPS), help=f"some of {known}, in their order")
    made.add_argument("--rounds", type=int, default=0, help="samples of each ratio")
    made.add_argument("--limit", type=float, default=0.0, help="seconds after which nothing is measured")
    made.add_argument(
        "--profile", type=shapes_of, default=[], help="shapes whose batches are looked into, instead of steps"
    )
    return made


def steps_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(STEPS):
        raise argparse.ArgumentTypeError(f"no step is called {', '.join(sorted(unknown))}")
    return names


def shapes_of(text: str) -> list[str]:
    """Reads the names of shapes, or of steps instead."""
    called = {name: step.shape(CARD) for name, step in STEPS.items()}
    names = [called.get(name, name) for name in text.split(",")]
    if unknown := set(names) - set(checkpoints.SHAPES):
        raise argparse.ArgumentTypeError(f"no shape is called {', '.join(sorted(unknown))}")
    return names


def command_of(chosen: argparse.Namespace) -> str:
    words = ["python -m benchmarks.gpu"]
    if chosen.profile:
        words.append(f"--profile {','.join(chosen.profile)}")
    elif chosen.steps != list(STEPS):
        words.append(f"--steps {','.join(chosen.steps)}")
    return " ".join(words + [f"--rounds {chosen.rounds}"] * bool(chosen.rounds))


def check_card() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu: torch finds no CUDA device here; --dry-run tries the script on the CPU"
        )


class Run:
    """The processes of one run, each heard until it is done or its time is up."""

    def __init__(self, size: Size, findings: Findings, began: float, results: str) -> None:
        self.size, self.findings, self.began, self.results = size, findings, began, results
        self.crew: dict[str, tuple[Planned, Child]] = {}
        self.makers: dict[str, Child] = {}

    def start(self, names: list[str]) -> None:
        """Starts what makes the checkpoints that are not there, and all steps, which import meanwhile."""
        steps = {name: planned(name) for name in names}
        for shape in dict.fromkeys(step.shape(self.size) for step in steps.values()):
            if not checkpoints.place(shape).is_dir():
                options = ("--device", self.size.device, shape)
                self.makers[shape] = Child("benchmarks.checkpoints", *options)
        sizes = (self.size.device, str(self.size.rounds))
        self.crew = {
            name: (step, Child("benchmarks.gpu.worker", name, *sizes)) for name, step in steps.items()
        }

    def prepare(self) -> None:
        """Lets each step prepare once its checkpoint is there; drops those that fail or take too long."""
        until = min(self.began + self.size.prepared, self.began + self.size.limit)
        waiting = dict(self.crew)
        while waiting and monotonic() < until:
            for name, (step, child) in list(waiting.items()):
                if self.is_made(step.shape(self.size)):
                    child.tell("prepare")
                    del waiting[name]
            sleep(LOOK_SECONDS)
        self.say_time("checkpoints are made")
        for name in list(self.crew):
            self.hear(name, "ready", until)
        self.say_time("all steps are ready")

    def is_made(self, shape: str) -> bool:
        """Whether a checkpoint is there, or will never be, which the step then finds."""
        maker = self.makers.get(shape)
        if maker is None or maker.ended() is None:
            return maker is None
        if maker.ended():
            self.findings.lack(f"{shape}: checkpoint", maker.errors()[-500:])
        del self.makers[shape]
        return True

    def measure(self) -> None:
        """Lets one step after the other measure, and writes what there is after each."""
        end = self.began + self.size.limit
        for name, (step, child) in list(self.crew.items()):
            if end - monotonic() < LEAST_SECONDS:
                self.findings.lack(name, "no time was left")
                self.drop(name)
                continue
            say(f"# {name}")
            child.tell("run")
            self.hear(name, "done", min(end, monotonic() + step.limit))
            self.drop(name)
            self.say_time(f"{name} is done")
            self.write()

    def hear(self, name: str, word: str, until: float) -> None:
        """Takes what a step tells until it says a word; drops it where it ends or its time is up before."""
        _, child = self.crew[name]
        try:
            while (told := child.hear(until)) is not None:
                if word in told:
                    if not told[word]:
                        self.drop(name)
                    return
                self.findings.take(told)
            self.findings.lack(name, f"it ended with status {child.ended(2)}")
            say(child.errors())
        except TimeIsUp:
            self.findings.lack(name, f"its time was up before it was {word}")
            say(child.stacks())
        self.drop(name)

    def drop(self, name: str) -> None:
        """Ends a step's processes."""
        if name in self.crew:
            _, child = self.crew.pop(name)
            child.stop()

    def write(self) -> None:
        self.findings.facts["seconds"] = round(monotonic() - self.began)
        self.findings.write(self.results)

    def say_time(self, text: str) -> None:
        say(f"[{monotonic() - self.began:.0f} s] {text}")

    def stop(self) -> None:
        """Ends all processes."""
        for name in list(self.crew):
            self.drop(name)
        for maker in self.makers.values():
            maker.stop()


if __name__ == "__main__":
    main()
