"""Why a file cannot be read: by a process of its own, which file modes hold back though it may be root's."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.files.obstacles import obstacle
from tests.command import environment

# Root passes by modes, unless it has given these two capabilities up.
HELD_BACK = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
OPENS = """
import sys
from rerank_grpc.files.obstacles import obstacle
path, mode = sys.argv[1:]
try:
    open(path, mode)
except OSError as error:
    print(obstacle(path, error, writing=mode == "w"))
"""
CHECKPOINT = """
import sys
from pathlib import Path
from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.errors import ModelLoadError
for folder in map(Path, sys.argv[1:]):
    try:
        open_checkpoint("model", folder)
    except ModelLoadError as error:
        print(error)
"""


def said(program: str, *arguments: str) -> list[str]:
    """Runs a program that modes hold back, and returns its lines; skips where no such process can be made."""
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is missing: root would read every file")
        prefix = HELD_BACK
    command = [*prefix, sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    if done.returncode and "setpriv" in done.stderr:
        pytest.skip(f"no process without these capabilities: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_file_that_the_user_may_not_read_is_told_with_mode_owner_user_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    path.chmod(0)
    user, group = os.geteuid(), os.getegid()
    owner = f"{path.stat().st_uid}:{path.stat().st_gid}"
    (line,) = said(OPENS, str(path), "r")
    assert line == (
        f"permission denied: the file has mode 0000 and belongs to {owner}, and this process runs as "
        f"{user}:{group}: let it by chown {user}, or by chgrp {group} and chmod g+r, in Kubernetes by fsGroup"
    )


def test_a_folder_on_the_way_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    folder.chmod(0o600)
    (line,) = said(OPENS, str(folder / "below" / "file"), "r")
    assert line.startswith(f"permission denied: {folder} may not be entered: the directory has mode 0600")
    folder.chmod(0o700)


def test_a_folder_that_may_not_be_written_to_is_told_of_a_new_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (line,) = said(OPENS, str(tmp_path / "new"), "w")
    assert "the directory has mode 0500" in line
    assert "chmod g+wx" in line
    tmp_path.chmod(0o700)


def test_what_is_in_a_files_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("../blobs/gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name, says in (
        ("missing", "no such file"),
        ("dangling", "is a link to ../blobs/gone, which is not there"),
        ("loop", "is a link that leads back to itself"),
        (".", "is a directory where a file is expected"),
        ("file/below", "lies below a file"),
    ):
        with pytest.raises(OSError, match="Errno") as caught:
            (tmp_path / name).read_bytes()
        assert obstacle(tmp_path / name, caught.value).startswith(says)


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE, errno.EBUSY]
)
def test_every_other_failure_has_a_remedy(number: int) -> None:
    assert ": " in obstacle("file", OSError(number, os.strerror(number)))


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    spoilt = {}
    for name in ("model.safetensors", "config.json", "tokenizer.json", "folder"):
        folder = spoilt[name] = tmp_path / f"no-{name}"
        shutil.copytree(directories["bert"], folder)
        if name == "folder":
            folder.chmod(0o300)
        else:
            (folder / name).chmod(0)
    lines = said(CHECKPOINT, *map(str, spoilt.values()))
    spoilt["folder"].chmod(0o700)
    assert len(lines) == len(spoilt)
    for (name, folder), line in zip(spoilt.items(), lines, strict=True):
        place = folder if name == "folder" else folder / name
        assert line.startswith(f"{place}: cannot be read: permission denied: the ")
