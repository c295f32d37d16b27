import resource

import pytest

from rerank_grpc.files import open_files


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Lets a test say which limits hold, without touching this process's own."""
    held = [(256, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: held.append(limit))
    return held


def test_the_soft_limit_is_raised_to_the_hard_one(limits: list[tuple[int, int]]):
    open_files.raise_limit()
    assert open_files.limit() == 4_096
    assert limits[-1] == (4_096, 4_096)


def test_a_hard_limit_without_end_is_not_taken_at_its_word(limits: list[tuple[int, int]]):
    limits.append((1_024, resource.RLIM_INFINITY))
    open_files.raise_limit()
    assert limits[-1] == (open_files.UNLIMITED, resource.RLIM_INFINITY)


def test_a_system_that_allows_less_than_it_says_keeps_its_limit(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    open_files.raise_limit()
    assert open_files.limit() == 256


def test_a_port_may_take_a_quarter_of_the_open_files(limits: list[tuple[int, int]]):
    limits.append((4_096, 4_096))
    assert open_files.connections(8_192) == 4_096 // 4
    assert open_files.connections(64) == 64
