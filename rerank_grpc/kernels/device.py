"""Chooses the device of a model, and its precision."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence

import torch

from rerank_grpc.config.settings import PRECISIONS
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.library import allowed_levels
from rerank_grpc.kernels.native import kernels

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, dtype) for name, dtype in PRECISIONS.items()}
INT8 = ("int8", "int8-all")


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
    check_age(torch.cuda.get_device_capability(index), torch.cuda.get_arch_list(), f"cuda:{index}")
    return torch.device("cuda", index)


def check_age(capability: tuple[int, int], architectures: Sequence[str], device: str) -> None:
    """Raises ModelLoadError for a card older than all that torch was built for ("sm_80" …)."""
    built = [int(name[3:]) for name in architectures if re.fullmatch(r"sm_\d+", name)]
    oldest = min(built, default=0)
    if capability[0] * 10 + capability[1] < oldest:
        raise ModelLoadError(
            f"{device} has compute capability {capability[0]}.{capability[1]}, and this torch was built for "
            f"{oldest // 10}.{oldest % 10} and later: use cpu, or a torch that was built for the card"
        )


def fast_int8() -> bool:
    """Whether int8 products are exact and faster than fp32.

    They are by the kernels in C at any level, else by oneDNN with VNNI or AMX. Without these instructions
    oneDNN adds products in 16 bits, where some sums do not fit.
    """
    return kernels() is not None or onednn_int8()


def int8_by_features(allowed: str) -> bool:
    """Tells like `fast_int8` by what the processor has, and compiles and loads no kernels.

    `allowed` is the setting of kernels. Where these cannot be compiled, the other may tell otherwise.
    """
    return bool(allowed_levels(allowed)) or onednn_int8()


def onednn_int8() -> bool:
    """Whether oneDNN's int8 products are exact and faster than fp32."""
    return bool(torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(name: str, device: torch.device, *, has_int8: Callable[[], bool] = fast_int8) -> str:
    """Makes "auto" or a name of DTYPES a precision of `device`, or raises ModelLoadError.

    `has_int8` tells whether int8 is fast on this CPU.
    """
    if name != "auto" and name not in DTYPES:
        raise ModelLoadError(f"precision {name!r} is unknown: use auto, {', '.join(DTYPES)}")
    if device.type == "cpu":
        return _cpu_precision(name, has_int8)
    if name in INT8:
        raise ModelLoadError(f"precision {name!r} is for CPUs: use fp32, bf16 or fp16 on a GPU")
    # bf16 came with compute capability 8; below, torch emulates it slowly.
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "bf16" and not capable:
        raise ModelLoadError(
            f"precision 'bf16' needs compute capability 8.0, which {device} lacks: use fp16 or fp32"
        )
    if name == "auto":
        return "bf16" if capable else "fp16"
    return name


def _cpu_precision(name: str, has_int8: Callable[[], bool]) -> str:
    """int8 is never chosen for the operator: it changes scores more than bf16 does."""
    if name == "auto":
        return "bf16" if fast_bf16() else "fp32"
    if name == "fp16":
        raise ModelLoadError("precision 'fp16' is ten times slower than others on the CPU: use fp32 or bf16")
    if name == "bf16" and not runs_bf16():
        remedy = "int8 or fp32" if has_int8() else "fp32"
        raise ModelLoadError(
            "precision 'bf16' is several times slower than fp32 on this CPU, which has neither AVX-512 BF16 "
            f"nor AMX: use {remedy}"
        )
    if name in INT8 and not has_int8():
        raise ModelLoadError(
            f"precision {name!r} needs AVX-512 VNNI or AMX, which this CPU lacks, or the kernels in C, which "
            "do not run here (the log says why): use fp32"
        )
    return name


def runs_bf16() -> bool:
    """Whether the CPU is asked for bf16 at all: it multiplies bf16, in whatever time."""
    return fast_bf16() or _bf16_of_arm()


def _bf16_of_arm() -> bool:
    """Whether this is a CPU of Arm that multiplies bf16; auto does not take it: its speed is unknown."""
    return platform.machine() == "aarch64" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than fp32, and oneDNN may."""
    has_any = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has_any and torch.ops.mkldnn._is_mkldnn_bf16_supported())
