"""The packages that an install brings: no floor lets a known hole in, and one file says every version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# The first version without a hole that a caller, a page or a model could use, and what that was.
MENDED = {
    "grpcio": ("1.84", "inflates a bomb before it looks at the limit of a message's size"),
    "transformers": ("5.5", "CVE-2026-4372, CVE-2026-5241: a model's config runs code"),
    "torch": ("2.11", "CVE-2025-32434, CVE-2026-24747: weights run code; up to 2.10, PYSEC-2026-139"),
    "jinja2": ("3.1.6", "CVE-2025-27516: a template leaves the sandbox"),
    "tqdm": ("4.66.3", "CVE-2024-34062: its command line evaluates arguments"),
    "starlette": ("1.0.1", "CVE-2026-48710: a Host header makes up the path; before, CVE-2025-62727"),
    "h11": ("0.16", "CVE-2025-43859: chunks that a proxy reads otherwise"),
    "orjson": ("3.11.6", "CVE-2025-67221: recursion without a limit"),
    "ray": ("2.55", "CVE-2026-41486: Parquet's extension types run code"),
    "pyarrow": ("23.0.1", "CVE-2026-25087: memory that is used after it was freed"),
}


# What only one side meets: the hole, where it opens, and the extras that let it in.
MENDED_IN_EXTRAS = {
    "protobuf": ("6.33.5", "CVE-2026-0994: JSON within Any is nested without a limit", ("server", "rest")),
}


def requirements() -> list[Requirement]:
    """Reads what pyproject.toml asks for, all extras together."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(each) for requirements in lists for each in requirements]


def versions(path: Path) -> dict[str, Version]:
    """Reads the lines NAME==VERSION of a file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", path.read_text("utf-8"), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


PINS = versions(ROOT / "constraints.txt")
# The frameworks are installed beside no test of ours: their pins are those of their own environments.
FRAMEWORKS = [
    ROOT / "clients/conformance/python" / name for name in ("frameworks.txt", "frameworks-dspy.txt")
]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
ELSEWHERE = {"colorama", "httpx2-jsfetch"}  # on Windows and in browsers, which the locks name too


def floor_of(requirement: Requirement) -> Version | None:
    floors = [Version(each.version) for each in requirement.specifier if each.operator in (">=", "==")]
    return max(floors, default=None)


def test_every_requirement_has_a_pin_within_its_bounds():
    pins = {name: version for path in FRAMEWORKS for name, version in versions(path).items()} | PINS
    outside = [
        str(each)
        for each in requirements()
        if not each.specifier.contains(pins.get(canonicalize_name(each.name), Version("0")))
    ]
    assert outside == []


@pytest.mark.parametrize("name", MENDED)
def test_no_floor_lets_a_known_hole_in(name: str):
    mended, hole = MENDED[name]
    asked = [each for each in requirements() if canonicalize_name(each.name) == name]
    assert asked
    for each in asked:
        floor = floor_of(each)
        assert floor is not None, f"{each} takes versions with a hole: {hole}"
        assert floor >= Version(mended), f"{each} takes versions with a hole: {hole}"


@pytest.mark.parametrize("name", MENDED_IN_EXTRAS)
def test_no_floor_of_what_serves_lets_in_a_hole_that_clients_never_meet(name: str):
    mended, hole, extras = MENDED_IN_EXTRAS[name]
    with (ROOT / "pyproject.toml").open("rb") as file:
        lists = tomllib.load(file)["project"]["optional-dependencies"]
    for extra in extras:
        floors = [floor_of(each) for each in map(Requirement, lists[extra]) if each.name == name]
        assert floors, f"[{extra}] takes versions with a hole: {hole}"
        assert all(floor and floor >= Version(mended) for floor in floors)


def test_only_what_serves_reads_json_into_messages():
    reading = [
        str(path.relative_to(ROOT / "rerank_grpc"))
        for path in (ROOT / "rerank_grpc").rglob("*.py")
        if re.search(r"json_format\.Parse", path.read_text("utf-8"))
    ]
    assert reading == ["rest/forms/messages.py"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_the_versions_of_constraints_alone(lock: Path):
    locked = versions(lock)
    assert locked
    differing = {
        name: (str(version), str(PINS.get(name)))
        for name, version in locked.items()
        if name not in ELSEWHERE and PINS.get(name) != version
    }
    assert differing == {}, "change constraints.txt, then run make lock"


def test_the_lock_of_libraries_has_a_hash_for_each_and_none_differs_by_index():
    text = (ROOT / "requirements" / "libraries.txt").read_text("utf-8")
    for entry in re.split(r"\n(?=[A-Za-z0-9])", text)[1:]:
        assert "--hash=sha256:" in entry, entry[:80]
    of_torch = versions(ROOT / "requirements" / "torch.txt")
    assert versions(ROOT / "requirements" / "libraries.txt").keys().isdisjoint(of_torch)
    assert {name.partition("-")[0] for name in of_torch} <= {"torch", "triton", "cuda", "nvidia"}
