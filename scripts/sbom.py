"""Writes what the image installs as a bill of materials, dist/rerank-grpc-VERSION.cdx.json.

Its form is CycloneDX 1.6. This version's wheel in dist/ and what requirements/ names are installed with the
options of the Dockerfile, into a fresh environment without pip (build/bare), and cyclonedx-py lists what is
there with licences and who needs whom. The same versions give the same bytes: neither time nor serial number
is in it, unless SOURCE_DATE_EPOCH says the time.

Run it through ``make sbom``. TORCH_INDEX is the further index for torch's build, as for ``make image``, but
without it torch comes from the default index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BARE = ROOT / "build" / "bare"
REQUIREMENTS = ROOT / "requirements"


def version_of(root: Path) -> str:
    """Reads a tree's version of the package; empty where none is found."""
    found = re.search(r'(?m)^__version__ = "([^"]*)"', (root / "rerank_grpc/__init__.py").read_text("utf-8"))
    return found[1] if found else ""


def best_wheel(version: str) -> Path:
    """Finds the wheel of a version in dist/ that pip would choose here; raises SystemExit without one."""
    rank = {tag: place for place, tag in enumerate(sys_tags())}
    ranked = {}
    for wheel in DIST.glob("rerank_grpc-*.whl"):
        _, found, _, tags = parse_wheel_filename(wheel.name)
        places = [rank[tag] for tag in tags if tag in rank]
        if places and str(found) == version:
            ranked[wheel] = min(places)
    if not ranked:
        raise SystemExit(f"sbom: dist/ holds no wheel of {version} for this machine: run make wheels")
    return min(ranked, key=lambda wheel: ranked[wheel])


def pip(python: Path, *arguments: str) -> None:
    """Runs pip for the environment of `python`; raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*command, *arguments], check=True)


def install(wheel: Path) -> Path:
    """Installs a wheel and the very files that the image serves with; returns the environment's python."""
    shutil.rmtree(BARE, ignore_errors=True)
    venv.create(BARE, with_pip=False)
    python = BARE / "bin" / "python"
    index = os.environ.get("TORCH_INDEX")
    binary = ["install", "--only-binary", ":all:"]
    pip(python, *binary, "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS / "libraries.txt"))
    torch = ["-c", str(REQUIREMENTS / "torch.txt"), *(["--extra-index-url", index] if index else [])]
    pip(python, *binary, *torch, "torch")
    pip(python, "install", "--no-deps", str(wheel))
    # torch brings it for what compiles against torch; the image leaves it out too.
    pip(python, "uninstall", "-y", "setuptools")
    # It names the wheel's place on this machine, which would stand in the bill.
    for note in BARE.glob("lib/python*/site-packages/rerank_grpc-*.dist-info/direct_url.json"):
        note.unlink()
    return python


def write(python: Path, version: str) -> Path:
    """Writes the bill of an environment and checks it by CycloneDX's schema; returns its path."""
    bill = DIST / f"rerank-grpc-{version}.cdx.json"
    tool = Path(sys.executable).with_name("cyclonedx-py")
    command = [str(tool), "environment", "--output-reproducible", "--validate"]
    # What the caller's PYTHONPATH leads to is not in the image.
    alone = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        # The tool does not follow the version to the package.
        project = Path(folder) / "pyproject.toml"
        text = (ROOT / "pyproject.toml").read_text("utf-8")
        project.write_text(text.replace('dynamic = ["version"]', f'version = "{version}"'), "utf-8")
        form = ["--pyproject", str(project), "--sv", "1.6", "--of", "JSON", "-o", str(bill)]
        subprocess.run([*command, *form, str(python)], check=True, env=alone)
    return bill


def main() -> int:
    """Installs, writes, and prints what was written."""
    try:
        version = version_of(ROOT)
        wheel = best_wheel(version)
        bill = write(install(wheel), version)
    except subprocess.CalledProcessError as error:
        print(f"sbom: {Path(error.cmd[0]).name} ended with status {error.returncode}", file=sys.stderr)
        return 1
    print(f"{bill.relative_to(ROOT)}: {wheel.name}, and what requirements/ names")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
