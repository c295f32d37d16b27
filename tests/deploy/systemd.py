"""The unit of deploy/systemd: its settings, and systemd's own opinion of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import ROOT

SYSTEMD = ROOT / "deploy/systemd"
UNIT = SYSTEMD / "rerank-grpc.service"
PROGRAM = "/opt/rerank-grpc/bin/rerank-grpc"


def settings() -> dict[str, list[str]]:
    """Reads the unit: the values of each setting, in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs systemd-analyze, which needs no running systemd; a machine without it skips the test."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is missing: Debian's package systemd has it")
    variables = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, env=variables)


def complaints(folder: Path, drop_in: str = "") -> str:
    """Returns what systemd says against the unit, with a file beside it as `systemctl edit` writes one."""
    # The program is installed by an operator; systemd looks whether it can be started.
    unit = UNIT.read_text("utf-8").replace(PROGRAM, "/bin/true")
    path = folder / UNIT.name
    path.write_text(unit, "utf-8")
    beside = folder / f"{UNIT.name}.d/page.conf"
    beside.parent.mkdir(exist_ok=True)
    beside.write_text(drop_in, "utf-8")
    done = analyze("verify", "--man=no", str(path))
    lines = (done.stdout + done.stderr).splitlines()
    # Units of the machine itself are read, too, and may have faults of their own.
    own = [line for line in lines if UNIT.name in line or str(folder) in line]
    return "\n".join(own) if own or done.returncode == 0 else done.stdout + done.stderr
