"""The client needs grpc and protobuf, and nothing that a server needs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "fastapi",
    "numpy",
    "sentence_transformers",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "rerank_grpc.engine",
    "rerank_grpc.models",
    "rerank_grpc.registry",
    "rerank_grpc.reranker",
    "rerank_grpc.server",
)

CHECK = """
import sys
import rerank_grpc.client
print(*sorted(sys.modules))
"""

REFUSING = """
import sys
heavy = sys.argv[1:]
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in heavy:
            raise ImportError(f"the client imports {name}")
sys.meta_path.insert(0, Refusing())
import rerank_grpc.client
rerank_grpc.client.Client("localhost:1").close()
"""


def test_importing_the_client_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CHECK], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "rerank_grpc.client.sync" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_client_works_where_nothing_heavy_can_be_imported():
    subprocess.run([sys.executable, "-W", "error", "-c", REFUSING, *HEAVY], check=True)
