"""The systems that benchmarks/cpu.py compares on what, each with the peer whose environment it runs in."""

from __future__ import annotations

OURS = ("rerank-grpc", "rerank-grpc-server")

DIRECT = {
    "product fp32": "",
    "product bf16": "",
    "product int8": "",
    "rerank-grpc fp32": "",
    "rerank-grpc bf16": "",
    "rerank-grpc int8": "",
    "crossencoder fp32": "crossencoder",
    "crossencoder bf16": "crossencoder",
    "infinity fp32": "infinity",
    "infinity bf16": "infinity",
    "onnxruntime fp32": "onnxruntime",
    "onnxruntime int8": "onnxruntime",
    "openvino fp32": "openvino",
    "openvino bf16": "openvino",
}
SERVERS = {
    "product bf16": "",
    "rerank-grpc-server bf16": "",
    "rerank-grpc-server int8": "",
    "infinity-server fp32": "infinity",
    "infinity-server bf16": "infinity",
    "crossencoder-server fp32": "crossencoder",
}
LONG = {"product bf16": "", "product int8": "", "rerank-grpc bf16": "", "rerank-grpc int8": ""}
# Infinity takes the model's whole length and has no setting for less.
CUT = {name: peer for name, peer in DIRECT.items() if peer != "infinity"}

CASES = {
    "base/W2": DIRECT,
    "base/W2 server": SERVERS,
    "base/W1": DIRECT,
    "base/W3": DIRECT,
    "v2-m3/W2": DIRECT,
    "v2-m3/W1": DIRECT,
    "v2-m3/W3": CUT,
    "v2-m3/W3@8192": LONG,
}
NAMES = {
    "product": "plain matrix product",
    "rerank-grpc": "rerank-grpc",
    "rerank-grpc-server": "rerank-grpc, over gRPC",
    "crossencoder": "sentence-transformers CrossEncoder",
    "crossencoder-server": "FastAPI + CrossEncoder, over HTTP",
    "infinity": "Infinity",
    "infinity-server": "Infinity, over HTTP",
    "onnxruntime": "ONNX Runtime, fused graph, sorted",
    "openvino": "OpenVINO, sorted",
}
