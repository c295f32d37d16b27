"""Sends the list through rerank_grpc.client.AsyncClient."""

from __future__ import annotations

import asyncio
from typing import Any

from clients.conformance.contract import requests
from rerank_grpc.client import AsyncClient, RerankError


async def ask(client: AsyncClient, line: requests.Line) -> dict[str, Any]:
    """Makes one call."""
    if line.method == "ListModels":
        return requests.listed(await client.list_models(timeout=line.timeout))
    if line.method == "Health":
        return requests.healthy(await client.health(line.model, timeout=line.timeout))
    if line.method == "StreamRerank":
        return await stream(client, line)
    response = await client.send(line.rerank, timeout=line.timeout)
    return requests.reranked(response.results, response.summary)


async def stream(client: AsyncClient, line: requests.Line) -> dict[str, Any]:
    """Reads a stream, or leaves it after its first results."""
    results = []
    async with client.stream(line.rerank, timeout=line.timeout) as stream:
        async for result in stream:
            results.append(result)
            if line.cancel_after_messages:
                return requests.CANCELLED
    return requests.streamed(results, line.rerank.top_n, stream.summary)


async def main() -> None:
    """Sends each line over a client of its own; a task that is cancelled cancels its call."""
    target, tokens, path = requests.environment()
    for line in requests.lines(path):
        async with AsyncClient(target, token=tokens.get(line.caller)) as client:
            try:
                async with asyncio.timeout(line.cancel_after):
                    outcome = await ask(client, line)
            except TimeoutError:
                outcome = requests.CANCELLED
            except RerankError as error:
                outcome = requests.failed(error)
        requests.say(line.name, outcome)


if __name__ == "__main__":
    asyncio.run(main())
