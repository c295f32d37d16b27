"""Checkpoints in the forms that ONNX Runtime and OpenVINO read, each made by that runtime's own tools.

    PYTHON -m benchmarks.convert onnx|fused|int8|openvino CHECKPOINT

    onnx      plain.onnx: exported from transformers, for both
    fused     fused.onnx: ONNX Runtime's own fusions
    int8      int8.onnx: that, with dynamic quantization
    openvino  int8.xml: NNCF's post-training quantization of weights and activations, calibrated on
              passages that no workload has

PYTHON is the interpreter of a peer's environment, see `environment_of`. A form
that is there already is left alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import environments, workloads
from benchmarks.environments import Unavailable
from benchmarks.workloads import Workload

FILES = {"onnx": "plain.onnx", "fused": "fused.onnx", "int8": "int8.onnx", "openvino": "int8.xml"}
# The forms that a system needs, in the order in which they are made.
NEEDED = {
    "onnxruntime fp32": ("onnx", "fused"),
    "onnxruntime int8": ("onnx", "fused", "int8"),
    "openvino fp32": ("onnx",),
    "openvino bf16": ("onnx",),
    "openvino int8": ("onnx", "openvino"),
}
CALIBRATION_BATCHES = 8


def environment_of(form: str) -> str:
    """The peer in whose environment a form is made."""
    return "openvino" if form == "openvino" else "onnxruntime"


def converted(path: Path) -> Path:
    """Where the forms of a checkpoint lie."""
    return path.parent.parent / "converted" / path.name


def stamp(path: Path, form: str) -> Path:
    """A file that says that a form is whole."""
    return converted(path) / f"{form}.made"


def provide(system: str, path: Path) -> None:
    """Makes the forms that a system needs and that are missing; raises Unavailable."""
    root = Path(__file__).parent.parent
    for form in NEEDED.get(system, ()):
        if stamp(path, form).is_file():
            continue
        print(f"converting {path.name}: {FILES[form]}", file=sys.stderr, flush=True)
        python = environments.python_of(environment_of(form))
        command: list[str | Path] = [python, "-m", "benchmarks.convert", form, path]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"{FILES[form]} of {path.name} could not be made: {last[:200]}")


def onnx(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

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


def fused(path: Path, folder: Path) -> None:
    from onnxruntime.transformers import optimizer
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    heads, width = config.num_attention_heads, config.hidden_size
    graph = optimizer.optimize_model(
        str(folder / "plain.onnx"), model_type="bert", num_heads=heads, hidden_size=width
    )
    graph.save_model_to_file(str(folder / "fused.onnx"), use_external_data_format=is_large(path))


def int8(path: Path, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(folder / "fused.onnx"),
        str(folder / "int8.onnx"),
        weight_type=QuantType.QInt8,
        use_external_data_format=is_large(path),
        extra_options={"DefaultTensorType": 1},  # onnx's FLOAT: the fused graph's types are not inferred
    )


def is_large(path: Path) -> bool:
    """Whether one file of the format cannot hold the weights."""
    return (path / "model.safetensors").stat().st_size > 1.9e9


def openvino(path: Path, folder: Path) -> None:
    import nncf
    import openvino as ov

    graph = ov.Core().read_model(folder / "plain.onnx")
    names = [port.get_any_name() for port in graph.inputs]
    texts = workloads.passages(4 * CALIBRATION_BATCHES, seed=21)
    samples = [dict(zip(names, (ids, mask), strict=True)) for _, ids, mask in batches(path, texts, 4)]
    # fp16 weights of what stays in floating point would be rounded once more.
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    ov.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


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


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "onnx": onnx,
    "fused": fused,
    "int8": int8,
    "openvino": openvino,
}


def main(form: str, name: str) -> None:
    path = Path(name)
    converted(path).mkdir(parents=True, exist_ok=True)
    MAKERS[form](path, converted(path))
    stamp(path, form).touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
