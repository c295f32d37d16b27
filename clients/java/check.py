"""Builds the Java client with Debian's packages, and runs its tests against real servers.

    python -m clients.java.check        every test class, in one Java process

The servers are those of this repository: one with callers, one with TLS, one that wants a certificate of
the caller's. The blocks of clients/java/README.md must stand in ReadmeExamples.java, which the tests run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clients.conformance.contract import java
from clients.conformance.contract.tools import Missing
from clients.conformance.run import DIRECT, ROOT, server
from rerank_grpc import __version__
from tests.authority import HERE, Authority

FOLDER = ROOT / "clients" / "java"
EXAMPLES = FOLDER / "src" / "test" / "java" / "io" / "github" / "rerankgrpc" / "ReadmeExamples.java"
TOKENS = {name: f"rrk_java_{name}" for name in ("full", "paced", "slow")}
# `paced` waits half a second between two documents, `slow` a quarter of an hour.
CALLERS = f"""
[full]
token = "{TOKENS["full"]}"

[paced]
token = "{TOKENS["paced"]}"
documents_per_second = 2
burst = 1

[slow]
token = "{TOKENS["slow"]}"
documents_per_second = 0.001
burst = 1
"""


def main() -> int:
    """Returns 0 if all is well, 1 if a test failed, 2 if tools are missing."""
    problems = [f"this block is not in {EXAMPLES.name}:\n{block}" for block in missing_blocks()]
    problems += other_versions()
    for problem in problems:
        print(f"FAILED README.md: {problem}")
    tests = [path.stem for path in sorted(EXAMPLES.parent.glob("*Test.java"))]
    try:
        command = java.java("org.junit.runner.JUnitCore", *(f"io.github.rerankgrpc.{name}" for name in tests))
    except Missing as missing:
        print(f"the Java client is not tested: {missing}", file=sys.stderr)
        return 2
    with serving() as variables:
        done = subprocess.run(command, env={**os.environ, **variables, **DIRECT}, timeout=300)
    return 1 if done.returncode or problems else 0


def missing_blocks() -> Iterator[str]:
    """Yields the page's blocks of Java that the examples do not hold, whatever their indentation."""
    examples = words(EXAMPLES.read_text("utf-8"))
    page = (FOLDER / "README.md").read_text("utf-8")
    for block in re.findall(r"```java\n(.*?)```", page, re.DOTALL):
        if words(block) not in examples:
            yield textwrap.indent(block, "    ")


def other_versions() -> Iterator[str]:
    """Tells where the page names another version than pom.xml, or pom.xml than this package."""
    pom, page = ((FOLDER / name).read_text("utf-8") for name in ("pom.xml", "README.md"))
    grpc = re.findall(r"<grpc.version>(.*?)<", pom)[0]
    own = f"<artifactId>rerank-grpc-client</artifactId>\n  <version>{__version__}</version>"
    netty = f"<artifactId>grpc-netty-shaded</artifactId>\n  <version>{grpc}</version>"
    if own not in pom or own not in page:
        yield f"it, or pom.xml, names another version than {__version__}"
    if netty not in page:
        yield f"grpc-netty-shaded is not the {grpc} of pom.xml"


def words(text: str) -> str:
    """Leaves out what Java does not care about."""
    return " ".join(text.split())


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Runs the servers; yields what the tests read from their environment."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        (folder / "callers.toml").write_text(CALLERS)
        ours, other = Authority(folder / "ours"), Authority(folder / "other")
        own, alice, mallory = ours.issue("server", *HERE), ours.issue("alice"), other.issue("mallory")
        tls = ("--tls-cert", str(own.cert), "--tls-key", str(own.key))
        wants = ("--tls-client-ca", str(ours.cert))
        plain, url, _ = stack.enter_context(server("--token-file", str(folder / "callers.toml")))
        secure, _, _ = stack.enter_context(server(*tls, "--token-file", str(folder / "callers.toml")))
        mutual, _, _ = stack.enter_context(server(*tls, *wants, "--token-file", str(folder / "callers.toml")))
        yield {
            "RERANK_TEST_PLAIN": plain,
            "RERANK_TEST_REST": url.partition("://")[2].rstrip("/"),
            "RERANK_TEST_TLS": secure,
            "RERANK_TEST_MUTUAL": mutual,
            "RERANK_TEST_CA": str(ours.cert),
            "RERANK_TEST_OTHER_CA": str(other.cert),
            "RERANK_TEST_ALICE": str(alice.cert.with_suffix("")),
            "RERANK_TEST_MALLORY": str(mallory.cert.with_suffix("")),
            **{f"RERANK_TEST_TOKEN_{name.upper()}": token for name, token in TOKENS.items()},
        }


if __name__ == "__main__":
    sys.exit(main())
