"""A server of fixed service time, and the queue that it is."""

import threading
import time
from concurrent import futures
from contextlib import contextmanager

import grpc

from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc


class FixedService(rerank_pb2_grpc.RerankServiceServicer):
    """Answers one call after another, each `seconds` after it came or after the one before it.

    The queue is kept by the clock: an answer's end is fixed when its call comes, so that a thread that wakes
    late makes its own answer late and none behind it. `fail` is asked for each call whether it is refused.
    """

    def __init__(self, seconds, fail=lambda number: None):
        self.seconds, self.calls = seconds, 0
        self._fail = fail
        self._free = 0.0
        self._lock = threading.Lock()

    def Rerank(self, request, context):
        """Scores nothing, in its time."""
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
            code = self._fail(number)
            if code is None:
                self._free = max(time.perf_counter(), self._free) + self.seconds
            until = self._free
        if code is not None:
            context.abort(code, "refused by the test")
        time.sleep(max(0.0, until - time.perf_counter()))
        results = [pb.RerankResult(index=place) for place in range(len(request.documents))]
        return pb.RerankResponse(results=results, usage=pb.Usage(input_tokens=7))

    def ListModels(self, request, context):
        """Lists one model."""
        return pb.ListModelsResponse(models=[pb.Model(name="fixed", is_default=True)])


@contextmanager
def fixed_service(seconds, fail=lambda number: None, port=0):
    """Serves on a free port; yields the target and the service."""
    service = FixedService(seconds, fail)
    server = grpc.server(futures.ThreadPoolExecutor(256))
    rerank_pb2_grpc.add_RerankServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}", service
    finally:
        server.stop(None).wait()


def waited(plan, service):
    """Simulates one server and its queue, first come first served (Lindley): each call's seconds."""
    free, found = float("-inf"), []
    for call in plan:
        free = max(call.at, free) + service
        found.append(free - call.at)
    return found
