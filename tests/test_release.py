"""Each check of a release finds what it is for, says in one line what to do, and lets the others go on."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from importlib.metadata import files, version
from pathlib import Path

import pytest

from rerank_grpc import __version__

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("version", "changelog", "stubs", "pins", "documents", "links")
# What the quick checks read.
READ = re.compile(
    r"(docs|deploy|scripts|proto|tools|rerank_grpc/(v1|protocols)|rerank_grpc/__init__\.py)(/|$)|[^/]*$"
    r"|clients/conformance/python/frameworks"
)
TAG = f"v{__version__}"


@pytest.fixture
def tree(tmp_path):
    """Returns a copy of what a release is checked by, with a changelog that is ready for it."""
    tracked = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(READ.match, tracked.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    for page in [*tmp_path.glob("*.md"), *tmp_path.glob("docs/**/*.md")]:
        # Links lead to files that this copy leaves out.
        page.write_text(re.sub(r"\]\((?!\w+:)[^)]*\)", "]", page.read_text("utf-8")))
    changelog = tmp_path / "CHANGELOG.md"
    text = changelog.read_text("utf-8")
    changelog.write_text(
        text.replace("## [Unreleased]", f"## [Unreleased]\n\n## [{__version__}] - 2026-11-30", 1)
    )
    return tmp_path


def change(tree, name, old, new):
    """Replaces a text in a file of the tree; fails where it is not there."""
    text = (tree / name).read_text("utf-8")
    assert old in text
    (tree / name).write_text(text.replace(old, new, 1))


def check(tree, *names, tag=TAG):
    """Runs some checks on a tree; returns the status and the lines of those that fail."""
    command = [sys.executable, "scripts/release_check.py", tag, "--only", ",".join(names)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr
    return done.returncode, [line[6:] for line in done.stdout.splitlines() if line.startswith("FAIL")]


def test_a_tree_that_is_ready_passes(tree):
    assert check(tree, *QUICK) == (0, [])


def wanted(tool, source):
    """Skips the test where a tool is missing; fails where `.ci/run` was to bring it."""
    if not tool.exists():
        told = f"{tool.name} is missing: {source} installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)


BROKEN = [
    (
        "version",
        ("rerank_grpc/__init__.py", f'"{__version__}"', '"9.9.9"'),
        f"version    the tag {TAG} is not v9.9.9: set __version__",
    ),
    (
        "version",
        ("rerank_grpc/__init__.py", f'"{__version__}"', '"next"'),
        "version    rerank_grpc/__init__.py: __version__ is 'next': write it as 1.2.3",
    ),
    (
        "changelog",
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Added\n\n- A thing.\n"),
        f"changelog  CHANGELOG.md: 1 lines stand under [Unreleased]: move them to [{__version__}]",
    ),
    (
        "changelog",
        ("CHANGELOG.md", f"## [{__version__}]", "## [0.0.1]"),
        f"changelog  CHANGELOG.md: no section tells of this version: add ## [{__version__}] - ",
    ),
    (
        "changelog",
        ("CHANGELOG.md", "] - 2026-11-30", "] - soon"),
        f"changelog  CHANGELOG.md: the heading '[{__version__}] - soon' has no date: write",
    ),
    (
        "changelog",
        ("CHANGELOG.md", "## [Unreleased]", "## [9.0.0] - 2026-12-01\n\n- New.\n\n## [Unreleased]"),
        f"changelog  CHANGELOG.md: [{__version__}] is not the first version: put the newest on top",
    ),
    (
        "changelog",
        ("CHANGELOG.md", " - 2026-11-30\n", " - 2026-11-30\n\n## [0.0.1] - 2026-01-01\n"),
        f"changelog  CHANGELOG.md: nothing stands under [{__version__}]: say what a user notices",
    ),
    (
        "stubs",
        (
            "proto/rerank/v1/rerank.proto",
            "message HealthRequest {",
            "message Unheard {}\n\nmessage HealthRequest {",
        ),
        "stubs      the stubs are not today's: run make proto, and commit them",
    ),
    (
        "pins",
        ("constraints.txt", "\nuvicorn==", "\nunicorn=="),
        "pins       constraints.txt: uvicorn (server in pyproject.toml) is not pinned: add it",
    ),
    (
        "pins",
        ("pyproject.toml", '"grpcio>=', '"grpcio>=99,>='),
        "is not grpcio",
    ),
    (
        "documents",
        ("deploy/helm/rerank-grpc/Chart.yaml", 'appVersion: "', 'appVersion: "9'),
        f"documents  Chart.yaml: appVersion is 9{__version__}, not {__version__}: set it",
    ),
    (
        "documents",
        ("deploy/kserve/serving-runtime.yaml", f"rerank-grpc:{__version__}", "rerank-grpc:0.0.9"),
        f"names rerank-grpc 0.0.9, not {__version__}: set it",
    ),
    (
        "documents",
        ("docs/operations/manifests.md", f"rerank-grpc:{__version__}", "rerank-grpc:0.0.9"),
        "documents  docs/operations/manifests.md:13: names rerank-grpc 0.0.9",
    ),
    (
        "links",
        ("README.md", "\n## ", "\n[gone](docs/gone.md)\n\n## "),
        "links      README.md: links to docs/gone.md, which does not exist: mend the link",
    ),
    (
        "links",
        ("README.md", "\n## ", "\n[gone](docs/metrics.md#nowhere-at-all)\n\n## "),
        "links      README.md: links to docs/metrics.md#nowhere-at-all, and no heading is called so",
    ),
]


@pytest.mark.parametrize(
    ("name", "broken", "line"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_what_is_amiss_is_told_in_a_line(tree, name, broken, line):
    change(tree, *broken)
    status, lines = check(tree, name)
    assert status == 1
    assert any(line in each for each in lines), lines


def test_a_failing_check_does_not_end_the_others(tree):
    change(tree, "rerank_grpc/__init__.py", f'"{__version__}"', '"9.9.9"')
    change(tree, "constraints.txt", "\nuvicorn==", "\nunicorn==")
    status, lines = check(tree, "version", "stubs", "pins")
    assert status == 1
    assert {line.split()[0] for line in lines} == {"version", "pins"}


def test_a_contract_that_is_not_the_baseline_is_told(tree):
    buf = ROOT / "tools/buf/node_modules"
    wanted(buf, "make lint")
    (tree / "tools/buf/node_modules").symlink_to(buf)
    path = "proto/rerank/v1/rerank.proto"
    change(tree, path, "message HealthRequest {", "message Unheard {}\n\nmessage HealthRequest {")
    status, lines = check(tree, "contract")
    said = "contract   tools/buf/rerank.v1.binpb is not today's contract: run make baseline, and commit it"
    assert (status, lines) == (1, [said])


def test_an_unknown_check_is_refused_with_those_there_are(tree):
    command = [sys.executable, "scripts/release_check.py", "--only", "versions"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no such check: versions; there are version, changelog" in done.stderr


def test_without_an_engine_the_image_is_said_to_be_unchecked(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bin")
    for tool in ("bash", "sh", "env", "dirname", "make"):
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    for name in ("Makefile", "scripts/image.sh"):
        (tree / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "scripts/release_check.py", "--only", "image"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": str(folder)},
    )
    assert done.stdout == "--    image      not checked: no docker, podman or buildah works on this machine\n"
    assert done.returncode == 0


@pytest.fixture(scope="module")
def audit():
    return runpy.run_path(str(ROOT / "scripts" / "audit.py"))


def test_an_audit_names_the_flaw_and_what_mends_it(audit):
    flaw = {"id": "GHSA-1", "fix_versions": ["1.2.1", "1.3"]}
    asked = [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "1.2", "vulns": [flaw]},
        {"name": "odd", "skip_reason": "Dependency not found"},
    ]
    assert audit["python_lines"](asked) == [
        "odd: PyPI tells nothing about it: Dependency not found",
        "bad 1.2: GHSA-1, mended in: 1.2.1, 1.3",
    ]
    found = {"vulnerabilities": {"buf": {"range": "<2", "severity": "high"}}}
    assert audit["npm_lines"](found) == ["buf <2 (tools/buf): high"]


def test_an_audit_that_nobody_answered_is_no_clean_bill(audit):
    unknown = [{"name": "good", "skip_reason": "Dependency not found"}]
    for lines, answer in (("python_lines", unknown), ("npm_lines", {"message": "405 Method Not Allowed"})):
        with pytest.raises(Exception, match=r"^(PyPI|npm) could not be asked: "):
            audit[lines](answer)


def test_the_wheel_of_another_version_is_passed_over(tmp_path):
    sbom = runpy.run_path(str(ROOT / "scripts" / "sbom.py"))
    best_wheel = sbom["best_wheel"]
    best_wheel.__globals__["DIST"] = tmp_path
    for number in ("0.9.0", "1.2.3", "2.0.0"):
        (tmp_path / f"rerank_grpc-{number}-py3-none-any.whl").touch()
    (tmp_path / "rerank_grpc-1.2.3-py3-none-no_such_machine.whl").touch()
    assert best_wheel("1.2.3").name == "rerank_grpc-1.2.3-py3-none-any.whl"
    with pytest.raises(
        SystemExit, match=r"dist/ holds no wheel of 1\.2\.4 for this machine: run make wheels"
    ):
        best_wheel("1.2.4")


def test_a_bill_of_materials_is_the_same_each_time_and_names_no_place(tmp_path):
    wanted(Path(sys.executable).with_name("cyclonedx-py"), "the dev extra")
    environment = tmp_path / "bare"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in ("grpcio", "h11"):
        (record,) = [file for file in files(name) or [] if file.name == "METADATA"]
        folder = Path(str(record.locate())).parent
        shutil.copytree(folder, packages / folder.name)
    sbom = runpy.run_path(str(ROOT / "scripts" / "sbom.py"))
    sbom["write"].__globals__["DIST"] = tmp_path
    first = sbom["write"](environment / "bin" / "python", "1.2.3")
    text = first.read_text("utf-8")
    assert first.name == "rerank-grpc-1.2.3.cdx.json"
    assert sbom["write"](environment / "bin" / "python", "1.2.3").read_text("utf-8") == text
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == (
        "rerank-grpc",
        "1.2.3",
    )
    assert {(part["name"], part["version"]) for part in bill["components"]} == {
        (name, version(name)) for name in ("grpcio", "h11")
    }
    assert str(tmp_path) not in text
    assert "timestamp" not in bill["metadata"]
    assert "serialNumber" not in bill
