"""One system under measurement, in a process and an environment of its own.

    PYTHON -m benchmarks.worker SYSTEM SHAPE THREADS

It prints one line when it is ready and then answers each line of stdin, which
names a workload, with the seconds it took and the logits. Every system gets
texts and gives numbers: tokenizing counts. Only the standard library and the
system's own packages are imported, for each peer has an environment of its own.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, peers, workloads
from benchmarks.peers import Score
from benchmarks.processes import free_port, start
from benchmarks.workloads import Workload, request_of

ROWS = 2048  # of the plain product
REPEATS = 7


def rerank_grpc(path: Path, threads: int, kind: str) -> Score:
    """The service's engine without its server."""
    return engine_on(str(path), threads, kind)


def rerank_grpc_embedded(path: Path, threads: int, kind: str) -> Score:
    """The same on the embedded model, by its name."""
    return engine_on(checkpoints.EMBEDDED, threads, kind)


def engine_on(source: str, threads: int, kind: str, batch_tokens: int | None = None) -> Score:
    """Loads a model; its batches have at most so many tokens, or as many as are measured to be fastest."""
    import torch

    torch.set_num_threads(threads)
    from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.types import Call

    engine = EngineSettings(max_batch_tokens=batch_tokens)
    settings = ServerSettings(device="cpu", precision=kind, engine=engine)
    loaded = ModelLoader(settings).load(ModelSpec("bench", source), lambda hung: None)
    print(f"budget of {source} in {kind}: {loaded.engine.max_batch_tokens}", file=sys.stderr)

    def score(workload: Workload) -> list[float]:
        room = 0
        if workload.max_tokens < loaded.card.max_tokens and loaded.card.reading.prompt is None:
            # The same cut as the others': query and document together.
            room = workload.max_tokens - overhead(loaded.tokenizer, workload.query)
        tokenized = loaded.tokenizer.tokenize(request_of(workload.query, workload.documents, room))
        with loaded.engine.admit(Call()) as admission:
            future = admission.submit(tokenized.sequences)
            future.wait()
        found = [future.outputs[document.chunks[0].sequence] for document in tokenized.documents]
        if tokenized.query is None:
            return list(map(workloads.logit_of, found))
        return cosines(future.outputs[tokenized.query], found)

    return score


def cosines(query: Any, documents: list[Any]) -> list[float]:
    import numpy

    matrix = numpy.stack(documents)
    lengths = numpy.linalg.norm(matrix, axis=1) * numpy.linalg.norm(query)
    return [float(value) for value in matrix @ query / lengths]


def overhead(tokenizer: Any, query: str) -> int:
    """How many tokens of a pair are not the document's."""
    return len(tokenizer.tokenize(request_of(query, ["a"])).sequences[0]) - 1


def rerank_grpc_server(path: Path, threads: int, kind: str) -> Score:
    """The service over gRPC."""
    from rerank_grpc.client import Client

    port = free_port()
    start(
        *("-m", "rerank_grpc", "serve", "--model", f"bench={path}", "--device", "cpu", "--precision", kind),
        *("--port", str(port), "--admin-port", "off", "--rest-port", "off", "--metrics-port", "off"),
        threads=threads,
    )
    client = Client(f"127.0.0.1:{port}")
    client.wait_until_ready(600)

    def score(workload: Workload) -> list[float]:
        response = client.rerank(workload.query, list(workload.documents), timeout=120)
        logits = [math.nan] * len(workload.documents)
        for result in response.results:
            logits[result.index] = result.logit
        return logits

    return score


def product(shape: checkpoints.Shape, threads: int, kind: str) -> Score:
    """The plain products of a layer's own shapes, alone: FLOP a second is its score."""
    import torch

    torch.set_num_threads(threads)
    layers = []
    with torch.inference_mode():
        for inputs, outputs in shape.products:
            rows, weight = torch.randn(ROWS, inputs), torch.randn(outputs, inputs) * 0.02
            if kind == "int8":
                layers.append(int8_product(rows, weight))
            else:
                dtype = torch.bfloat16 if kind == "bf16" else torch.float32
                layers.append(linear_of(rows.to(dtype), weight.to(dtype)))

    def score(workload: Workload) -> list[float]:
        seconds = 0.0
        with torch.inference_mode():
            for run in layers:
                run()
                taken = []
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    run()
                    taken.append(time.perf_counter() - started)
                seconds += sorted(taken)[REPEATS // 2]
        return [product_flop(shape) / seconds]

    return score


def product_flop(shape: checkpoints.Shape) -> float:
    return 2.0 * ROWS * sum(inputs * outputs for inputs, outputs in shape.products)


def linear_of(rows: Any, weight: Any) -> Callable[[], Any]:
    import torch

    return lambda: torch.nn.functional.linear(rows, weight)


def int8_product(rows: Any, weight: Any) -> Callable[[], Any]:
    """OneDNN's fastest: unsigned rows without an offset, weights laid out before."""
    import torch

    outputs = weight.shape[0]
    packed = torch.ops.onednn.qlinear_prepack((weight * 1000).round().clamp(-127, 127).to(torch.int8), None)
    scales, zeros = torch.full((outputs,), 1e-3), torch.zeros(outputs, dtype=torch.int32)
    quantized = rows.abs().mul(40).clamp(0, 255).to(torch.uint8)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        quantized, 0.1, 0, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
    )


BUILDERS: dict[str, Callable[[Path, int, str], Score]] = peers.BUILDERS | {
    "rerank-grpc": rerank_grpc,
    "rerank-grpc-embedded": rerank_grpc_embedded,
    "rerank-grpc-server": rerank_grpc_server,
}


def main(system: str, shape: str, threads: str) -> None:
    # What libraries print goes to stderr: stdout is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, _, kind = system.rpartition(" ")
    if name == "product":
        score = product(checkpoints.SHAPES[shape], int(threads), kind)
    else:
        score = BUILDERS[name](checkpoints.checkpoint(shape), int(threads), kind)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        workload = workloads.named(line.strip())
        started = time.perf_counter()
        scores = score(workload)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "scores": scores}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
