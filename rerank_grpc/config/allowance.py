"""The processors and the memory that this process may use: those of its control groups, or of the machine.

A container is limited by control groups, of version 1 or 2, and by the affinity of its processes. A group can
use no more than those around it, so the least of all that can be seen counts. A file that is missing,
unreadable or odd limits nothing.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rerank_grpc.config.environment import provide, provided

ROOT = Path("/")
THREADS_VARIABLE = "OMP_NUM_THREADS"
# The threads of torch and of its child processes, and those of the tokenizers.
THREADS_VARIABLES = (THREADS_VARIABLE, "RAYON_NUM_THREADS")
# From this limit on, what waits in memory has its full bounds; below, they shrink with it, to an eighth: that
# still holds the largest body, and the largest message.
FULL_BYTES, LEAST_SHARE = 8 << 30, 0.125
# The entries of memory.stat that count the pages of files, by version; the kernel takes such pages back.
FILE_PAGES = {1: ("total_inactive_file", "total_active_file"), 2: ("inactive_file", "active_file")}


class ControlGroup(NamedTuple):
    """The folder of a control group, and the version of its files."""

    folder: Path
    version: int


class Mount(NamedTuple):
    """A mounted hierarchy: the group that is its root, its folder, and its controllers; none in version 2."""

    group: str
    folder: Path
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Processors:
    """The processors of this process, the CPUs' time that it may use (None: all of it), and its threads."""

    count: int
    quota: float | None
    threads: int

    def __str__(self) -> str:
        if self.quota is None or self.threads == self.count:
            return f"{self.count} processors"
        return f"a quota of {self.quota:g} of {self.count} processors"


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The most bytes that this process may use, those of them that are free now, and who says so."""

    most: int
    free: int
    source: str  # "this container" or "this machine"


def processors(root: Path = ROOT) -> Processors:
    """Reads the affinity and the quota of time; a test brings the root of other files.

    A quota of 1.5 CPUs gives one thread: two would use it up in three quarters of each period, and then stop
    together, also for the calls that the rest of the time would have answered.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(root), default=None)
    threads = count if quota is None else max(1, min(count, int(quota)))
    return Processors(count, quota, threads)


def provide_threads(root: Path = ROOT) -> tuple[int, str]:
    """Has torch, the tokenizers and child processes follow a quota, before their import.

    Returns the most threads, and why. A variable that the operator has set stays. Without a quota the
    libraries choose by themselves, by the affinity.
    """
    own, found = provided(THREADS_VARIABLE), processors(root)
    if found.threads < found.count:
        for variable in THREADS_VARIABLES:
            provide(variable, str(found.threads))
    if own:
        return _whole(own) or found.count, f"{THREADS_VARIABLE}={own[:20]}"
    return found.threads, str(found)


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """Reads the least limit, of the groups or of the machine; None on a system that tells neither.

    A limit counts all processes of a group. The pages of files are free, since the kernel takes them back.
    """
    limits = [_of_machine(root)]
    for group in _groups("memory", root):
        most = _least(_limits_of(group))
        used = _used(group)
        if most is not None:
            limits.append(MemoryLimit(most, max(0, most - used), "this container"))
    found = [each for each in limits if each is not None]
    if not found:
        return None
    least = min(found, key=lambda each: each.most)
    return MemoryLimit(least.most, min(each.free for each in found), least.source)


def scaled(most: int) -> int:
    """Returns a bound on what waits in memory, less where the memory is small: all of them must fit it."""
    return int(most * _share())


@functools.cache
def _share() -> float:
    limit = memory_limit()
    return 1.0 if limit is None else share_of(limit.most)


def share_of(limit: int) -> float:
    """Returns the part that a memory limit leaves of such bounds."""
    return min(1.0, max(LEAST_SHARE, limit / FULL_BYTES))


def _of_machine(root: Path) -> MemoryLimit | None:
    # In KiB: "MemTotal:       16303372 kB".
    found = _table(root / "proc/meminfo")
    if not {"MemTotal:", "MemAvailable:"} <= found.keys():
        return None
    return MemoryLimit(found["MemTotal:"] << 10, found["MemAvailable:"] << 10, "this machine")


def _limits_of(group: ControlGroup) -> Iterator[int | None]:
    if group.version == 2:
        yield _number(group.folder / "memory.max")
        yield _number(group.folder / "memory.high")
    else:
        yield _number(group.folder / "memory.limit_in_bytes")
        # The least of the groups around it, also of those that a container does not see.
        yield _table(group.folder / "memory.stat").get("hierarchical_memory_limit")


def _least(limits: Iterable[int | None]) -> int | None:
    """The least of a group's limits; None where it has none: one beyond any machine's memory means that."""
    return min((each for each in limits if each is not None and 0 < each < 1 << 60), default=None)


def _used(group: ControlGroup) -> int:
    name = "memory.current" if group.version == 2 else "memory.usage_in_bytes"
    stat = _table(group.folder / "memory.stat")
    pages = sum(stat.get(each, 0) for each in FILE_PAGES[group.version])
    return max(0, (_number(group.folder / name) or 0) - pages)


def _quotas(root: Path) -> Iterator[float]:
    """Yields the CPUs' time of each group that has a quota."""
    for group in _groups("cpu", root):
        if group.version == 2:
            words = _words(group.folder / "cpu.max")  # "150000 100000", or "max 100000"
            quota, period = (_whole(each) for each in (*words, "", "")[:2])
        else:
            quota = _number(group.folder / "cpu.cfs_quota_us")  # -1: none
            period = _number(group.folder / "cpu.cfs_period_us")
        if quota and period and quota > 0 and period > 0:
            yield quota / period


# ---------------- The groups of this process


def _groups(controller: str, root: Path) -> Iterator[ControlGroup]:
    """Yields the groups of this process, and those around them as far as it sees them."""
    own = dict(_own_groups(root))
    for mount in _mounts(root):
        version = 1 if mount.controllers else 2
        path = own.get(controller if version == 1 else "")
        if path is None or (version == 1 and controller not in mount.controllers):
            continue
        folder = mount.folder / _below(path, mount.group)
        # A container may see its own group as the root, under the name that it has outside.
        while not folder.is_dir() and folder != mount.folder:
            folder = folder.parent
        while True:
            yield ControlGroup(folder, version)
            if folder == mount.folder:
                break
            folder = folder.parent


def _below(path: str, group: str) -> str:
    """The way from a mounted group to one of its own; none where the path lies outside of it."""
    parts, above = (Path(each).parts[1:] for each in (path, group))
    inside = parts[: len(above)] == above and ".." not in parts
    return "/".join(parts[len(above) :]) if inside else ""


def _own_groups(root: Path) -> Iterator[tuple[str, str]]:
    """Yields each controller and the path of this process's group, "" for version 2."""
    for line in _lines(root / "proc/self/cgroup"):  # "4:cpu,cpuacct:/a/b", or "0::/a/b"
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            yield from ((each, path) for each in controllers.split(","))


def _mounts(root: Path) -> Iterator[Mount]:
    """Yields the hierarchies that are mounted."""
    for line in _lines(root / "proc/self/mountinfo"):
        # "35 31 0:32 /a /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"
        before, _, behind = line.partition(" - ")
        fields, kinds = before.split(), behind.split()
        if len(fields) < 5 or not kinds or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        group, folder = (_unescaped(each) for each in fields[3:5])
        controllers = kinds[-1].split(",") if kinds[0] == "cgroup" else ()
        yield Mount(group, root / folder.lstrip("/"), frozenset(controllers))


def _unescaped(text: str) -> str:
    """Puts back the characters that mountinfo writes as octal numbers, as the space in "/a\\040b"."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


# ---------------- Their files


def _lines(path: Path) -> list[str]:
    """Reads the lines of a file; none where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return next((line.split() for line in _lines(path)), [])


def _number(path: Path) -> int | None:
    """Reads the number that a file holds; None for "max" and for anything odd."""
    return next((_whole(word) for word in _words(path)), None)


def _table(path: Path) -> dict[str, int]:
    """Reads a file of names and whole numbers."""
    rows = (line.split() for line in _lines(path))
    pairs = ((row[0], _whole(row[1])) for row in rows if len(row) > 1)
    return {name: number for name, number in pairs if number is not None}


def _whole(word: str) -> int | None:
    return int(word) if re.fullmatch(r"-?[0-9]{1,19}", word) else None
