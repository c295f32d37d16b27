"""The image, built once of this tree; without buildah and podman its tests are skipped, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import HARDENED, Container, build, missing, running
from tests.telemetry.receiver import Receiver, receiving

TOKENS = ("sk-of-the-first-day", "sk-of-everybody")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder, and gives each the time of a build."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.image)
            item.add_marker(pytest.mark.timeout(3_600))


@pytest.fixture(scope="session")
def image() -> str:
    """The image's name."""
    if reason := missing():
        pytest.skip(reason)
    return build("localhost/rerank-grpc:test")


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of tokens that every user may read, alone in its folder, which is mounted."""
    folder = tmp_path_factory.mktemp("tokens")
    folder.chmod(0o755)
    file = folder / "tokens"
    file.write_text("\n".join(TOKENS))
    file.chmod(0o644)
    return file


@pytest.fixture(scope="session")
def collector() -> Iterator[Receiver]:
    """A collector of traces, on this machine."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def served(image: str, token_file: Path, collector: Receiver) -> Iterator[Container]:
    """A hardened server with everything on: int8, REST, metrics, tokens of a file, traces; no volume."""
    variables = {
        "RERANK_PRECISION": "int8",
        "RERANK_TOKEN_FILE": "/run/secrets/tokens/tokens",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
    }
    mount = f"--volume={token_file.parent}:/run/secrets/tokens:ro"
    with running(image, engine=(*HARDENED, mount), variables=variables) as container:
        yield container.wait()
