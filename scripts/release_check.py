"""Checks that this tree can be released; a check that fails says in one line what to do.

All checks are run, also after one has failed; the status is 1 if one has. They
are run through ``make release-check``, whose TAG names the release (v1.2.3).
Those that read the tree take a moment; ``packages``, ``serving``, ``sbom`` and
``image`` build and install, over minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import sbom
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
BUF = Path("tools/buf/node_modules/.bin/buf")
BASELINE = Path("tools/buf/rerank.v1.binpb")
# A document that names a version of the image or of the package.
NAMED = re.compile(r"\brerank-grpc(?::v?|==)(\d+\.\d+\.\d+\w*)")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


class Release(NamedTuple):
    """A tree, and the tag that it is to be released by (empty: none is known yet)."""

    root: Path
    tag: str

    def read(self, name: str) -> str:
        """Returns a file's text."""
        return (self.root / name).read_text("utf-8")

    @property
    def version(self) -> str:
        """The package's version; empty where none is found."""
        return sbom.version_of(self.root)

    def pages(self) -> Iterator[Path]:
        """Yields the documents that a user reads."""
        yield from sorted([*self.root.glob("*.md"), *self.root.glob("docs/**/*.md")])


class NotCheckedHereError(Exception):
    """Raised by a check that this machine has no means for; the text says which."""


class FailedError(Exception):
    """Raised by a check that cannot go on; the text says what to do."""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command and returns its output; raises FailedError with its last line where it fails."""
    # PYTHONPATH would put this tree before what is installed.
    alone = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=alone)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        name = " ".join([Path(command[0]).name, *map(str, command[1:3])])
        # make's own last line only repeats the status.
        kept = [line for line in said if not re.match(r"make(\[\d+\])?: \*\*\*", line)] or said
        raise FailedError(f"{name} ended with status {done.returncode}: {kept[-1]}")
    return done.stdout


def check_version(release: Release) -> Iterator[str]:
    """The package's version is one, and the tag's."""
    try:
        normal = str(Version(release.version))
    except InvalidVersion:
        yield f"rerank_grpc/__init__.py: __version__ is {release.version!r}: write it as 1.2.3"
        return
    if not re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", normal) or normal != release.version:
        yield f"rerank_grpc/__init__.py: __version__ is {release.version!r}: write it as 1.2.3 or 1.2.3rc1"
    if release.tag and release.tag != f"v{release.version}":
        yield (
            f"the tag {release.tag} is not v{release.version}: "
            "set __version__ in rerank_grpc/__init__.py, or tag anew"
        )


def sections(text: str) -> dict[str, list[str]]:
    """Splits a changelog: for each heading of the second level, the lines below it that say something."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            found[line[3:].strip()] = []
        elif found and line.strip() and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def check_changelog(release: Release) -> Iterator[str]:
    """Each change stands in a section with the version and its date."""
    found = sections(release.read("CHANGELOG.md"))
    if waiting := found.pop("[Unreleased]", []):
        yield f"CHANGELOG.md: {len(waiting)} lines stand under [Unreleased]: move them to [{release.version}]"
    heading = next((heading for heading in found if heading.startswith(f"[{release.version}]")), None)
    if heading is None:
        today = datetime.datetime.now(datetime.UTC).date()
        yield f"CHANGELOG.md: no section tells of this version: add ## [{release.version}] - {today}"
        return
    if heading != next(iter(found)):
        yield f"CHANGELOG.md: [{release.version}] is not the first version: put the newest on top"
    try:
        datetime.date.fromisoformat(heading.removeprefix(f"[{release.version}] - "))
    except ValueError:
        yield f"CHANGELOG.md: the heading {heading!r} has no date: write [{release.version}] - YYYY-MM-DD"
    if not found[heading]:
        yield f"CHANGELOG.md: nothing stands under [{release.version}]: say what a user notices"


def check_contract(release: Release) -> Iterator[str]:
    """The contract that may not break from now on is today's."""
    buf = release.root / BUF
    if not buf.exists():
        raise FailedError("buf is missing: run make lint, which installs it")
    with tempfile.TemporaryDirectory() as folder:
        today = Path(folder) / "today.binpb"
        run(buf, "build", "--exclude-source-info", "-o", today, cwd=release.root)
        if today.read_bytes() != (release.root / BASELINE).read_bytes():
            yield f"{BASELINE} is not today's contract: run make baseline, and commit it"


def check_stubs(release: Release) -> Iterator[str]:
    """The committed stubs are generated from today's contract."""
    try:
        run(sys.executable, "scripts/generate_stubs.py", "--check", cwd=release.root)
    except FailedError:
        yield "the stubs are not today's: run make proto, and commit them"


def pins(text: str) -> dict[str, Version]:
    """Reads constraints: each package's version by its canonical name."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pairs = [line.partition("==") for line in lines if line]
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def check_pins(release: Release) -> Iterator[str]:
    """Each direct dependency is pinned, at a version that pyproject.toml allows."""
    project = tomllib.loads(release.read("pyproject.toml"))["project"]
    # Frameworks have environments of their own: beside each other they would decide about our pins.
    apart = sorted(release.root.glob("clients/conformance/python/frameworks*.txt"))
    pinned = {name: version for file in apart for name, version in pins(file.read_text("utf-8")).items()}
    pinned |= pins(release.read("constraints.txt"))
    groups = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    for group, requirements in groups.items():
        for requirement in map(Requirement, requirements):
            version = pinned.get(canonicalize_name(requirement.name))
            if version is None:
                yield f"constraints.txt: {requirement.name} ({group} in pyproject.toml) is not pinned: add it"
            elif version not in requirement.specifier:
                yield f"constraints.txt: {requirement.name}=={version} is not {requirement}, as {group} asks"


def check_documents(release: Release) -> Iterator[str]:
    """The chart and every document that names a version name this one."""
    chart = yaml.safe_load(release.read("deploy/helm/rerank-grpc/Chart.yaml"))
    if chart["appVersion"] != release.version:
        yield f"Chart.yaml: appVersion is {chart['appVersion']}, not {release.version}: set it"
    files = [*release.pages(), *release.root.glob("*.yaml"), *release.root.glob("deploy/**/*")]
    for path in filter(Path.is_file, files):
        if path.name == "CHANGELOG.md":
            continue
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            for named in {*NAMED.findall(line)} - {release.version}:
                place = f"{path.relative_to(release.root)}:{number}"
                yield f"{place}: names rerank-grpc {named}, not {release.version}: set it"


def anchors(text: str) -> set[str]:
    """Returns the fragments that GitHub gives a page's headings."""
    body = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"(?m)^#+ +(.+?)\s*$", body):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def check_links(release: Release) -> Iterator[str]:
    """Links inside the repository lead to a file, and to a heading of it."""
    for page in release.pages():
        name = page.relative_to(release.root)
        text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text("utf-8"))
        for path, fragment in LINK.findall(text):
            target = page.parent / unquote(path) if path else page
            if not target.exists():
                yield f"{name}: links to {path}, which does not exist: mend the link"
            elif (
                fragment
                and target.suffix == ".md"
                and unquote(fragment) not in anchors(target.read_text("utf-8"))
            ):
                yield f"{name}: links to {path}#{fragment}, and no heading is called so: mend the link"


def installed(package: Path, folder: Path, release: Release) -> Iterator[str]:
    """Installs a wheel or sdist alone into a fresh environment, and asks it for its version."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "-c", release.root / "constraints.txt", package, cwd=folder)
    run(python, "-c", "from rerank_grpc.client import AsyncClient, Client", cwd=folder)
    said = run(folder / "bin" / "rerank-grpc", "--version", cwd=folder).split()
    if release.version not in said:
        yield f"{package.name}: rerank-grpc --version says {' '.join(said)}, not {release.version}"


def built(release: Release) -> tuple[Path, Path]:
    """Builds the wheels and the sdist; returns the pure wheel and the sdist."""
    dist = release.root / "dist"
    # make passes its own ARGS on: they are release-check's.
    run("make", "-s", "wheels", "ARGS=", cwd=release.root)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", dist, cwd=release.root)
    pure = dist / f"rerank_grpc-{release.version}-py3-none-any.whl"
    sources = dist / f"rerank_grpc-{release.version}.tar.gz"
    if missing := [package.name for package in (pure, sources) if not package.exists()]:
        raise FailedError(f"dist/ has no {' and no '.join(missing)}: build from a tree of {release.version}")
    return pure, sources


def check_packages(release: Release) -> Iterator[str]:
    """The wheels and the sdist are built, and each that fits this machine is installed bare."""
    pure, sources = built(release)
    with tarfile.open(sources) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(pure) as wheel:
        wanted = {name for name in wheel.namelist() if name.startswith("rerank_grpc/")}
    for name in sorted({"LICENSE", "README.md", "pyproject.toml", *wanted} - inside):
        yield f"{sources.name} lacks {name}: add it to package-data in pyproject.toml"
    for package in sorted({pure, sources, sbom.best_wheel(release.version)}):
        with tempfile.TemporaryDirectory() as folder:
            yield from installed(package, Path(folder) / "bare", release)


def check_serving(release: Release) -> Iterator[str]:
    """The wheel serves the embedded model over gRPC and REST with what the image installs, and no more."""
    python = sbom.install(sbom.best_wheel(release.version))
    # From a folder without the package: what answers is the wheel.
    run(python, release.root / "scripts" / "demo.py", cwd=sbom.BARE)
    yield from ()


def check_sbom(release: Release) -> Iterator[str]:
    """The bill of materials fits CycloneDX's schema, and names this version and what it serves with."""
    python = sbom.BARE / "bin" / "python"
    if not python.exists():
        sbom.install(sbom.best_wheel(release.version))
    bill = json.loads(sbom.write(python, release.version).read_text("utf-8"))
    if bill["metadata"]["component"].get("version") != release.version:
        yield f"the bill of materials is not of {release.version}: mend scripts/sbom.py"
    listed = {part["name"] for part in bill["components"]}
    for name in sorted({"torch", "transformers", "grpcio", "starlette"} - listed):
        yield f"the bill of materials lacks {name}: mend scripts/sbom.py"


def check_image(release: Release) -> Iterator[str]:
    """The image is built."""
    try:
        run("make", "-s", "image", f"IMAGE=rerank-grpc:{release.version}", cwd=release.root)
    except FailedError as error:
        if "none of them works here" in str(error):
            raise NotCheckedHereError("no docker, podman or buildah works on this machine") from None
        raise
    yield from ()


CHECKS: dict[str, Callable[[Release], Iterator[str]]] = {
    "version": check_version,
    "changelog": check_changelog,
    "contract": check_contract,
    "stubs": check_stubs,
    "pins": check_pins,
    "documents": check_documents,
    "links": check_links,
    "packages": check_packages,
    "serving": check_serving,
    "sbom": check_sbom,
    "image": check_image,
}


def checked(name: str, release: Release) -> bool:
    """Runs a check and prints what it found, a line each; returns whether nothing is amiss."""
    try:
        problems = list(CHECKS[name](release))
    except NotCheckedHereError as reason:
        print(f"--    {name:10} not checked: {reason}", flush=True)
        return True
    except (FailedError, subprocess.CalledProcessError, OSError) as error:
        problems = [str(error)]
    except SystemExit as error:
        problems = [str(error.code)]
    for problem in problems:
        print(f"FAIL  {name:10} {problem}", flush=True)
    if not problems:
        print(f"ok    {name:10} {(CHECKS[name].__doc__ or '').strip()}", flush=True)
    return not problems


def main() -> int:
    """Runs the checks that were named, or all; returns 1 if one found something amiss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tag", nargs="?", default="", help="the release's tag, such as v1.2.3")
    parser.add_argument("--only", help=f"some of: {','.join(CHECKS)}")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"--only: no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    release = Release(ROOT, given.tag)
    passed = [checked(name, release) for name in names]
    if not all(passed):
        print(f"release-check: {passed.count(False)} of {len(passed)} checks failed", file=sys.stderr)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
