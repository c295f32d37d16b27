"""Own bodies are compared with transformers' layers at every load, whose answers are kept, or made aside."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rerank_grpc import kept
from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rerank_grpc.checkpoints.lookup import find_package
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.evidence import read_evidence
from rerank_grpc.evidence.facts import Evidence
from rerank_grpc.kernels.base import Layout
from rerank_grpc.models import reference
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.borrowed import selfcheck
from rerank_grpc.models.borrowed.selfcheck import make_answers
from rerank_grpc.models.reference import BOUND, ROUNDING, Agreement, ReferenceAnswers, aside, check_own
from tests import late_models
from tests import random_models as checkpoints
from tests.command import environment
from tests.conftest import load
from tests.models import test_bi_encoder, test_modernbert

# Far below the bound: that which honest passes must keep, so that the bound is no close call.
HONEST = BOUND / 20
WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": checkpoints.bert,
    "roberta": checkpoints.roberta,
    "xlm_roberta": checkpoints.xlm_roberta,
    "bi-encoder": lambda path: test_bi_encoder.write(path, "bert", "mean"),
    "late": late_models.stanford,
    "modernbert": lambda path: test_modernbert.write(path, "mean"),
    "qwen3": checkpoints.qwen3_reranker,
    "qwen3 bf16": lambda path: in_bf16(checkpoints.qwen3_reranker(path)),
    "qwen3 untied": lambda path: checkpoints.qwen3_reranker(path, tie_word_embeddings=False),
}


def in_bf16(path: Path) -> Path:
    file = path / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return path


class Case(NamedTuple):
    """A model around an own body, and what it was made of."""

    model: Any
    checkpoint: Checkpoint
    evidence: Evidence

    def check(self) -> Agreement:
        return check_own(self.model, self.checkpoint, self.evidence)

    def answers(self) -> ReferenceAnswers:
        return make_answers(self.checkpoint, self.evidence, self.model.card)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("own")
    return {name: write(root / name) for name, write in WRITERS.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's answers are kept."""
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "kept")
    return tmp_path / "kept" / "references"


def case(path: Path, precision: str = "fp32") -> Case:
    model: Any = load(path, precision=precision)
    assert isinstance(model.body, OwnBody)
    checkpoint = open_checkpoint(str(path), path, builtin().find(path.name))
    return Case(model, checkpoint, read_evidence(checkpoint))


@pytest.mark.parametrize("name", WRITERS)
def test_answers_of_streamed_layers_are_those_of_the_network_with_its_weights(
    name: str, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = case(paths[name])
    streamed = own.answers()

    def fail(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr(selfcheck, "_stored", fail)  # as for files that are not plain
    whole = own.answers()
    assert torch.allclose(streamed.rows, whole.rows, rtol=1e-5, atol=1e-5)
    assert streamed.rows.std() > 0.05
    if whole.logits is None:
        assert streamed.logits is None
    else:
        assert streamed.logits is not None
        assert torch.allclose(streamed.logits, whole.logits, rtol=1e-4, atol=1e-4)
        assert whole.logits.std() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", WRITERS)
def test_an_own_body_agrees(name: str, precision: str, paths: dict[str, Path]) -> None:
    found = case(paths[name], precision).check()
    assert found.agrees
    assert found.difference < {"fp32": HONEST}.get(precision, 0.8 * ROUNDING[precision])


def scaled(head: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return 1.01 * head(rows)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("fault", ["leak", "places", "segments", "head", "scaled"])
def test_faults_of_an_own_body_are_found(fault: str, precision: str, paths: dict[str, Path]) -> None:
    own = case(paths["bert"], precision)
    model, honest = own.model, own.model.body
    if fault == "head":
        model.head = partial(scaled, model.head)
    elif fault == "scaled":
        model.body = lambda packed: 2 * honest(packed)
    elif fault == "leak":
        model.body = lambda packed: honest(leaked(packed))[[0, 0]]
    else:
        name = {"places": "position_ids", "segments": "token_type_ids"}[fault]
        change: Any = {"places": lambda ids: ids + 1, "segments": torch.zeros_like}[fault]
        model.body = lambda packed: honest(replace(packed, **{name: change(getattr(packed, name))}))
    assert not own.check().agrees


def leaked(packed: Any) -> Any:
    """All tokens of a pass as one sequence."""
    return replace(packed, layout=Layout.of((sum(packed.layout.lengths),)))


def test_no_more_than_the_weights_of_the_module_that_runs_are_in_memory(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    honest = torch.nn.Linear.forward

    def counting(module: torch.nn.Linear, rows: Tensor) -> Tensor:
        most.append(sum(not weight.is_meta for weight in networks[0].parameters()))
        return honest(module, rows)

    networks: list[Any] = []
    auto: Any = transformers.AutoModelForSequenceClassification
    make = auto.from_config

    def noticed(*given: Any, **options: Any) -> Any:
        networks.append(make(*given, **options))
        return networks[-1]

    monkeypatch.setattr(auto, "from_config", noticed)
    own = case(paths["bert"])
    networks.clear()
    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    own.answers()
    assert max(most) == 2, "a weight and its bias"


# ---------------- What is kept


def never(*_: object, **__: object) -> Any:
    raise AssertionError("the answers are made anew")


def test_a_second_load_finds_the_answers_and_compares_its_own_pass(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = case(paths["bert"])
    monkeypatch.setattr(reference, "aside", never)
    assert own.check().agrees
    assert case(paths["bert"], "bf16").check().agrees
    own.model.head = partial(scaled, own.model.head)
    with pytest.raises(AssertionError, match="made anew"):
        own.check()


OTHER_FORMS: list[dict[str, Any]] = [
    {"ids": [[], []]},
    {"ids": [[1, 2]]},
    {"ids": [[10**9] * 11, [5] * 24]},
    {"rows": [["a"], ["b"]]},
    {"rows": [[1.0], [1.0, 2.0]]},
    {"types": 1},
    {"rows": None},
    {"logits": None},
]


def test_kept_answers_of_another_form_count_as_absent(paths: dict[str, Path], folder: Path) -> None:
    own = case(paths["bert"])
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    found = json.loads(whole)
    for change in OTHER_FORMS:
        value = {name: each for name, each in (found["value"] | change).items() if each is not None}
        kept.Kept("references").write(found["key"], value)
        assert file.read_bytes() != whole
        assert own.check().agrees
        assert file.read_bytes() == whole, change


def test_another_version_of_this_package_asks_again(
    paths: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = case(paths["bert"])
    monkeypatch.setattr(reference, "__version__", "another")
    assert own.check().agrees
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "of another form"])
def test_damaged_answers_are_ignored_and_written_anew(
    damage: str, paths: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = case(paths["bert"])
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    content = json.loads(whole)
    content["value"]["ids"][0][0] = 10**9
    text = {"cut": whole[:-9], "changed": json.dumps(content).encode(), "of another form": b"[]"}[damage]
    file.write_bytes(text)
    assert own.check().agrees
    assert file.read_bytes() == whole


def test_answers_of_other_weights_are_not_used(paths: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    case(paths["bert"])
    (first,) = folder.iterdir()
    path = checkpoints.bert(tmp_path / "other")
    file = path / "model.safetensors"
    weights = {name: 1.5 * weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    other = case(path)
    (second,) = set(folder.iterdir()) - {first}
    # Even under its own name: as where weights differ that no digest has read.
    found = json.loads(second.read_bytes())
    kept.Kept("references").write(found["key"], json.loads(first.read_bytes())["value"])
    assert second.read_bytes() != json.dumps(found).encode()
    assert other.check().agrees
    assert json.loads(second.read_bytes())["value"] == found["value"]


def test_answers_that_a_body_does_not_give_are_not_kept(paths: dict[str, Path], folder: Path) -> None:
    own = case(paths["bert"])
    for file in folder.iterdir():
        file.unlink()
    own.model.head = partial(scaled, own.model.head)
    assert not own.check().agrees
    assert list(folder.iterdir()) == []


def test_a_home_that_cannot_be_written_to_costs_time_only(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "file")
    assert case(paths["bert"]).check().agrees


# ---------------- Scores that are not finite, and files that transformers cannot run


def test_scores_of_transformers_that_are_not_finite_name_the_config_and_the_weights(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(paths["bert"], tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"].fill_(3e38)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"own scores are not finite: check config\.json, or copy the w"):
        load(path)


def test_where_an_own_body_alone_is_not_finite_transformers_runs(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = OwnBody.__call__
    monkeypatch.setattr(OwnBody, "__call__", lambda self, packed: honest(self, packed) * math.inf)
    borrowed: Any = load(paths["bert"])
    assert not isinstance(getattr(borrowed, "body", None), OwnBody)
    assert "runs in transformers' own body: the own one gives what is not finite" in caplog.text
    with pytest.raises(ModelLoadError, match=r"to what is not finite: use auto, bf16 or fp32"):
        load(paths["bert"], precision="int8")


def test_files_that_transformers_cannot_run_are_refused_in_one_line(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    own, path = case(paths["bert"]), checkpoints.bert(tmp_path / "short", max_position_embeddings=8)
    short = open_checkpoint(str(path), path, builtin().find(path.name))
    with pytest.raises(
        ModelLoadError, match=r"short: transformers cannot run it \(\w+: .*check conf"
    ) as found:
        make_answers(short, own.evidence, own.model.card)
    assert "\n" not in str(found.value)


# ---------------- The other process


@pytest.mark.timeout(4 * reference.SECONDS)  # as many processes, most of which import transformers
def test_another_process_gives_the_answers_and_the_errors(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = case(paths["qwen3"])
    here = own.answers()
    monkeypatch.delitem(sys.modules, "transformers")
    there = aside(reference._make, *own[1:], own.model.card)
    assert torch.allclose(here.rows, there.rows, rtol=1e-5, atol=1e-5)
    assert here.probes[1].ids.tolist() == there.probes[1].ids.tolist()
    gone = replace(own.checkpoint, directory=own.checkpoint.directory / "gone", weights=())
    with pytest.raises(ModelLoadError, match="gone: transformers cannot load it") as caught:
        aside(reference._make, gone, own.evidence, own.model.card)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelLoadError, match=r"ended with status 3: load it again"):
        aside(os._exit, 3)
    with pytest.raises(ModelLoadError, match=r"ended with status -9: free some memory, and load it again"):
        aside(signal.raise_signal, signal.SIGKILL)


@pytest.fixture
def beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Gives new processes code that they run before their program, as an installed package may."""
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)

    return write


def test_text_that_another_process_prints_is_no_part_of_its_answer(beginning: Callable[[str], None]) -> None:
    beginning("print('hello')")
    assert aside(divmod, 7, 2) == (3, 1)


def test_another_process_needs_no_place_to_write_to(
    beginning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning("")
    monkeypatch.setattr(tempfile, "tempdir", "/missing")
    assert aside(divmod, 7, 2) == (3, 1)


def test_a_process_that_ends_without_an_answer_is_an_error_of_the_load(
    beginning: Callable[[str], None],
) -> None:
    beginning("import os; os._exit(0)")
    with pytest.raises(ModelLoadError, match=r"no answer of a process .* \(EOFError\): free some memory"):
        aside(divmod, 7, 2)


def test_a_process_that_hangs_is_given_up(beginning: Callable[[str], None]) -> None:
    beginning("import os, time; os.write(2, b'first\\nwaits\\n'); time.sleep(60)")
    with pytest.raises(ModelLoadError, match=r"took more than 8 s \(waits\): load it again when"):
        aside(divmod, 7, 2, seconds=8)


SLOW = """
import time
pipe = open({pipe!r}, "w", buffering=1)
print("importing", file=pipe)
time.sleep(20)
print("outlived", file=pipe)
"""
STARTER = "import os, subprocess, sys; subprocess.run([*sys.argv[1:5], str(os.getpid()), '0', *sys.argv[5:]])"


def test_another_process_ends_with_its_parent_even_while_it_imports(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "torch.py").write_text(SLOW.format(pipe=str(pipe)))
    command = [sys.executable, "-P", "-c", reference.PROGRAM, str(tmp_path), *sys.path]
    with subprocess.Popen([sys.executable, "-c", STARTER, *command]) as parent, pipe.open() as said:
        assert said.readline() == "importing\n"
        parent.kill()
        assert said.read() == ""


SERVER = """
import json, os, sys
from pathlib import Path
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.server.server import RerankServer

spec = ModelSpec("model", sys.argv[1])
engine = EngineSettings(max_batch_tokens=512)
settings = ServerSettings(
    models=(spec,), port=0, admin_port=None, device="cpu", precision="fp32", engine=engine
)
server = RerankServer(settings)
server.start()
server.wait_until_loaded()
heavy = {"transformers", "torch._dynamo", "sympy", "scipy"} & set(sys.modules)
print(json.dumps({"state": server.registry.models()[0].state.name, "heavy": sorted(heavy)}), flush=True)
os._exit(0)
"""


def started(source: str, home: Path) -> dict[str, Any]:
    """Starts a server in a process of its own; returns the model's state, and what of weight is imported."""
    done = subprocess.run(
        [sys.executable, "-c", SERVER, source],
        env=environment(HOME=str(home)),
        capture_output=True,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("source", ["embedded", "bert"])
def test_no_start_imports_transformers_and_a_second_one_asks_no_other_process(
    source: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    if source == "embedded" and find_package() is None:
        pytest.skip("not installed")
    model = str(paths.get(source, source))
    first = started(model, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    second = started(model, tmp_path)
    assert first == second == {"state": "READY", "heavy": []}
    assert {path.parent.name for path in files} >= {"references", "tokenizers"}
    kinds = ("references", "tokenizers")
    kept_now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert {path: time for path, time in files.items() if path.parent.name in kinds} == {
        path: time for path, time in kept_now.items() if path.parent.name in kinds
    }
