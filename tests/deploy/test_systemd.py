"""The unit: systemd takes it and finds it locked down; its command serves as its user, with its variables."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.process import ALARM_SECONDS
from rerank_grpc.config.reading import read_effective, read_settings
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.files.open_files import UNLIMITED
from tests.command import environment
from tests.deploy.files import ROOT
from tests.deploy.systemd import PROGRAM, SYSTEMD, UNIT, analyze, complaints, settings
from tests.support import request_of, stub_of, wait_for

USER = 64_321  # no user of any machine, as DynamicUser gives one
# It may read what only root may, where this Python can lie, and write nothing but what is its own.
AS_USER = [] if os.geteuid() else [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search", "--",
]  # fmt: skip


@pytest.fixture
def machine() -> Iterator[Path]:
    """Makes the folders that the unit and its page speak of, in one that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "etc/rerank-grpc").mkdir(parents=True)
        settings_file = moved((SYSTEMD / "rerank.toml").read_text("utf-8"), folder)
        (folder / "etc/rerank-grpc/rerank.toml").write_text(settings_file, "utf-8")
        home = folder / "var/lib/rerank-grpc"
        credentials = folder / "credentials"
        home.mkdir(parents=True, mode=int(settings()["StateDirectoryMode"][0], 8))
        credentials.mkdir(mode=0o500)
        (credentials / "tokens").write_text("s3cret\n")
        (credentials / "tokens").chmod(0o400)
        if os.geteuid() == 0:
            for path in (home, credentials, credentials / "tokens"):
                os.chown(path, USER, USER)
        yield folder


def moved(text: str, machine: Path) -> str:
    """Puts the folders of a test in place of a machine's, and resolves the specifier of credentials."""
    for usual in ("/etc/", "/var/lib/"):
        text = text.replace(usual, f"{machine}{usual}")
    return text.replace("%d", str(machine / "credentials"))


def variables(machine: Path) -> dict[str, str]:
    """Returns what the unit sets."""
    return dict(moved(each, machine).split("=", 1) for each in settings()["Environment"])


def command(machine: Path) -> list[str]:
    """Returns the unit's command, by this environment's Python."""
    (line,) = settings()["ExecStart"]
    program, *arguments = moved(line, machine).split()
    assert program == PROGRAM
    return [sys.executable, "-m", "rerank_grpc", *arguments]


def test_systemd_has_no_complaint_about_the_unit(tmp_path):
    assert complaints(tmp_path) == ""


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        ("[Service]\nMemoryMaximum=4G\n", "Unknown key 'MemoryMaximum'"),
        ("[Service]\nRestart=on-error\n", "Failed to parse"),
    ],
)
def test_a_fault_in_a_file_beside_the_unit_would_be_found(tmp_path, faulty, said):
    assert said in complaints(tmp_path, faulty)


def test_systemd_finds_the_unit_locked_down(tmp_path):
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text("utf-8"))
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=20", str(path))
    assert done.returncode == 0, done.stdout
    assert re.search(r"exposure level for rerank-grpc\.service: 1\.\d OK", done.stdout)


def test_a_hung_device_is_started_anew_and_a_wrong_setting_is_not():
    found = settings()
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == ["2"]
    assert "SuccessExitStatus" not in found


def test_systemd_waits_for_the_grace():
    (seconds,) = settings()["TimeoutStopSec"]
    assert int(seconds.removesuffix("s")) > ServerSettings().grace_seconds + ALARM_SECONDS
    assert settings()["KillMode"] == ["mixed"]
    assert settings()["LimitNOFILE"] == [str(UNLIMITED)]


def test_the_unit_names_places_that_are_its_own_to_write():
    (state,) = settings()["StateDirectory"]
    home = f"/var/lib/{state}"
    told = dict(each.split("=", 1) for each in settings()["Environment"])
    assert told["HOME"] == home
    assert told["HF_HOME"].startswith(f"{home}/")
    (credential,) = settings()["LoadCredential"]
    assert told["RERANK_TOKEN_FILE"] == f"%d/{credential.partition(':')[0]}"


def test_the_settings_that_come_with_the_unit_are_the_servers(machine):
    parsed = parse(command(machine)[3:])
    found = read_settings(parsed.flags, variables(machine))
    assert (found.host, found.admin_host, found.port) == ("0.0.0.0", "127.0.0.1", ServerSettings().port)
    assert str(found.models_dir) == f"{machine}/var/lib/rerank-grpc/models"
    (tokens,) = (each for each in read_effective(parsed.flags, variables(machine)) if each.name == "tokens")
    assert tokens.texts == ("1 token",)


@contextlib.contextmanager
def started(machine: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Runs the unit's command as another user, at free ports of loopback; yields it and its log."""
    ports = "--host 127.0.0.1 --port 0 --admin-port off --rest-port off --metrics-port off --log-format text"
    own = environment(PYTHONPATH=str(ROOT), **variables(machine))
    log = machine / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*AS_USER, *command(machine), *ports.split()],
            stderr=output, text=True, env=own, umask=int(settings()["UMask"][0], 8), cwd="/",
        )  # fmt: skip
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def test_the_units_command_serves_as_its_user_and_ends_by_sigterm(machine):
    with started(machine) as (process, log):
        wait_for(lambda: "Ctrl-C stops it." in log.read_text() or process.poll() is not None, 120)
        (port,) = re.findall(r"serves rerank\.v1 at 127\.0\.0\.1:(\d+)", log.read_text())
        with stub_of(int(port)) as stub:
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.Rerank(request_of("query", "document"), timeout=30)
            metadata = (("authorization", "Bearer s3cret"),)
            assert stub.Rerank(request_of("query", "document"), timeout=30, metadata=metadata).results
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    # What a start has found out is kept in the unit's home, for the next.
    kept = machine / "var/lib/rerank-grpc/.cache/rerank-grpc"
    assert list(kept.rglob("*.json"))
    assert kept.stat().st_mode & 0o077 == 0


def test_a_wrong_setting_ends_the_units_command_with_the_status_that_is_not_tried_again(machine):
    (machine / "etc/rerank-grpc/rerank.toml").write_text("prot = 50051\n")
    with started(machine) as (process, log):
        assert str(process.wait(60)) in settings()["RestartPreventExitStatus"]
        assert "prot: unknown key; did you mean port?" in log.read_text()
