"""Sends the list through rerank_grpc.client.Client."""

from __future__ import annotations

import threading
from typing import Any

from clients.conformance.contract import requests
from rerank_grpc.client import Client, RerankError


def ask(client: Client, line: requests.Line) -> dict[str, Any]:
    """Makes one call; a call has no handle, so closing its client is what cancels it."""
    if line.method == "ListModels":
        return requests.listed(client.list_models(timeout=line.timeout))
    if line.method == "Health":
        return requests.healthy(client.health(line.model, timeout=line.timeout))
    if line.method == "StreamRerank":
        return stream(client, line)
    request = line.rerank
    if line.cancel_after is not None:
        threading.Timer(line.cancel_after, client.close).start()
    response = client.send(request, timeout=line.timeout)
    return requests.reranked(response.results, response.summary)


def stream(client: Client, line: requests.Line) -> dict[str, Any]:
    """Reads a stream, or leaves it after its first results."""
    results = []
    with client.stream(line.rerank, timeout=line.timeout) as stream:
        for result in stream:
            results.append(result)
            if line.cancel_after_messages:
                return requests.CANCELLED
    return requests.streamed(results, line.rerank.top_n, stream.summary)


def main() -> None:
    """Sends each line over a client of its own, with the token of its caller."""
    target, tokens, path = requests.environment()
    for line in requests.lines(path):
        with Client(target, token=tokens.get(line.caller)) as client:
            try:
                outcome = ask(client, line)
            except RerankError as error:
                outcome = requests.failed(error)
        requests.say(line.name, outcome)


if __name__ == "__main__":
    main()
