"""Generates the committed stubs in rerank_grpc/v1 and rerank_grpc/protocols from proto/.

The descriptor is registered as ``rerank/v1/rerank.proto`` (``-Iproto``), the
path under which every other caller's own stubs register it too, so that both
can be imported in one process; only then is the one import between the
generated files rewritten to where they live in this package.

Run it through ``make proto``. The generator is that of scripts/protoc.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from protoc import ROOT, protoc

PACKAGE = ROOT / "rerank_grpc"


class Proto(NamedTuple):
    """A file below proto/, the package of its stubs, and what is generated."""

    file: str
    package: str
    kinds: tuple[str, ...]


# The server registers the handlers of other protocols itself, and calls none of them: messages suffice.
PROTOS = (
    Proto("rerank/v1/rerank.proto", "v1", ("python", "pyi", "grpc_python")),
    Proto("tei/v1/tei.proto", "protocols", ("python", "pyi")),
    Proto("inference/v2/inference.proto", "protocols", ("python", "pyi")),
)


def generate(proto: Proto, out: Path) -> None:
    """Runs protoc into `out`; raises SystemExit with protoc's status if it fails."""
    status = protoc("-Iproto", *(f"--{kind}_out={out}" for kind in proto.kinds), proto.file)
    if status:
        raise SystemExit(status)


def main() -> None:
    """Writes the stubs, or with --check fails if the committed ones differ."""
    check = "--check" in sys.argv[1:]
    stale = []
    for proto in PROTOS:
        with tempfile.TemporaryDirectory() as folder:
            generate(proto, Path(folder))
            for generated in sorted(Path(folder, proto.file).parent.iterdir()):
                text = generated.read_text().replace("from rerank.v1 import", "from rerank_grpc.v1 import")
                target = PACKAGE / proto.package / generated.name
                if check and (not target.exists() or target.read_text() != text):
                    stale.append(target.name)
                elif not check:
                    target.write_text(text)
    if stale:
        raise SystemExit(f"stubs are stale ({', '.join(stale)}): run `make proto` and commit")


if __name__ == "__main__":
    import os

    os.chdir(ROOT)
    main()
