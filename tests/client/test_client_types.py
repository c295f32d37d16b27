"""A caller's own mypy --strict sees no Any in the client, with the stubs of grpc and protobuf or without."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from rerank_grpc import client as exported
from tests.client.conftest import ROOT

PROGRAM = """
import asyncio
from collections.abc import Iterator

from rerank_grpc.client import AsyncClient, Client, Document, RerankError, RerankResponse, TlsError


def jobs() -> Iterator[tuple[str, list[str]]]:
    yield "query", ["one", "two"]


def blocking() -> None:
    with Client(["host-a", "host-b"], token="t", hang_timeout=3, ca=b"", credentials=None) as client:
        response = client.rerank("query", ["one", Document("two", "id"), {"text": "three"}], top_n=2)
        for result in response.results:
            print(result.index, result.relevance_score, result.document, result.best_chunk)
        print(response.summary.usage.input_tokens, response.summary.model_revision)
        with client.stream_rerank("query", ["one"], priority="batch", timeout=3) as stream:
            print([result.id for result in stream], stream.summary.model)
        with client.rerank_many(jobs(), progress=lambda done, total: print(done, total)) as responses:
            for each in responses:
                print(each.results[0].logit)
        for outcome in client.rerank_many(jobs()).outcomes():
            if isinstance(outcome, RerankError):
                print(outcome.metadata, outcome.retry_after, outcome.violations, outcome.reason)
            else:
                print(outcome.results)
        print(client.health().state, [model.name for model in client.list_models()], client.serving())
        print(client.wait_until_ready(3).version)


async def asynchronous() -> RerankResponse:
    async with AsyncClient("host") as client:
        async with client.stream_rerank("query", ["one"]) as stream:
            print([result.index async for result in stream])
        async for response in client.rerank_many(jobs()):
            print(response.summary)
        try:
            return await client.rerank("query", ["one"])
        except TlsError as error:
            print(error.problem, error.message)
            raise


print(blocking, asyncio.run(asynchronous()))
"""


def every_public_name() -> str:
    """Writes a program that reveals the type of every name, method and attribute of the client."""
    lines = ["import rerank_grpc.client as c"]
    for name in exported.__all__:
        lines.append(f"reveal_type(c.{name})")
        kind = getattr(exported, name)
        if not inspect.isclass(kind) or issubclass(kind, dict):
            continue
        ours = [each for each in kind.__mro__ if each.__module__.startswith("rerank_grpc")]
        members = {member for each in ours for member in (*vars(each), *inspect.get_annotations(each))}
        if issubclass(kind, exported.RerankError):
            members |= {"message", "metadata", "retry_after", "violations", "reason"}
        lines.append(f"def of_{name}(value: c.{name}) -> None:\n    reveal_type(value)")
        lines += [f"    reveal_type(value.{member})" for member in sorted(members) if member[0] != "_"]
    return "\n".join(lines)


def checked(folder, program, *arguments):
    """Lets mypy check a caller's program; returns what it says of it."""
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text("[mypy]\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=mypy.ini"]
    done = subprocess.run(
        [*command, *arguments, "program.py"],
        cwd=folder,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("program.py")]


@pytest.mark.parametrize("stubs", [True, False], ids=["with stubs", "without"])
def test_a_callers_strict_mypy_sees_no_any(tmp_path, stubs):
    environment = () if stubs else ("--no-site-packages",)
    assert checked(tmp_path, PROGRAM, "--disallow-any-expr", *environment) == []
    revealed = checked(tmp_path, every_public_name(), *environment)
    assert len(revealed) > 250
    # The type of every `async def` has two of them, of which a caller gets none.
    plain = [line.replace("Coroutine[Any, Any, ", "Coroutine[") for line in revealed]
    assert [line for line in plain if re.search(r"\bAny\b|error:", line)] == []
