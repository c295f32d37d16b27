"""The image as it is pulled: its size, its labels, and what another version changes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rerank_grpc import __version__
from tests.image.containers import ROOT, build, bytes_of, layers, once, podman, pulled_bytes

MOST_BYTES = 1_150_000_000
MOST_BYTES_OF_A_VERSION = 2_500_000  # as a pull sends them
# Asked for by packages and left out: the one builds extensions of torch, the other is for another use of the
# embedded model's files.
LEFT_OUT = {"setuptools", "sentence-transformers"}


def test_the_image_is_no_larger_than_promised(image: str):
    assert sum(map(bytes_of, layers(image).values())) <= MOST_BYTES


def test_labels_say_what_it_is_and_which_commit(image: str):
    (found,) = json.loads(podman("inspect", "--type", "image", image).stdout)
    labels = {
        name.rpartition(".")[2]: text for name, text in found["Labels"].items() if "opencontainers" in name
    }
    assert labels["title"] == "rerank-grpc"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == __version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert labels["revision"].removesuffix("-dirty") == head.stdout.strip()
        assert re.match(r"\d{4}-\d\d-\d\dT", labels["created"])


def copied(tree: Path, *, version: str) -> Path:
    """Copies what an image is built of, as another version."""
    names = ("Dockerfile", ".dockerignore", "Makefile", "LICENSE", "README.md", "pyproject.toml")
    tree.mkdir()
    for name in names:
        shutil.copy(ROOT / name, tree)
    for name in ("requirements", "rerank_grpc", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "built"))
    file = tree / "rerank_grpc/__init__.py"
    file.write_text(file.read_text().replace(__version__, version))
    return tree


@pytest.fixture
def next_version(tmp_path: Path) -> str:
    """The image of the same tree with a new version, and another description in pyproject.toml."""
    tree = copied(tmp_path / "next", version="99.0.0")
    project = tree / "pyproject.toml"
    project.write_text(project.read_text().replace("reranker models resident", "models that stay"))
    return build("localhost/rerank-grpc:test-next", tree)


def test_a_new_version_is_a_pull_of_its_own_few_megabytes(image: str, next_version: str):
    before, after = layers(image), layers(next_version)
    new = {digest: pulled_bytes(layer) for digest, layer in after.items() if digest not in before}
    assert once(next_version, "--version").stdout == "rerank-grpc 99.0.0\n"
    assert 0 < sum(new.values()) <= MOST_BYTES_OF_A_VERSION, new


def test_the_same_tree_in_another_folder_is_the_same_service_layer(image: str, tmp_path: Path):
    tree = copied(tmp_path / "same", version=__version__)
    for path in tree.rglob("*"):
        path.touch()
    (tree / "README.md").write_text((tree / "README.md").read_text())
    same = build("localhost/rerank-grpc:test-same", tree)
    assert list(layers(same)) == list(layers(image))


def test_every_package_has_what_it_asks_for_and_nothing_that_builds(image: str):
    program = """
import json, re
from importlib.metadata import distributions
found = {re.sub("[-_.]+", "-", each.name).lower(): each.requires or [] for each in distributions()}
print(json.dumps(found))
"""
    done = once(image, engine=("--entrypoint", json.dumps(["python", "-c", program])))
    found = json.loads(done.stdout)
    asked = [Requirement(text) for requires in found.values() for text in requires]
    needed = {each.name for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})}
    names = {re.sub("[-_.]+", "-", name).lower() for name in needed}
    assert names - found.keys() == LEFT_OUT
    assert not {"pip", "setuptools", "wheel", "pytest"} & found.keys()
