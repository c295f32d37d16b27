"""How far lower precisions move logits, ours and the peers', on small checkpoints.

    python -m benchmarks.bounds

Errors are root mean squares of the difference to transformers in fp32, as shares of
its logits' standard deviation. tests/kernels/test_precision.py holds the service
to what this prints: bf16 to transformers' own, int8 to ONNX Runtime's dynamic.
The second table, of models of all kinds, takes the service's own fp32 for the
reference, which the tests hold to transformers', and adds what becomes of the order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import convert, environments, report

if TYPE_CHECKING:
    from rerank_grpc.cli.compare import Ranking

FAMILIES = ("bert", "roberta", "xlm_roberta")


def main() -> None:
    from tests import conftest
    from tests.kernels import test_precision
    from tests.models import test_parity

    texts, rows = test_precision.texts(), []
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            path = conftest.WRITERS[family](Path(folder) / "checkpoints" / family)
            expected = test_parity.reference(path, texts)
            found = {
                "transformers bf16": test_precision.reference_bf16(path),
                "rerank-grpc fp32": test_parity.score(conftest.load(path), texts),
                "rerank-grpc bf16": test_parity.score(conftest.load(path, precision="bf16"), texts),
                "rerank-grpc int8": test_parity.score(conftest.load(path, precision="int8"), texts),
            }
            errors = {name: test_precision.error(each, expected) for name, each in found.items()}
            errors["ONNX Runtime int8"] = in_onnxruntime(path, texts)
            rows.append([family, *(f"{value:.2g}" for value in errors.values())])
            header = ["family", *errors]
    print(report.table(header, rows))
    print(report.table(["model", "precision", "tau", "rms", "largest", "largest, absolute"], list(kinds())))


def kinds() -> Iterator[list[str]]:
    """Compares each kind of model in lower precisions with the same in fp32, through the whole service."""
    from rerank_grpc.cli.compare import Ranking, built_in_questions
    from tests import late_models, random_models
    from tests.kernels import test_precision
    from tests.models import test_bi_encoder, test_modernbert
    from tests.models.test_parity import QUERY

    random = [Ranking(QUERY, tuple(test_precision.texts()))]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = {
            "ModernBERT": test_modernbert.write(root / "modernbert", "cls"),
            "Qwen3-Reranker": random_models.qwen3_reranker(root / "qwen3"),
            "bi-encoder, BERT": test_bi_encoder.write(root / "bi-encoder", "bert", "mean"),
            "bi-encoder, XLM-RoBERTa": test_bi_encoder.write(root / "second" / "bi", "xlm_roberta", "cls"),
            "late interaction, BERT": late_models.native(root / "late"),
        }
        for name, path in sources.items():
            yield from precisions(name, str(path), random)
    yield from precisions("embedded, trained", "embedded", built_in_questions())


def precisions(name: str, source: str, questions: Sequence[Ranking]) -> Iterator[list[str]]:
    from rerank_grpc.cli.compare import compare
    from rerank_grpc.cli.verify import logits_in
    from rerank_grpc.config.settings import ServerSettings

    settings = ServerSettings(device="cpu")
    language, expected = logits_in("fp32", source, settings, questions)
    for precision in ("bf16", "int8", *(["int8-all"] if language else [])):
        _, logits = logits_in(precision, source, settings, questions)
        found = compare(expected, logits)
        pairs = [pair for both in zip(expected, logits, strict=True) for pair in zip(*both, strict=True)]
        moved = max(abs(a - b) for a, b in pairs)
        shares = f"{found.tau:.3f}", f"{found.rms:.2g}", f"{found.largest:.2g}"
        yield [name, precision, *shares, f"{moved:.2g}"]


def in_onnxruntime(path: Path, texts: list[str]) -> float:
    from tests.models.test_parity import QUERY

    (path / "texts.json").write_text(json.dumps([[QUERY, text] for text in texts]))
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [environments.python_of("onnxruntime"), "-m", "benchmarks.bounds", path],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    return float(found.stdout.split()[-1])


def measure(path: Path) -> float:
    """In ONNX Runtime's environment: its int8 against transformers' fp32, one pair at a time."""
    import onnxruntime
    import torch
    import transformers

    for form in convert.NEEDED["onnxruntime int8"]:
        convert.main(form, str(path))
    network = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    session = onnxruntime.InferenceSession(
        str(convert.converted(path) / "int8.onnx"), providers=["CPUExecutionProvider"]
    )
    found, expected = [], []
    for pair in json.loads((path / "texts.json").read_text()):
        ids: Any = tokenizer(*pair, truncation="only_second", max_length=128, return_tensors="pt")
        inputs = {"input_ids": ids["input_ids"], "attention_mask": torch.ones_like(ids["input_ids"])}
        (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        found.append(float(logits[0, 0]))
        with torch.inference_mode():
            expected.append(float(network(**inputs).logits[0, 0]))
    difference = torch.tensor(found) - torch.tensor(expected)
    return float(difference.square().mean().sqrt() / torch.tensor(expected).std())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(Path(sys.argv[1])))
    else:
        main()
