"""Sends the list through `buf curl`, in a process for each request, as a person would who has no client.

Messages are protobuf's JSON, and the details of an error base64. buf has no way to cancel a call but to end
its process, and takes the deadline by --timeout, which counts from its own start: it refuses the header
grpc-timeout as reserved.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.rpc import error_details_pb2

from clients.conformance.contract import requests
from clients.conformance.contract.tools import Missing
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages

ROOT = Path(__file__).resolve().parents[3]
BUF = ROOT / "tools/buf/node_modules/.bin/buf"
SCHEMA = ROOT / ".tools/conformance/buf/contract.binpb"
RETRY_SECONDS = 2.0  # after a busy server's refusal
START_SECONDS = 0.5  # allowed to buf before it sends anything


def command() -> list[str]:
    """Compiles the contract once for all calls; raises Missing without buf."""
    if not BUF.exists():
        raise Missing("buf is not installed: `make lint` does so, by npm")
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(BUF), "build", "proto", "-o", str(SCHEMA)], cwd=ROOT, check=True)
    return [sys.executable, "-m", "clients.conformance.contract.buf_curl"]


def ask(target: str, token: str | None, line: requests.Line) -> dict[str, Any]:
    """Makes one call."""
    sent = [] if token is None else ["--header", f"authorization: Bearer {token}"]
    url = f"http://{target}/rerank.v1.RerankService/{line.method}"
    patience = ["--timeout", f"{line.timeout + START_SECONDS}s"]
    schema = ["--protocol", "grpc", "--schema", str(SCHEMA)]
    with subprocess.Popen(
        [str(BUF), "curl", *schema, *patience, *sent, "--data", "@-", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        if line.cancel_after_messages:
            process.stdin.write(json.dumps(line.request))
            process.stdin.close()
            return leave(process, line.cancel_after_messages)
        try:
            said, complaint = process.communicate(json.dumps(line.request), line.cancel_after)
        except subprocess.TimeoutExpired:
            process.kill()
            return requests.CANCELLED
    return answered(line, said) if process.returncode == 0 else refused(complaint)


def leave(process: subprocess.Popen[str], count: int) -> dict[str, Any]:
    """Ends the process after so many messages of a stream; what it prints is indented but for its braces."""
    assert process.stdout is not None
    assert process.stderr is not None
    seen = 0
    for text in process.stdout:
        seen += text == "}\n"
        if seen == count:
            process.kill()
            return requests.CANCELLED
    return refused(process.stderr.read() or "no message came")


def answered(line: requests.Line, said: str) -> dict[str, Any]:
    """Tells the messages of a call that has succeeded."""
    values = list(read(said))
    if line.method == "StreamRerank":
        parts = [json_format.ParseDict(value, pb.StreamRerankResponse()) for value in values]
        results = [messages.result_from(result) for part in parts for result in part.results]
        return requests.streamed(results, line.rerank.top_n, messages.summary_from(parts[-1].summary))
    (value,) = values
    if line.method == "ListModels":
        return requests.listed(messages.models_from(json_format.ParseDict(value, pb.ListModelsResponse())))
    if line.method == "Health":
        return requests.healthy(messages.health_from(json_format.ParseDict(value, pb.HealthResponse())))
    response = messages.response_from(json_format.ParseDict(value, pb.RerankResponse()))
    return requests.reranked(response.results, response.summary)


def read(text: str) -> Iterator[dict[str, Any]]:
    """Reads the JSON values that stand one after the other in a text."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        yield value
        place += len(text[place:]) - len(text[place:].lstrip())


def refused(complaint: str) -> dict[str, Any]:
    """Tells an error: a JSON object with the code's name and the details, or a line of buf's own."""
    if not complaint.lstrip().startswith("{"):
        return {"error": {"reason": complaint.strip(), "fields": [], "retry": False}}
    error = json.loads(complaint)
    told = {"reason": error["code"].upper(), "fields": [], "retry": False}
    for detail in error.get("details", ()):
        message = getattr(error_details_pb2, detail["type"].rpartition(".")[2])()
        message.ParseFromString(base64.b64decode(detail["value"] + "=="))  # buf leaves the padding out
        if isinstance(message, error_details_pb2.ErrorInfo):
            told["reason"] = message.reason.removeprefix("ERROR_REASON_")
        elif isinstance(message, error_details_pb2.BadRequest):
            told["fields"] = [violation.field for violation in message.field_violations]
        elif isinstance(message, error_details_pb2.RetryInfo):
            told["retry"] = True
    return {"error": told}


def main() -> None:
    """Sends each line, with the token of its caller."""
    target, tokens, path = requests.environment()
    os.environ.pop("BUF_TIMEOUT", None)
    for line in requests.lines(path):
        outcome = ask(target, tokens.get(line.caller), line)
        if line.cancel_after_messages and outcome.get("error", {}).get("retry"):
            time.sleep(RETRY_SECONDS)  # every other client tries again by itself
            outcome = ask(target, tokens.get(line.caller), line)
        requests.say(line.name, outcome)


if __name__ == "__main__":
    main()
