"""Golden request and reply pairs: tests/golden/rest/CALLER.json, each a list of exchanges.

python -m tests.rest.golden     writes the replies anew, to be read before they are committed
"""

import json
from pathlib import Path
from typing import Any

from tests.rest.support import call

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "rest"
# What differs from call to call; a golden reply has its kind instead.
VARIABLE = {
    "id": "text",
    "request_id": "text",
    "created": "number",
    "request_time": "text",
    "response_time": "text",
    "processing_time_seconds": "number",
    "value": "text",  # of a detail in Connect's errors: protobuf orders maps at will
    "tokenizationDuration": "text",
    "queueDuration": "text",
    "inferenceDuration": "text",
    "runtime_ms": "number",
}


def callers() -> list[str]:
    """Lists the callers that have golden pairs."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def exchanges(caller: str) -> list[dict[str, Any]]:
    """Reads a caller's exchanges: what it is, method, path, headers, body; status and reply."""
    read: list[dict[str, Any]] = json.loads((FOLDER / f"{caller}.json").read_text("utf-8"))
    return read


def answer(port: int, exchange: dict[str, Any]) -> dict[str, Any]:
    """Sends an exchange's request; returns its status and its reply, comparable."""
    method = exchange.get("method", "POST")
    reply = call(port, method, exchange["path"], exchange.get("body"), exchange.get("headers"))
    return {"status": reply.status, "reply": comparable(reply.json)}


def comparable(value: Any) -> Any:
    """Puts kinds in the place of what differs from call to call, and rounds scores."""
    if isinstance(value, dict):
        return {key: _kind(key, item) or comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _kind(key: str, value: Any) -> str:
    kind = {str: "text", int: "number", float: "number"}.get(type(value))
    return f"<{kind}>" if kind and VARIABLE.get(key) == kind and (key != "id" or len(value) == 32) else ""


def main() -> None:
    """Records the replies of every caller's requests."""
    from rerank_grpc.config.settings import ModelSpec, ServerSettings
    from tests.rest.conftest import ALIASES
    from tests.rest.support import rest_server
    from tests.support import CountingRunner, serving

    settings = ServerSettings(models=(ModelSpec("embedded", "embedded", ALIASES),))
    with serving(settings, runner=CountingRunner()) as server, rest_server(server.port) as port:
        for caller in callers():
            recorded = [exchange | answer(port, exchange) for exchange in exchanges(caller)]
            text = json.dumps(recorded, indent=1, ensure_ascii=False)
            (FOLDER / f"{caller}.json").write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main()
