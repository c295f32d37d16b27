"""The systems that benchmarks/cpu.py compares on what, each with the peer whose environment it runs in."""

from __future__ import annotations

OURS = ("rerank-grpc", "rerank-grpc-embedded", "rerank-grpc-server")

PEERS = {
    "product": "",
    "rerank-grpc": "",
    "rerank-grpc-embedded": "",
    "rerank-grpc-server": "",
    "crossencoder": "crossencoder",
    "crossencoder-server": "crossencoder",
    "sentence-transformers": "crossencoder",
    "transformers": "crossencoder",
    "infinity": "infinity",
    "infinity-server": "infinity",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
NAMES = {
    "product": "plain matrix product",
    "rerank-grpc": "rerank-grpc",
    "rerank-grpc-embedded": "rerank-grpc, embedded",
    "rerank-grpc-server": "rerank-grpc, over gRPC",
    "crossencoder": "sentence-transformers CrossEncoder",
    "crossencoder-server": "FastAPI + CrossEncoder, over HTTP",
    "sentence-transformers": "sentence-transformers",
    "transformers": "transformers, sorted, last logits",
    "infinity": "Infinity",
    "infinity-server": "Infinity, over HTTP",
    "onnxruntime": "ONNX Runtime, fused graph, sorted",
    "openvino": "OpenVINO, sorted",
}
# What scores are compared with: transformers in fp32, by what a sequence is of a shape.
REFERENCES = {
    "pairs": "crossencoder fp32",
    "prompt": "transformers fp32",
    "texts": "sentence-transformers fp32",
}


def each(name: str, *kinds: str) -> tuple[str, ...]:
    """A system in several precisions."""
    return tuple(f"{name} {kind}" for kind in kinds)


BF16_INT8 = each("product", "bf16", "int8") + each("rerank-grpc", "bf16", "int8")
ALL_OURS = each("product", "fp32", "bf16", "int8") + each("rerank-grpc", "fp32", "bf16", "int8")
# Infinity takes the model's whole length and has no setting for less.
CUT = (*each("onnxruntime", "int8"), *each("openvino", "bf16", "int8"))
BI_ENCODERS = ("rerank-grpc", "rerank-grpc-embedded")
PADDED = (*each("crossencoder", "fp32", "bf16"), "infinity bf16", *CUT)

# In the order of what they are worth; each with the systems that take turns.
CASES: dict[str, tuple[str, ...]] = {
    "modernbert/W2": ALL_OURS + PADDED,
    "base/W2": (*ALL_OURS, *PADDED, "openvino fp32", "onnxruntime fp32"),
    "qwen3-0.6b/W2": (*BF16_INT8, "transformers bf16"),
    "base/W3": BF16_INT8 + CUT,
    "embedded/W2": (
        *each("product", "fp32", "bf16", "int8"),
        # One after the other, because they are compared with each other.
        *(f"{name} {kind}" for kind in ("fp32", "bf16", "int8") for name in BI_ENCODERS),
        *each("sentence-transformers", "fp32", "bf16"),
    ),
    "modernbert/W1": ALL_OURS + PADDED,
    "modernbert/W3": BF16_INT8 + CUT,
    "qwen3-0.6b/W1": (*BF16_INT8, "transformers bf16"),
    "v2-m3/W3@1500": BF16_INT8,
    "modernbert-large/W2": BF16_INT8,
    "v2-m3/W2": (*BF16_INT8, *CUT),
    "base/W1": ALL_OURS + PADDED,
    "base/W2 server": (
        *each("product", "bf16", "int8"),
        *each("rerank-grpc-server", "bf16", "int8"),
        "infinity-server bf16",
        "crossencoder-server fp32",
    ),
    "v2-m3/W3@8192": BF16_INT8,
}
# For trying the script: no figure of them means anything, and no page shows them.
TRIALS: dict[str, tuple[str, ...]] = {
    f"{shape}/W1": ("product fp32", "rerank-grpc fp32") for shape in ("tiny", "tiny-modernbert", "tiny-qwen3")
}
