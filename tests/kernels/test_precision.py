"""Lower precisions stay within the bounds that docs/precision.md publishes, with and without the kernels."""

from __future__ import annotations

import functools
import logging
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.checkpoints.lookup import find_package
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels import cpu, device, library
from rerank_grpc.kernels.levels import LEVELS
from rerank_grpc.models.base import Model
from tests import random_models as checkpoints
from tests.conftest import load
from tests.kernels.at_level import EXACT_INT8, HERE, NAMES, kernels_at
from tests.models.test_parity import QUERY, documents, pack, reference, score
from tests.support import token_ids
from tests.texts import tokenized

FAMILIES = ("bert", "roberta", "xlm_roberta")
CPU = torch.device("cpu")
EMBEDDED = open_checkpoint("embedded", Path(str(find_package())))

has_bf16 = pytest.mark.skipif(not device.fast_bf16(), reason="the CPU has no bf16")
has_int8 = pytest.mark.skipif(not device.fast_int8(), reason="the CPU has no int8")


@pytest.fixture(params=[*NAMES, "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Computes with the kernels in C at each level, then with torch's operations alone."""
    if request.param == "torch":
        if not EXACT_INT8:
            pytest.skip("torch's own int8 products overflow on this processor, and the product uses none")
        monkeypatch.setattr(cpu, "kernels", lambda: None)
    else:
        kernels_at(request.param, monkeypatch)
    return str(request.param)


def texts() -> list[str]:
    """Many more than documents(), so that an error's size is not that of one text."""
    joined = " ".join(checkpoints.texts()[300:600])
    return documents() + [joined[311 * place : 311 * place + 40 + 6 * place] for place in range(80)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root of the mean square difference, as a share of the reference's standard deviation."""
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.fixture(scope="module")
def references(directories: dict[str, Path]) -> dict[str, torch.Tensor]:
    return {family: reference(directories[family], texts()) for family in FAMILIES}


@functools.cache
def reference_bf16(directory: Path) -> torch.Tensor:
    """Transformers' own logits in bf16, one text at a time."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    settings = {"truncation": "only_second", "max_length": checkpoints.MAX_TOKENS, "return_tensors": "pt"}
    with torch.inference_mode():
        return torch.cat(
            [network.eval()(**tokenizer(QUERY, text, **settings)).logits[0] for text in texts()]
        ).float()


@has_bf16
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_no_worse_than_transformers_own(
    family: str, path: str, directories: dict[str, Path], references: dict[str, torch.Tensor]
) -> None:
    theirs = error(reference_bf16(directories[family]), references[family])
    ours = error(score(load(directories[family], precision="bf16"), texts()), references[family])
    assert 1e-3 < ours <= 1.2 * theirs


# ONNX Runtime's dynamic int8 on the same checkpoints and texts: benchmarks/bounds.py measures it.
INT8_BOUNDS = {"bert": 0.22, "roberta": 0.30, "xlm_roberta": 0.28}


@has_int8
def test_int8_is_no_worse_than_onnxruntimes(
    path: str, directories: dict[str, Path], references: dict[str, torch.Tensor]
) -> None:
    """On the mean of the families, because one error is one draw."""
    shares = []
    for family in FAMILIES:
        model = load(directories[family], precision="int8")
        assert model.card.precision == "int8"
        found = error(score(model, texts()), references[family])
        assert found > 1e-3
        shares.append(found / INT8_BOUNDS[family])
    assert sum(shares) / len(shares) <= 1.0


@has_int8
@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("int8", 0.99)])
def test_the_embedded_models_order_is_kept(precision: str, least: float, path: str) -> None:
    """Spearman's rank correlation with fp32 over real pairs."""
    cosines = [fp32_cosines(), pair_cosines(load("embedded", precision=precision))]
    assert len(cosines[0]) >= 200
    ranks = [values.argsort().argsort().double() for values in cosines]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] >= least


def pair_cosines(model: Model) -> torch.Tensor:
    """The cosines of four queries with sixty texts, each text run once  # [240]"""
    queries = ["how does a coroutine wait?", "what is a class?", "sequence slicing", "where are names bound?"]
    request = tokenized(model.card, queries[0], [text[:800] for text in checkpoints.texts()[:60]])
    others = [tokenized(model.card, query, ["any"]).sequences[0] for query in queries[1:]]
    sequences = [*request.sequences, *others]
    vectors = model.forward(pack([(token_ids(each), 0) for each in sequences]))
    documents = vectors[[document.chunks[0].sequence for document in request.documents]]
    asked = vectors[[0, *range(len(request.sequences), len(sequences))]]
    return (asked @ documents.T).flatten()


@functools.cache
def fp32_cosines() -> torch.Tensor:
    return pair_cosines(load("embedded", precision="fp32"))


@has_int8
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_sequence_scores_the_same_alone_and_among_others(
    precision: str, path: str, directories: dict[str, Path]
) -> None:
    model = load(directories["bert"], precision=precision)
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 128, 2, 3, 127, 64, 17, 4, 100, 8, 33, 126, 1]
    sequences = [(torch.randint(10, 1_000, (n,), generator=generator).tolist(), n // 2) for n in lengths]
    together = model.forward(pack(sequences))
    alone = torch.cat([model.forward(pack([sequence])) for sequence in sequences])
    assert float((alone - together).abs().max() / together.std()) <= 0.02


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 on this processor"
)
def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert device.choose_precision("auto", CPU) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert device.choose_precision("auto", CPU) == "fp32"
    with pytest.raises(ModelLoadError, match="for CPUs: use fp32, bf16 or fp16"):
        device.choose_precision("int8", torch.device("cuda", 0))


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the processor for one with AVX2 and no more."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


def test_bf16_that_is_slower_than_fp32_is_refused(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "kernels", lambda: None)
    slower = "'bf16' is several times slower than fp32 on this CPU, .* use"
    with pytest.raises(ModelLoadError, match=f"{slower} fp32"):
        device.choose_precision("bf16", CPU)
    monkeypatch.setattr(device, "kernels", lambda: "some")
    with pytest.raises(ModelLoadError, match=f"{slower} int8 or fp32"):
        device.choose_precision("bf16", CPU)


def test_int8_may_be_told_by_the_processor_alone(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(library, "processor_features", lambda: LEVELS[-1].needs)
    assert device.int8_by_features("auto")
    assert device.int8_by_features("amx")  # of which the processor takes what it has
    assert not device.int8_by_features("none")
    monkeypatch.setattr(library, "processor_features", frozenset)
    assert not device.int8_by_features("auto")


@pytest.mark.parametrize("precision", device.INT8)
def test_int8_without_vnni_needs_the_kernels(
    precision: str, plain_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "kernels", lambda: None)
    needs = "needs AVX-512 VNNI or AMX, which this CPU lacks, or the kernels in C, which do not run here"
    with pytest.raises(ModelLoadError, match=f"{needs}.*: use fp32"):
        device.choose_precision(precision, CPU)
    monkeypatch.setattr(device, "kernels", lambda: "some")
    assert device.choose_precision(precision, CPU) == precision


@pytest.mark.skipif(not HERE, reason="the processor has no level")
def test_where_bf16_is_slow_products_that_are_not_int8_are_those_of_fp32(
    plain_cpu: None, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels_at(HERE[-1].name, monkeypatch)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = cpu.cpu_operations("int8").linear(weight, None, exact=True)(rows)
    assert torch.equal(found, torch.nn.functional.linear(rows.float(), weight).bfloat16())
    model = load(directories["bert"], precision="int8")
    assert model.card.attention_label == f"packed (kernels {HERE[-1].name})"
    expected = reference(directories["bert"], texts())
    assert error(score(model, texts()), expected) <= INT8_BOUNDS["bert"]


@has_int8
@pytest.mark.parametrize("precision", ["int8", "int8-all"])
def test_int8_is_refused_for_a_model_that_cannot(precision: str, directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match=f"precision '{precision}' is for .*: use auto, bf16 or fp32"):
        load(directories["deberta"], precision=precision)


@has_int8
def test_int8_that_moves_the_outputs_too_far_is_refused(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LEVELS", 3)
    with pytest.raises(ModelLoadError, match=r"moves outputs by .*: use auto, bf16 or fp32"):
        load(directories["bert"], precision="int8")


def test_a_product_that_is_exact_is_int8_only_where_all_are_to_be() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    exact = {name: cpu.cpu_operations(name).linear(weight, None, exact=True) for name in device.INT8}
    assert [isinstance(each, cpu.Corrected) for each in exact.values()] == [False, True]
    assert isinstance(cpu.cpu_operations("int8").linear(weight, None), cpu.Corrected)


@has_int8
def test_what_rounding_adds_to_all_rows_alike_is_taken_off(path: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(128, 64, generator=generator), torch.randn(128, generator=generator)
    rows = (torch.randn(200, 64, generator=generator) + 2 * torch.randn(64, generator=generator)).bfloat16()
    product = cpu.cpu_operations("int8").linear(weight, bias)
    exact = torch.nn.functional.linear(rows.float(), weight, bias)
    product(rows[:100])  # those that it learns from
    found = product(rows[100:]).float() - exact[100:]
    rounded = cpu.cpu_operations("int8").linear(weight, bias)
    rounded(torch.zeros_like(rows))  # learns nothing
    plain = rounded(rows[100:]).float() - exact[100:]
    assert found.mean(dim=0).square().mean() <= 0.25 * plain.mean(dim=0).square().mean()


@has_int8
def test_a_correction_does_not_change_with_what_is_scored(path: str, directories: dict[str, Path]) -> None:
    model = load(directories["bert"], precision="int8")
    first = score(model, texts()[:8])
    score(model, texts()[8:])
    torch.testing.assert_close(score(model, texts()[:8]), first, rtol=0, atol=0)


@has_bf16
def test_a_shape_that_the_kernels_do_not_take_is_logged_and_scores_right(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rerank_grpc")
    source = checkpoints.bert(tmp_path, hidden_size=72, num_attention_heads=3, intermediate_size=100)
    found, expected = score(load(source, precision="bf16"), texts()), reference(source, texts())
    told = "attention, norms and gates of this shape are computed by torch's operations, slower"
    assert (told in caplog.text) == (path != "torch")
    assert error(found, expected) <= 1.2 * error(reference_bf16(source), expected)


MEASURE = """
import sys
from pathlib import Path
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.registry.loading import ModelLoader

def kib(name: str) -> int:
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1])

def load(source):
    return ModelLoader(ServerSettings(device="cpu", precision=sys.argv[3])).read_model(source)

load(sys.argv[1])
before = kib("VmRSS")
model = load(sys.argv[2])
print(kib("VmHWM") - before, kib("VmRSS") - before)
"""


@has_bf16
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_one_weight_twice_and_no_more(directories: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoints.xlm_roberta(
        tmp_path,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        vocab_size=60_000,
        initializer_range=0.02,  # the check at load bounds rounding, which wide weights amplify
    )
    size = (path / "model.safetensors").stat().st_size / 1024
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directories["bert"]), str(path), "bf16"],
        check=True,
        capture_output=True,
        text=True,
    )
    peak, steady = map(int, found.stdout.split())
    assert peak <= 1.6 * size
    assert steady <= 1.25 * size / 2
