"""A server of fixed service time, and the queue that it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager

import grpc

from rerank_grpc.loadtest.plan import PlannedCall
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

Fail = Callable[[int], grpc.StatusCode | None]  # by the number of the call


def never(_number: int) -> None:
    """Refuses no call."""


class FixedService(rerank_pb2_grpc.RerankServiceServicer):
    """Answers one call after another, each in its time after it came or after the one before it.

    The time is `seconds` and `per_document` for each of its documents. The queue is kept by the clock: an
    answer's end is fixed when its call comes, so that a thread that wakes late makes its own answer late and
    none behind it.
    """

    def __init__(self, seconds: float, fail: Fail = never, per_document: float = 0.0) -> None:
        self.calls = 0
        self._seconds, self._fail, self._per_document = seconds, fail, per_document
        self._free = 0.0
        self._lock = threading.Lock()

    def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        """Scores nothing, in its time."""
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
            code = self._fail(number)
            if code is None:
                service = self._seconds + self._per_document * len(request.documents)
                self._free = max(time.perf_counter(), self._free) + service
            until = self._free
        if code is not None:
            context.abort(code, "refused by the test")
        time.sleep(max(0.0, until - time.perf_counter()))
        results = [pb.RerankResult(index=place) for place in range(len(request.documents))]
        return pb.RerankResponse(results=results, usage=pb.Usage(input_tokens=7), model="fixed")

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        """Lists one model."""
        return pb.ListModelsResponse(models=[pb.Model(name="fixed", is_default=True)])


@contextmanager
def fixed_service(
    seconds: float, fail: Fail = never, *, per_document: float = 0.0
) -> Iterator[tuple[str, FixedService]]:
    """Serves on a free port; yields the target and the service."""
    service = FixedService(seconds, fail, per_document)
    server = grpc.server(futures.ThreadPoolExecutor(256))
    rerank_pb2_grpc.add_RerankServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        server.stop(None).wait()


def waited(plan: Sequence[PlannedCall], service: float) -> list[float]:
    """Simulates one server and its queue, first come first served (Lindley): each call's seconds."""
    free, found = float("-inf"), []
    for call in plan:
        free = max(call.at, free) + service
        found.append(free - call.at)
    return found
