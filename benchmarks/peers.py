"""The peers: each from texts to logits, in an environment of its own (see environments.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.convert import batches, converted
from benchmarks.processes import free_port, post, start, wait_for
from benchmarks.workloads import Workload

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
        model.max_length = workload.max_tokens
        found = model.predict(
            workload.pairs, batch_size=32, activation_fn=torch.nn.Identity(), convert_to_tensor=True
        )
        return [float(value) for value in found]

    return score


def sentence_transformer(path: Path, threads: int, kind: str) -> Score:
    """sentence-transformers on a bi-encoder: the cosine of each document with the query."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    options = {"dtype": torch.bfloat16} if kind == "bf16" else {}
    model = SentenceTransformer(str(path), device="cpu", model_kwargs=options)

    def score(workload: Workload) -> list[float]:
        texts = [workload.query, *workload.documents]
        found = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True).float()
        return [float(value) for value in found[1:] @ found[0]]

    return score


def language_model(path: Path, threads: int, kind: str) -> Score:
    """The model card's code of Qwen3-Reranker, sorted by length, with the last logits only."""
    import torch

    from benchmarks.decoder import Theirs

    torch.set_num_threads(threads)
    theirs = Theirs(path, kind)
    return lambda workload: theirs.score(workload, 16, keep=1, by_length=True)


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
    """OpenVINO on the graph that ONNX Runtime's environment has exported, or on NNCF's int8 of it."""
    import openvino as ov

    core = ov.Core()
    settings = {
        # What int8 leaves in floating point is faster in bf16, and no less exact beside it.
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[kind],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    file = converted(path) / ("int8.xml" if kind == "int8" else "plain.onnx")
    model = core.compile_model(core.read_model(file), "CPU", settings)

    def score(workload: Workload) -> list[float]:
        found = [0.0] * len(workload.documents)
        for places, ids, mask in batches(path, workload, 4):
            logits = model([ids, mask])[0]
            for place, logit in zip(places, logits[:, 0], strict=True):
                found[place] = float(logit)
        return found

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


BUILDERS: dict[str, Callable[[Path, int, str], Score]] = {
    "crossencoder": cross_encoder,
    "crossencoder-server": cross_encoder_server,
    "infinity": infinity,
    "infinity-server": infinity_server,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "sentence-transformers": sentence_transformer,
    "transformers": language_model,
}
