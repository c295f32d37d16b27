"""Where a model runs, and in which precision."""

from __future__ import annotations

import re

import torch

from rerank_grpc.errors import ModelLoadError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Makes "auto", "cpu", "cuda" or "cuda:N" a device of this machine, or raises ModelLoadError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise ModelLoadError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ModelLoadError(
            f"device {name!r}: torch finds no CUDA device: "
            "use cpu, or install the driver and a CUDA build of torch"
        )
    index = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise ModelLoadError(f"device {name!r}: this machine has {count}, so use cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def choose_precision(name: str, device: torch.device) -> str:
    """Makes "auto", "fp32", "bf16" or "fp16" a precision of `device`, or raises ModelLoadError."""
    if name != "auto" and name not in DTYPES:
        raise ModelLoadError(f"precision {name!r} is unknown: use auto, fp32, bf16 or fp16")
    if device.type == "cpu":
        if name == "fp16":
            raise ModelLoadError(
                "precision 'fp16' is ten times slower than others on the CPU: use fp32 or bf16"
            )
        return "fp32" if name == "auto" else name
    # bf16 came with compute capability 8; below, torch emulates it slowly.
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "bf16" and not capable:
        raise ModelLoadError(
            f"precision 'bf16' needs compute capability 8.0, which {device} lacks: use fp16 or fp32"
        )
    if name == "auto":
        return "bf16" if capable else "fp16"
    return name
