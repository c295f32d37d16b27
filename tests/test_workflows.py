"""The hosted workflows run what developers run, with no more rights than each job needs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKE = r'make ([a-z-]+)( [A-Z]+=([\w-]+|"\$GITHUB_REF_NAME"))*'


def read(path):
    """Reads a workflow; YAML takes its key `on` for a truth value."""
    document = yaml.safe_load(path.read_text("utf-8"))
    document["on"] = document.pop(True)
    return document


ALL = {path.name: read(path) for path in WORKFLOWS}
JOBS = [
    pytest.param(name, job, id=f"{name}-{key}")
    for name, flow in ALL.items()
    for key, job in flow["jobs"].items()
]


def steps(job):
    return job.get("steps", [])


def program(name):
    """Finds a linter beside the interpreter that runs the tests; `make lint` runs the same."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        told = f"{name} is missing: the dev extra installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    return path


def targets():
    return set(re.findall(r"(?m)^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8")))


def test_there_are_workflows_for_changes_releases_and_audits():
    assert set(ALL) == {"ci.yml", "release.yml", "audit.yml"}


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_runs_only_targets_of_make_that_exist(name, job):
    for line in filter(None, (step.get("run") for step in steps(job))):
        if line != "bash .ci/run":
            found = re.fullmatch(MAKE, line)
            assert found, f"{name}: {line!r} belongs into the Makefile"
            assert found[1] in targets(), f"{name}: make {found[1]} is no target"


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_has_an_end_and_says_its_rights(name, job):
    assert ALL[name]["permissions"] == {}
    assert job["permissions"]
    assert "uses" in job or job["timeout-minutes"] <= 120
    for step in steps(job):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_actions_are_pinned_by_commit_with_their_version_beside():
    for path in WORKFLOWS:
        lines = [line for line in path.read_text("utf-8").splitlines() if re.search(r"\buses:", line)]
        assert lines
        for line in lines:
            own = "uses: ./" in line
            assert own or re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_one_action_has_one_version():
    found = re.findall(r"uses: ([\w/-]+)@(\S+)", "".join(path.read_text("utf-8") for path in WORKFLOWS))
    assert len(dict(found)) == len(set(found)) >= 6


@pytest.mark.parametrize("name", [name for name, flow in ALL.items() if "pull_request" in flow["on"]])
def test_a_pull_request_sees_no_secret_and_can_only_read(name):
    text = (ROOT / ".github" / "workflows" / name).read_text("utf-8")
    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN|pull_request_target", text)
    assert all(job["permissions"] == {"contents": "read"} for job in ALL[name]["jobs"].values())


def test_only_a_tag_publishes_after_the_tests_and_checks_have_passed():
    release = ALL["release.yml"]
    assert release["on"] == {"push": {"tags": ["v[0-9]*"]}}
    jobs = release["jobs"]

    def needed(job):
        needs = jobs[job].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*map(needed, direct))

    writing = {
        name for name, job in jobs.items() if any(right == "write" for right in job["permissions"].values())
    }
    assert writing == {"provenance", "images", "index", "pypi", "github"}
    assert all({"ci", "packages"} <= needed(name) for name in writing)
    assert {"provenance", "images", "index"} <= needed("pypi")
    assert jobs["pypi"]["environment"] == "pypi"


def test_each_python_that_the_package_names_is_tried():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert named
    assert {*named} <= {*ALL["ci.yml"]["jobs"]["tests"]["strategy"]["matrix"]["python"]}


def test_jactionlint_has_no_complaint():
    done = subprocess.run(
        [program("jactionlint"), "--no-hints"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="zizmor has no wheel for Linux on arm64")
def test_zizmor_has_no_complaint():
    command = [program("zizmor"), "--quiet", "--offline", ".github"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
