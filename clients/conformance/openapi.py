"""Runs schemathesis against REST: 500 cases an operation, and what it must not find.

    python clients/conformance/openapi.py
    python clients/conformance/openapi.py --include-path /v1/rerank     or other options of `schemathesis run`

The server's model costs nothing, so that an answer that takes a second is the
REST's own. Like run.py it builds an environment of its own under .tools.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from run import DIRECT, ROOT, build_python

sys.path.insert(0, str(ROOT))

CASES = 500
SECONDS = 1


def main() -> int:
    """Returns schemathesis' own exit status."""
    from tests.rest.support import rest_server
    from tests.support import CountingRunner, serving

    python = build_python("schemathesis")
    with serving(runner=CountingRunner()) as server, rest_server(server.port) as port:
        command = [
            python.parent / "schemathesis",
            "--config-file",
            Path(__file__).with_name("schemathesis.toml"),
        ]
        command += ["run", f"http://127.0.0.1:{port}/openapi.json", "--max-examples", str(CASES)]
        command += ["--max-response-time", str(SECONDS), *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, **DIRECT}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
