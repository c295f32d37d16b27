"""A socket's path: one that is left over is replaced, a living server's is not, and faults are one line."""

import os
import socket
import stat
from pathlib import Path

import pytest

from rerank_grpc.files.sockets import OwnSocket, making_room, socket_path


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with making_room(path):
            made.bind(os.fspath(path))
        made.listen()
    except ValueError:
        made.close()
        raise
    return made


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("unix:/run/a.sock", Path("/run/a.sock")),
        ("unix:///run/a.sock", Path("/run/a.sock")),
        ("127.0.0.1", None),
        ("::", None),
        ("unix", None),
    ],
)
def test_a_host_is_a_socket_or_an_address(host: str, path: Path | None):
    assert socket_path(host) == path


def test_the_file_is_its_users_and_groups_and_the_umask_is_as_before(tmp_path: Path):
    path, before = tmp_path / "a", os.umask(0o022)
    try:
        with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_one_that_is_left_over_is_replaced_and_a_living_one_is_not(tmp_path: Path):
    path = tmp_path / "a"
    listening(path).close()
    with listening(path):
        with pytest.raises(ValueError, match=r"^a server listens there: choose another path, or stop that"):
            listening(path)
        assert path.is_socket()


def test_a_living_one_whose_queue_is_full_is_not_replaced(tmp_path: Path):
    path = tmp_path / "a"
    with listening(path) as server:
        server.listen(0)
        callers = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(os.fspath(path))
        with pytest.raises(ValueError, match=r"^a server listens there"):
            listening(path)
        for caller in callers:
            caller.close()


def test_what_is_no_socket_stays(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"^there is a file that is no socket"):
        listening(path)
    assert path.read_text() == "mine"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ValueError, match=r"^there is a file that is no socket"):
        listening(tmp_path / "link")


def test_a_path_that_cannot_be_is_refused_in_a_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^a socket's path has at most 107 bytes: choose a shorter one$"):
        listening(tmp_path / ("x" * 108))
    missing = tmp_path / "no" / "a"
    with pytest.raises(ValueError, match=rf"^the folder {missing.parent}: no such file or directory"):
        listening(missing)


def test_only_its_own_file_is_removed(tmp_path: Path):
    path = tmp_path / "a"
    with listening(path):
        own = OwnSocket(path)
        path.rename(tmp_path / "moved")
        with listening(path):
            own.remove()
            assert path.is_socket()
        (tmp_path / "moved").rename(path)
        own.remove()
        assert not path.exists()
        own.remove()
