"""One system under measurement, in a process and an environment of its own.

    PYTHON -m benchmarks.worker SYSTEM CHECKPOINT THREADS

It prints one line when it is ready and then answers each line of stdin, which
names a workload, with the seconds it took and the logits. Every system gets
texts and gives numbers: tokenizing counts. Only the standard library and the
system's own packages are imported, for each peer has an environment of its own.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.workloads import Workload, request_of

Score = Callable[[Workload], list[float]]

CROSS_ENCODER_SERVER = """
import sys
import torch, uvicorn
from fastapi import FastAPI
from sentence_transformers import CrossEncoder
torch.set_num_threads(int(sys.argv[3]))
model = CrossEncoder(sys.argv[1], device="cpu", max_length=512)
app = FastAPI()
@app.post("/rerank")
def rerank(body: dict) -> list[float]:
    pairs = [(body["query"], text) for text in body["documents"]]
    return model.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


def cross_encoder(path: Path, threads: int, kind: str) -> Score:
    """sentence-transformers, which sorts by length and pads each batch of 32."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    options = {"dtype": torch.bfloat16} if kind == "bf16" else {}
    model = CrossEncoder(str(path), device="cpu", max_length=512, model_kwargs=options)

    def score(workload: Workload) -> list[float]:
        found = model.predict(
            workload.pairs, batch_size=32, activation_fn=torch.nn.Identity(), convert_to_tensor=True
        )
        return [float(value) for value in found]

    return score


def infinity(path: Path, threads: int, kind: str) -> Score:
    """Infinity's engine without its server; texts longer than 512 tokens it cuts itself."""
    import asyncio

    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs
    from infinity_emb.primitives import Dtype

    torch.set_num_threads(threads)
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(path),
            engine="torch",
            device="cpu",
            dtype=Dtype.bfloat16 if kind == "bf16" else Dtype.float32,
            bettertransformer=False,
            model_warmup=False,
            trust_remote_code=False,
        )
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def score(workload: Workload) -> list[float]:
        results, _ = loop.run_until_complete(
            engine.rerank(query=workload.query, docs=list(workload.documents), raw_scores=True)
        )
        ordered = sorted(results, key=lambda result: result.index)
        return [float(result.relevance_score) for result in ordered]

    return score


def batches(path: Path, workload: Workload, size: int) -> Iterator[tuple[list[int], Any, Any]]:
    """Padded batches of sequences sorted by length, as runtimes without a scheduler need them."""
    import numpy
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(workload.max_tokens, strategy="only_second")
    rows = [encoding.ids for encoding in tokenizer.encode_batch(workload.pairs)]
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        ids = numpy.full((len(places), len(rows[places[0]])), 1, numpy.int64)
        mask = numpy.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, : len(rows[place])] = rows[place]
            mask[row, : len(rows[place])] = 1
        yield places, ids, mask


def onnxruntime(path: Path, threads: int, kind: str) -> Score:
    """ONNX Runtime on the fused graph that `--convert` has written."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    file = converted(path) / ("int8.onnx" if kind == "int8" else "fused.onnx")
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def score(workload: Workload) -> list[float]:
        found = [0.0] * len(workload.documents)
        for places, ids, mask in batches(path, workload, 4):
            (logits,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            for place, logit in zip(places, logits[:, 0], strict=True):
                found[place] = float(logit)
        return found

    return score


def openvino(path: Path, threads: int, kind: str) -> Score:
    """OpenVINO, which reads the graph that ONNX Runtime's environment has exported."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[kind],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(converted(path) / "plain.onnx"), "CPU", settings)

    def score(workload: Workload) -> list[float]:
        found = [0.0] * len(workload.documents)
        for places, ids, mask in batches(path, workload, 4):
            logits = model([ids, mask])[0]
            for place, logit in zip(places, logits[:, 0], strict=True):
                found[place] = float(logit)
        return found

    return score


def converted(path: Path) -> Path:
    return path.parent.parent / "converted" / path.name


def convert(path: Path) -> None:
    """Exports to ONNX, fuses the graph and quantizes it dynamically, as ONNX Runtime's own tools do."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from transformers import AutoModelForSequenceClassification

    folder = converted(path)
    if (folder / "int8.onnx").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    network = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    example = torch.full((2, 16), 5)
    axes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
    torch.onnx.export(
        network,
        (example, torch.ones_like(example)),
        str(folder / "plain.onnx"),
        input_names=list(axes),
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )
    heads, width = network.config.num_attention_heads, network.config.hidden_size
    large = sum(weight.nbytes for weight in network.parameters()) > 1.9e9
    del network
    fused = optimizer.optimize_model(
        str(folder / "plain.onnx"), model_type="bert", num_heads=heads, hidden_size=width
    )
    fused.save_model_to_file(str(folder / "fused.onnx"), use_external_data_format=large)
    del fused
    quantize_dynamic(
        str(folder / "fused.onnx"),
        str(folder / "int8.onnx"),
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
        extra_options={"DefaultTensorType": 1},  # onnx's FLOAT: the fused graph's types are not inferred
    )


def rerank_grpc(path: Path, threads: int, kind: str) -> Score:
    """The service's engine without its server."""
    import torch

    torch.set_num_threads(threads)
    from rerank_grpc.config.settings import ModelSpec, ServerSettings
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.types import Call

    settings = ServerSettings(device="cpu", precision=kind)
    loaded = ModelLoader(settings).load(ModelSpec("bench", str(path)), lambda hung: None)
    print(f"budget of {path.name} in {kind}: {loaded.engine.max_batch_tokens}", file=sys.stderr)

    def score(workload: Workload) -> list[float]:
        if workload.max_tokens > 512:
            room = 0
        else:  # the same cut as the others': query and document together
            room = workload.max_tokens - overhead(loaded.tokenizer, workload.query)
        request = request_of(workload.query, workload.documents, room)
        tokenized = loaded.tokenizer.tokenize(request)
        with loaded.engine.admit(Call()) as admission:
            future = admission.submit(tokenized.sequences)
            future.wait()
        return [
            workloads.logit_of(future.outputs[document.chunks[0].sequence])
            for document in tokenized.documents
        ]

    return score


def overhead(tokenizer: Any, query: str) -> int:
    """How many tokens of a pair are not the document's."""
    return len(tokenizer.tokenize(request_of(query, ["a"])).sequences[0]) - 1


def rerank_grpc_server(path: Path, threads: int, kind: str) -> Score:
    """The service over gRPC."""
    from rerank_grpc.client import Client

    port = free_port()
    start(
        *("-m", "rerank_grpc", "serve", "--model", f"bench={path}", "--device", "cpu", "--precision", kind),
        *("--port", str(port), "--admin-port", "off", "--rest-port", "off"),
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


def infinity_server(path: Path, threads: int, kind: str) -> Score:
    """Infinity's own server over HTTP."""
    port = free_port()
    start(
        *("-m", "infinity_emb.cli", "v2", "--model-id", str(path), "--engine", "torch", "--device", "cpu"),
        *("--dtype", {"bf16": "bfloat16", "fp32": "float32"}[kind], "--port", str(port)),
        *("--host", "127.0.0.1", "--no-bettertransformer", "--no-model-warmup", "--log-level", "error"),
        threads=threads,
    )
    wait_for(port)

    def score(workload: Workload) -> list[float]:
        body = {"query": workload.query, "documents": list(workload.documents), "raw_scores": True}
        results = post(port, {"model": path.name, **body})["results"]
        ordered = sorted(results, key=lambda result: result["index"])
        return [float(result["relevance_score"]) for result in ordered]

    return score


def cross_encoder_server(path: Path, threads: int, kind: str) -> Score:
    """The server that many write themselves: FastAPI and a CrossEncoder as it comes."""
    port = free_port()
    start("-c", CROSS_ENCODER_SERVER, str(path), str(port), str(threads), threads=threads)
    wait_for(port)
    return lambda workload: post(port, {"query": workload.query, "documents": list(workload.documents)})


def start(*arguments: str, threads: int) -> None:
    import atexit

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DO_NOT_TRACK": "1"}
    server = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=sys.stderr)
    atexit.register(server.terminate)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/rerank",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    with opener.open(request, timeout=600) as reply:
        return json.load(reply)


def product(path: Path, threads: int, kind: str) -> Score:
    """The plain product of the model's layers, alone: `seconds` for 1 GFLOP is its score."""
    import torch

    torch.set_num_threads(threads)
    config = json.loads((path / "config.json").read_text())
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    layers = []
    with torch.inference_mode():
        for inputs, outputs, times in ((hidden, hidden, 4), (hidden, wide, 1), (wide, hidden, 1)):
            rows, weight = torch.randn(2048, inputs), torch.randn(outputs, inputs) * 0.02
            flop = 2.0 * 2048 * inputs * outputs * times
            if kind == "int8":
                layers.append((flop, times, int8_product(rows, weight)))
            else:
                dtype = torch.bfloat16 if kind == "bf16" else torch.float32
                rows, weight = rows.to(dtype), weight.to(dtype)
                layers.append((flop, times, linear_of(rows, weight)))

    def score(workload: Workload) -> list[float]:
        seconds = 0.0
        with torch.inference_mode():
            for _, times, run in layers:
                run()
                taken = []
                for _ in range(7):
                    started = time.perf_counter()
                    run()
                    taken.append(time.perf_counter() - started)
                seconds += times * sorted(taken)[3]
        return [sum(flop for flop, _, _ in layers) / seconds]

    return score


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


def lengths(path: Path, workload: Workload) -> list[int]:
    """The tokens of each pair."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(workload.max_tokens, strategy="only_second")
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(workload.pairs)]


BUILDERS: dict[str, Callable[[Path, int, str], Score]] = {
    "crossencoder": cross_encoder,
    "crossencoder-server": cross_encoder_server,
    "infinity": infinity,
    "infinity-server": infinity_server,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "product": product,
    "rerank-grpc": rerank_grpc,
    "rerank-grpc-server": rerank_grpc_server,
}


def main(system: str, path: str, threads: str) -> None:
    # What libraries print goes to stderr: stdout is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, _, kind = system.rpartition(" ")
    if system == "convert":
        convert(Path(path))
        return
    score = BUILDERS[name](Path(path), int(threads), kind)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        workload = workloads.named(line.strip())
        started = time.perf_counter()
        scores = score(workload)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "scores": scores}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
