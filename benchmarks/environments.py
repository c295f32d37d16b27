"""The peers' environments: one virtual environment each, made when first asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.checkpoints import cache_folder

TORCH = "torch==2.13.0"
REQUIREMENTS = {
    "crossencoder": [TORCH, "sentence-transformers==6.2.0", "transformers==5.23.0", "fastapi", "uvicorn"],
    "infinity": [TORCH, "infinity-emb[torch,server]==0.0.78", "transformers<5"],
    "onnxruntime": [TORCH, "transformers==5.23.0", "onnx==1.23.2", "onnxscript", "onnxruntime==1.31.1"],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0", "tokenizers==0.23.3"],
}
# What of it is named in results.
SHOWN = {
    "crossencoder": ("sentence-transformers", "transformers", "torch"),
    "infinity": ("infinity-emb", "transformers", "torch"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}


class Unavailable(Exception):
    """A peer that cannot be measured here, and why."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, or this one's for "" ; raises Unavailable."""
    if not name:
        return Path(sys.executable)
    folder = cache_folder() / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[name])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {', '.join(REQUIREMENTS[name])}", file=sys.stderr, flush=True)
    index = os.environ.get("TORCH_INDEX")
    install: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
        subprocess.run(
            [*install, *(["--extra-index-url", index] if index else []), *REQUIREMENTS[name]],
            check=True,
            stdout=sys.stderr,
        )
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{name}: pip could not install it (exit code {error.returncode})") from error
    stamp.write_text(wanted)
    return python


def versions_of(name: str) -> dict[str, str]:
    """The versions that results name, read in the peer's own environment."""
    code = "import sys, importlib.metadata as m; print(*[m.version(name) for name in sys.argv[1:]])"
    shown = SHOWN[name]
    found = subprocess.run(
        [python_of(name), "-c", code, *shown], check=True, capture_output=True, text=True
    ).stdout.split()
    return dict(zip(shown, found, strict=True))
