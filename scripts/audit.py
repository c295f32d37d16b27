"""Asks the services of PyPI and npm for known vulnerabilities of what is pinned here.

A line for each finding, with the version that mends it; status 1 if there is one,
2 if a service could not be asked. Run it through ``make audit``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
LOCKED = (
    ROOT / "tools" / "buf",
    ROOT / "tools" / "browser",
    ROOT / "clients" / "node",
)  # the folders with a lock file of npm's


class UnreachableError(Exception):
    """Raised where a service gives no answer; the text says which, and what it said."""


def answer(service: str, *command: str | Path) -> dict[str, Any]:
    """Runs an auditor that prints JSON, whatever its status; raises UnreachableError without JSON."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise UnreachableError(f"{service} could not be asked: {said}") from None
    return found


def python_findings() -> list[str]:
    """Asks PyPI about every line of constraints.txt; returns a line for each vulnerability."""
    tool = Path(sys.executable).with_name("pip-audit")
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    found = answer("PyPI", tool, *options, "--requirement", CONSTRAINTS)
    return python_lines(found["dependencies"])


def python_lines(dependencies: list[dict[str, Any]]) -> list[str]:
    """Reads pip-audit's answer; raises UnreachableError where PyPI knew none of the packages."""
    asked = [each for each in dependencies if "skip_reason" not in each]
    if not asked:
        raise UnreachableError(
            f"PyPI could not be asked: its JSON service told nothing about {len(dependencies)} packages"
        )
    unknown = [
        f"{each['name']}: PyPI tells nothing about it: {each['skip_reason']}"
        for each in dependencies
        if "skip_reason" in each
    ]
    return unknown + [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in: {', '.join(flaw['fix_versions'])}"
        for each in asked
        for flaw in each["vulns"]
    ]


def npm_findings() -> list[str]:
    """Asks npm about each lock file; returns a line for each vulnerability."""
    return [
        line
        for folder in LOCKED
        for line in npm_lines(answer("npm", "npm", "--prefix", folder, "audit", "--json"), folder)
    ]


def npm_lines(found: dict[str, Any], folder: Path = LOCKED[0]) -> list[str]:
    """Reads npm's answer about a folder; raises UnreachableError where it is an error."""
    if "vulnerabilities" not in found:
        said = found.get("message") or found.get("error", {}).get("summary") or "no answer"
        raise UnreachableError(f"npm could not be asked: {said}")
    return [
        f"{name} {flaw['range']} ({folder.relative_to(ROOT)}): {flaw['severity']}"
        for name, flaw in found["vulnerabilities"].items()
    ]


def main() -> int:
    """Asks both services, and prints what they know."""
    status = 0
    for ask in (python_findings, npm_findings):
        try:
            findings = ask()
        except UnreachableError as error:
            print(f"audit: {error}", file=sys.stderr)
            status = 2
            continue
        for finding in findings:
            print(finding)
        status = status or int(bool(findings))
    if status == 0:
        print("No vulnerability is known of what constraints.txt and tools/buf pin.")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
