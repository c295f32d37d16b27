"""The same command on a cluster of Ray: the same rows, resumed after a kill, and clear refusals."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.batch.conftest import BLOCK
from tests.batch.files import arguments, read_lines, variables
from tests.batch.test_resume import kill_after
from tests.ports import free_port
from tests.support import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ray = pytest.importorskip("ray")
HEAD = "127.0.0.2"  # Ray takes 127.0.0.1 for the machine's own address


@pytest.fixture(scope="module")
def cluster():
    """A cluster of 3 CPUs on this machine; its variables, with RAY_ADDRESS."""
    folder, port = Path(tempfile.mkdtemp(prefix="ray-")), free_port(HEAD)  # short: sockets' paths are
    own = variables() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"{HEAD}:{port}",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", f"--node-ip-address={HEAD}", "--num-cpus=3", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", "--object-store-memory=200000000"]
    command += [
        f"--ray-client-server-port={free_port(HEAD)}",
        "--min-worker-port=25000",
        "--max-worker-port=25999",
    ]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_cluster(head, folder / "log")
        yield own
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # a cluster that is stopped in order takes 20 s
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_cluster(head, log):
    wait_for(lambda: head.poll() is not None or b"Ray runtime started" in log.read_bytes(), 90)
    assert head.poll() is None, log.read_text()


def on(cluster, *where, **options):
    return subprocess.run(
        arguments(*where, *BLOCK, "--ray", cluster["RAY_ADDRESS"]),
        **{"capture_output": True, "encoding": "utf-8", "env": cluster, "timeout": 200} | options,
    )


def same(path, expected):
    """Compares rows: with another number of threads the last digits of scores may differ."""
    for row, other in zip(read_lines(path), read_lines(expected), strict=True):
        assert row["id"] == other["id"]
        scores = {each["index"]: each["logit"] for each in row["results"]}
        for each in other["results"]:
            assert scores[each["index"]] == pytest.approx(each["logit"], abs=1e-4)


def test_a_cluster_gives_the_rows_of_one_machine_and_goes_on_after_a_kill(
    cluster, tmp_path, source, whole, model
):
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        arguments(source, output, model, *BLOCK, "--ray", cluster["RAY_ADDRESS"]),
        env=cluster,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    kill_after(process, output, 3, seconds=120)
    done = on(cluster, source, output, model)
    assert done.returncode == 0, done.stderr
    assert "goes on after " in done.stderr  # among lines of Ray's own, where the machine is busy
    assert "Traceback" not in done.stderr
    same(output, whole)
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_model_that_cannot_be_placed_or_loaded_is_one_line(cluster, tmp_path, source):
    for options, reason in (
        (["--device", "cuda"], "the cluster has no GPU"),
        (["--workers", "50"], "too few for 50 actors"),
        ([], "/nowhere"),
    ):
        done = subprocess.run(
            arguments(source, tmp_path / "out.jsonl", "/nowhere", "--ray", cluster["RAY_ADDRESS"], *options),
            capture_output=True,
            encoding="utf-8",
            env=cluster,
            timeout=100,
        )
        assert done.returncode == 1
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
