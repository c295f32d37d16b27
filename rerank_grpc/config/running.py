"""The server that runs beside this process: which command it is, as the system's list of processes tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_ROLES = ("serve", "rest")


def server_command(processes: Path = Path("/proc")) -> Sequence[str] | None:
    """Finds the oldest `rerank-grpc serve` or `rest` that sees the files that this process sees.

    Returns its words from the role on; None where there is none. A container's own server is found whatever
    starts it; those of other containers, which the host's list or a pod's shared one shows, are passed over.
    """
    return next(_commands(processes), None)


def _commands(processes: Path) -> Iterator[Sequence[str]]:
    with suppress(OSError):
        here = os.readlink(processes / "self/ns/mnt")
        for number in sorted(int(each.name) for each in processes.iterdir() if each.name.isdecimal()):
            # One that has ended meanwhile, or belongs to another user, is none of ours.
            with suppress(OSError):
                if os.readlink(processes / f"{number}/ns/mnt") == here:
                    line = (processes / f"{number}/cmdline").read_bytes()
                    if command := role_of(os.fsdecode(line).split("\0")[:-1]):
                        yield command


def role_of(words: Sequence[str]) -> Sequence[str] | None:
    """Takes the interpreter and the program off a server's command line; None where it is no server's."""
    for place, word in enumerate(words):
        program = os.path.basename(word) == "rerank-grpc" or words[place - 1 : place + 1] == [
            "-m",
            "rerank_grpc",
        ]
        if program and words[place + 1 : place + 2] and words[place + 1] in _ROLES:
            return words[place + 1 :]
    return None
