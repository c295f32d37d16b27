"""The process of one step: `python -m benchmarks.gpu.worker STEP DEVICE ROUNDS`.

It prepares when it reads "prepare", measures when it reads "run", and tells in
lines of JSON what it finds. SIGUSR1 lets it write the stacks of its threads.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from threading import Thread

from benchmarks.gpu.size import size_of
from benchmarks.gpu.steps import planned
from benchmarks.gpu.telling import Teller


def main() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    name, device, rounds = sys.argv[1:]
    teller = Teller()
    size = size_of(dry=device == "cpu", rounds=int(rounds))
    # The imports take seconds, in which others make the checkpoints.
    importing = Thread(target=import_all)
    importing.start()
    sys.stdin.readline()
    importing.join()
    prepared = False
    with teller.part(f"{name}: preparing"):
        step = planned(name).make(size, teller)
        step.prepare()
        prepared = True
    teller.tell(ready=prepared)
    if prepared and sys.stdin.readline().strip() == "run":
        step.run()
    teller.tell(done=True)
    if close := getattr(step, "close", None) if prepared else None:
        close()
    sys.stderr.flush()
    os._exit(0)  # threads and the card's library are not waited for


def import_all() -> None:
    """Imports what most steps need."""
    import torch
    import transformers

    print(transformers.AutoTokenizer, file=sys.stderr)  # which is imported where it is used first
    if torch.cuda.is_available():
        torch.cuda.init()


if __name__ == "__main__":
    main()
