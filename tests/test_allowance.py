"""The limits of a process: those of control groups of both versions, as containers see them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rerank_grpc.config import allowance
from rerank_grpc.config.allowance import MemoryLimit, memory_limit, processors, provide_threads, share_of
from tests import command

GIB = 1 << 30
ROOT = Path(__file__).resolve().parent.parent
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 {group} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {group} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
V2 = "30 23 0:27 {group} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
OWN_V1 = "4:memory:{path}\n1:cpu,cpuacct:{path}\n0::/\n"
MEMINFO = {"proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"}
CPU, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
UNLIMITED = "9223372036854771712\n"


def tree(root: Path, mounts: str, own: str, files: dict[str, str]) -> Path:
    """Makes a root with the files that the kernel would show."""
    all_files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": own, **MEMINFO, **files}
    for name, text in all_files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process run on four processors, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for variable in allowance.THREADS_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def quota_v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    files = {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}
    return {f"{CPU}{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("quota", "threads"), [(-1, 4), (50_000, 1), (100_000, 1), (150_000, 1), (299_999, 2), (800_000, 4)]
)
def test_threads_are_the_whole_cpus_of_a_quota_and_at_least_one(
    tmp_path: Path, quota: int, threads: int
) -> None:
    mounts, own = V1.format(group="/"), OWN_V1.format(path="/pod")
    assert processors(tree(tmp_path, mounts, own, quota_v1("/pod", quota))).threads == threads


@pytest.mark.parametrize(
    ("text", "threads"),
    [("max 100000\n", 4), ("150000 100000\n", 1), ("100000 50000\n", 2), ("max\n", 4), ("300000\n", 4)],
)
def test_version_2_writes_quota_and_period_in_one_file(tmp_path: Path, text: str, threads: int) -> None:
    files = {"sys/fs/cgroup/pod/cpu.max": text}
    assert processors(tree(tmp_path, V2.format(group="/"), "0::/pod\n", files)).threads == threads


def test_the_least_of_the_groups_around_counts(tmp_path: Path) -> None:
    files = {**quota_v1("/a/b/c", 300_000), **quota_v1("/a/b", -1), **quota_v1("/a", 200_000)}
    root = tree(tmp_path, V1.format(group="/"), OWN_V1.format(path="/a/b/c"), files)
    assert processors(root).quota == 2.0
    files = {
        "sys/fs/cgroup/a/b/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/a/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.high": f"{3 * GIB}\n",
    }
    found = memory_limit(tree(tmp_path / "2", V2.format(group="/"), "0::/a/b\n", files))
    assert found is not None
    assert (found.most, found.source) == (3 * GIB, "this container")


@pytest.mark.parametrize("path", ["/docker/abc", "/../abc", "/elsewhere/abc"])
def test_a_container_sees_its_own_group_as_the_root_of_a_mount(tmp_path: Path, path: str) -> None:
    """The path in /proc/self/cgroup is the host's where the container has no namespace of groups."""
    files = {f"{MEMORY}/memory.limit_in_bytes": f"{GIB}\n", **quota_v1("", 100_000)}
    root = tree(tmp_path, V1.format(group="/docker/abc"), OWN_V1.format(path=path), files)
    assert processors(root).threads == 1
    found = memory_limit(root)
    assert found is not None
    assert found.most == GIB


def test_a_limit_of_groups_that_a_container_does_not_see_is_told_by_its_own_statistics(
    tmp_path: Path,
) -> None:
    files = {
        f"{MEMORY}/memory.limit_in_bytes": UNLIMITED,
        f"{MEMORY}/memory.stat": f"cache 1\nhierarchical_memory_limit {2 * GIB}\n",
    }
    found = memory_limit(tree(tmp_path, V1.format(group="/pod"), OWN_V1.format(path="/pod"), files))
    assert found is not None
    assert found.most == 2 * GIB


def test_the_pages_of_files_are_free(tmp_path: Path) -> None:
    stat = f"total_inactive_file {GIB}\ntotal_active_file {GIB // 2}\ninactive_file 7\n"
    files = {
        f"{MEMORY}/memory.limit_in_bytes": f"{4 * GIB}\n",
        f"{MEMORY}/memory.usage_in_bytes": f"{3 * GIB}\n",
        f"{MEMORY}/memory.stat": stat,
    }
    root = tree(tmp_path, V1.format(group="/pod"), OWN_V1.format(path="/pod"), files)
    assert memory_limit(root) == MemoryLimit(4 * GIB, 5 * GIB // 2, "this container")
    files = {
        "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 0\n",
    }
    assert memory_limit(tree(tmp_path / "2", V2.format(group="/"), "0::/\n", files)) == MemoryLimit(
        4 * GIB, 2 * GIB, "this container"
    )


@pytest.mark.parametrize(
    "limit", [UNLIMITED, "max\n", "-1\n", "0\n", "", "a lot\n", "\xff\n", f"{64 * GIB}\n"]
)
def test_without_a_limit_the_machines_memory_is_one(tmp_path: Path, limit: str) -> None:
    files = {f"{MEMORY}/pod/memory.limit_in_bytes": limit}
    root = tree(tmp_path, V1.format(group="/"), OWN_V1.format(path="/pod"), files)
    assert memory_limit(root) == MemoryLimit(16 * GIB, 8 * GIB, "this machine")


@pytest.mark.parametrize(
    ("mounts", "own"),
    [
        ("", ""),
        ("odd\n- cgroup\n1 2 3 - cgroup2\n" + V2.format(group="/"), "\n:\n0:\n::::\n0::\n"),
        (V1.format(group="/").replace("/sys/fs/cgroup/memory", r"/sys/fs/c\040d"), OWN_V1.format(path="/x")),
        (V2.format(group="/gone"), "0::/" + "a/" * 300 + "\n"),
    ],
)
def test_odd_files_limit_nothing_and_break_nothing(tmp_path: Path, mounts: str, own: str) -> None:
    root = tree(tmp_path, mounts, own, {"sys/fs/cgroup/cpu.max": "\0\n", "sys/fs/cgroup/memory.stat": "x\n"})
    assert processors(root).threads == 4
    assert memory_limit(root) == MemoryLimit(16 * GIB, 8 * GIB, "this machine")


def test_a_system_without_these_files_has_no_limit(tmp_path: Path) -> None:
    assert processors(tmp_path).threads == 4
    assert memory_limit(tmp_path) is None
    (tmp_path / "proc/self/cgroup").mkdir(parents=True)  # a folder is no file
    (tmp_path / "proc/meminfo").write_text("MemTotal: many kB\n")
    assert memory_limit(tmp_path) is None


def test_libraries_follow_a_quota_unless_the_operator_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path, V2.format(group="/"), "0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"})
    for variable in allowance.THREADS_VARIABLES:  # so that both are put back behind the test
        monkeypatch.setenv(variable, "3")
    assert provide_threads(root) == (3, "OMP_NUM_THREADS=3")
    del os.environ["RAYON_NUM_THREADS"]  # as where Ray has set the other
    assert provide_threads(root) == (3, "OMP_NUM_THREADS=3")
    assert os.environ["RAYON_NUM_THREADS"] == "1"
    del os.environ["OMP_NUM_THREADS"]
    assert provide_threads(root) == (1, "a quota of 1.5 of 4 processors")
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_without_a_quota_the_libraries_choose(tmp_path: Path) -> None:
    assert provide_threads(tree(tmp_path, "", "", {})) == (4, "4 processors")
    assert not any(variable in os.environ for variable in allowance.THREADS_VARIABLES)


@pytest.mark.parametrize(
    ("limit", "share"), [(64 * GIB, 1.0), (8 * GIB, 1.0), (2 * GIB, 0.25), (GIB, 0.125), (1, 0.125)]
)
def test_what_waits_shrinks_with_a_small_limit_to_an_eighth(limit: int, share: float) -> None:
    assert share_of(limit) == share


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group of version 1 with one and a half CPUs."""
    path = Path("/sys/fs/cgroup/cpu") / f"rerank-grpc-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / "cpu.cfs_quota_us").write_text("150000")
    except OSError as error:
        with suppress(OSError):
            path.rmdir()
        pytest.skip(f"no control group of version 1 can be made here: {error.strerror}")
    yield path
    path.rmdir()


def test_a_process_in_a_real_group_reads_its_quota(group: Path) -> None:
    program = (
        "import sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
        "from rerank_grpc.config.allowance import processors\n"
        "print(processors().quota)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(group)],
        env=command.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("1.5", "")
