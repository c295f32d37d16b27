"""Compares an own body with transformers' layers, whose answers are made in another process and kept."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from rerank_grpc import __version__
from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Chain, Evidence
from rerank_grpc.kept import Kept, Key
from rerank_grpc.kernels.base import KeysValues, Layout
from rerank_grpc.kernels.causal import key_ranges
from rerank_grpc.models.assembly import Encoder, rows_of
from rerank_grpc.models.base import Model, ModelCard, PackedTokens
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.encoders import CrossEncoder
from rerank_grpc.models.heads import AnswerHead

Answer = TypeVar("Answer")
RECIPE = 2  # goes up when answers are made in another way, so that older ones are not used
# The greatest difference of a logit or of a vector, for each 1 of it. Sums of float32 in another order
# differ by 1e-5; a mask, a scale or a position that is wrong by 1e-1 and more.
BOUND = 1e-3
# The share of a pooled row by which a pass in few bits may be off. Random weights, which amplify rounding,
# measured 0.06 in bf16 and 0.15 in int8; leaking neighbours, shifted places and lost segments 0.36 and more.
ROUNDING = {"fp32": BOUND, "fp16": 0.1, "bf16": 0.1, "int8": 0.25, "int8-all": 0.25}
# A larger window is narrowed for the check: the other sequence would take longer than the rest of the load.
WIDEST = 256
NARROWED = 64
# A soft cap changes logits this large, and barely those of random sequences.
LOGITS = (-100.0, 100.0)
# The time that another process has: to import what it needs, and to read weights from a slow disk.
SECONDS = 120
BYTES_A_SECOND = 20 << 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a model's pass comes to transformers' own."""

    difference: float  # the greatest, for each 1 of the reference
    reason: str = ""  # what the pass does not compute, if it said so
    bound: float = BOUND

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding; they are not where one is no number."""
        return self.difference <= self.bound


@dataclass(frozen=True, slots=True)
class Probe:
    """One random sequence."""

    ids: Tensor  # [num_tokens] int64
    types: Tensor  # likewise


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceAnswers:
    """The rows and logits that transformers' layers make of two probes, in float32."""

    probes: tuple[Probe, Probe]
    rows: Tensor  # behind the body, pooled  # [2, hidden]
    logits: Tensor | None = None  # behind the head  # [2, 1]; None where the network has none
    bent: Tensor | None = None  # what a language model makes of LOGITS  # [2]

    @property
    def finite(self) -> bool:
        """Whether all of them are numbers."""
        made = [each for each in (self.rows, self.logits, self.bent) if each is not None]
        return all(bool(each.isfinite().all()) for each in made)

    def to_json(self) -> dict[str, Any]:
        """Writes the numbers as lists, which hold each float32 exactly."""
        found = {
            "ids": [probe.ids.tolist() for probe in self.probes],
            "types": [probe.types.tolist() for probe in self.probes],
            "rows": self.rows.tolist(),
        }
        further = {"logits": self.logits, "bent": self.bent}
        return found | {name: each.tolist() for name, each in further.items() if each is not None}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ReferenceAnswers:
        """Reads what `to_json` has written; raises LookupError, TypeError, ValueError, RuntimeError."""
        first, second = (
            Probe(torch.tensor(ids, dtype=torch.int64), torch.tensor(types, dtype=torch.int64))
            for ids, types in zip(found["ids"], found["types"], strict=True)
        )
        if any(each.ids.dim() != 1 or not 0 < len(each.ids) == len(each.types) for each in (first, second)):
            raise ValueError("no sequences")  # of which kernels would read beyond the end
        numbers = {
            name: torch.tensor(found[name], dtype=torch.float32)
            for name in ("rows", "logits", "bent")
            if name in found
        }
        return cls((first, second), **numbers)


def answers_kept(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> bool:
    """Whether an earlier load has kept transformers' answers for an own body."""
    return Kept("references").read(_key(checkpoint, evidence, card)) is not None


def answers_beforehand(
    checkpoint: Checkpoint, evidence: Evidence, card: ModelCard
) -> ReferenceAnswers | None:
    """Asks transformers where no answers are kept, before the weights are in memory beside its process.

    None where answers are kept, and where it fails: the model's own reading of the files, which comes first,
    may say better what is wrong with them.
    """
    if answers_kept(checkpoint, evidence, card):
        return None
    try:
        return _asked(checkpoint, evidence, card)
    except ModelLoadError:
        return None


def check_own(
    model: Encoder, checkpoint: Checkpoint, evidence: Evidence, made: ReferenceAnswers | None = None
) -> Agreement:
    """Compares an own body, and the head behind it, with transformers' layers for the same weights.

    The answers of these, `made` beforehand or asked for now, are kept for the next load once a model agrees.
    Answers that were kept decide only for a model: where it differs from them, new ones are made. Raises
    ModelLoadError where transformers cannot load or run the checkpoint, or its own answers are not finite.
    """
    kept, key = Kept("references"), _key(checkpoint, evidence, model.card)
    if made is None and (found := kept.read(key)) is not None:
        known = _kept_agreement(model, evidence, found)
        if known is not None and known.agrees:
            return known
    answers = made or _asked(checkpoint, evidence, model.card)
    if not answers.finite:
        raise ModelLoadError(
            f"{checkpoint.directory}: transformers' own scores are not finite: "
            "check config.json, or copy the weights again"
        )
    agreement = _agreement(model, answers)
    if agreement.agrees:
        kept.write(key, answers.to_json())
    return agreement


def _kept_agreement(model: Encoder, evidence: Evidence, found: Mapping[str, Any]) -> Agreement | None:
    """Compares with answers that were kept; None where they have not the form of this model's."""
    head = evidence.head
    if ("logits" in found) == isinstance(head, Chain) or ("bent" in found) != isinstance(head, Answers):
        return None
    try:
        return _agreement(model, ReferenceAnswers.from_json(found))
    except (LookupError, TypeError, ValueError, RuntimeError):  # one of the model's own comes again
        return None


def _asked(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> ReferenceAnswers:
    stored = sum(path.stat().st_size for path in checkpoint.weights)
    return aside(_make, checkpoint, evidence, card, seconds=SECONDS + stored // BYTES_A_SECOND)


def _make(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> ReferenceAnswers:
    from rerank_grpc.models.borrowed.selfcheck import make_answers  # which imports transformers

    return make_answers(checkpoint, evidence, card)


def _key(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Key:
    """All that the answers depend on."""
    head = evidence.head
    return {
        "recipe": RECIPE,
        "package": __version__,
        "transformers": version("transformers"),
        "revision": checkpoint.revision,
        "config": hashlib.sha256((checkpoint.directory / "config.json").read_bytes()).hexdigest(),
        "head": repr(head) if isinstance(head, Answers) else type(head).__name__,
        "kind": card.kind.value,
        "pooling": card.pooling,
    }


def _agreement(model: Encoder, answers: ReferenceAnswers) -> Agreement:
    """Compares the pooled rows, which may differ by the rounding of the precision, and the head.

    Rows are not normalized before, since a factor of all of them is a fault too. The head, which is float32
    in any precision, is compared by itself: it must make the reference's logits of the reference's rows.
    """
    with _narrowed(model), torch.inference_mode():
        own, bound = rows_of(model), ROUNDING[model.card.precision]
        packs = passes(model, answers.probes, model.card.shares_prefixes)
        found = [own.pool(own.body(each), each) for each in packs]
        wanted = answers.rows.to(found[0])
        lengths = wanted.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rows = Agreement(max(difference(each / lengths, wanted / lengths) for each in found), bound=bound)
        if not isinstance(model, CrossEncoder) or answers.logits is None or not rows.agrees:
            return rows
        logits = model.head(answers.rows.to(found[0]))
        apart = difference(logits, answers.logits.to(logits))
        if isinstance(model.head, AnswerHead) and answers.bent is not None:
            plain = torch.tensor(LOGITS)
            apart = max(apart, difference(model.head.bend(plain)[None], answers.bent[None]))
    return rows if apart <= BOUND else Agreement(apart)


def _narrowed(model: Encoder) -> AbstractContextManager[None]:
    """Narrows the windows of an own body as those of transformers' layers are."""
    if not isinstance(model.body, OwnBody):
        return nullcontext()
    return model.body.narrowed(surplus_of(max(model.body.windows, default=None)))


def surplus_of(widest: int | None) -> int:
    """The places by which all windows are narrowed for the check, by the widest."""
    return widest - NARROWED if widest is not None and widest > WIDEST else 0


def difference(found: Tensor, expected: Tensor) -> float:
    """The greatest relative difference of two logits or vectors; of small ones the absolute."""
    apart = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1)
    return float(apart.nan_to_num(nan=math.inf, posinf=math.inf).max())


# ---------------- The passes of a model over two probes


def passes(model: Model, probes: tuple[Probe, Probe], shares_prefixes: bool) -> list[PackedTokens]:
    """Packs both probes, and again with half of the second as a prefix, if the model shares prefixes."""
    device = torch.device(model.card.device)
    own = tuple(Probe(probe.ids.to(device), probe.types.to(device)) for probe in probes)
    plain = pack_parts([probe.ids for probe in own], [probe.types for probe in own])
    return [plain, _behind_prefix(*own)] if shares_prefixes else [plain]


def pack_parts(ids: list[Tensor], types: list[Tensor]) -> PackedTokens:
    """Packs parts of which none continues another."""
    device = ids[0].device
    places = torch.cat([torch.arange(len(each), device=device) for each in ids])
    layout = Layout.of(tuple(map(len, ids)), device)
    return PackedTokens(torch.cat(ids), places, torch.cat(types), layout)


def _behind_prefix(first: Probe, second: Probe) -> PackedTokens:
    """Packs the half of the second sequence as a prefix, the first, and the rest of the second."""
    half = len(second.ids) // 2
    ids = [second.ids[:half], first.ids, second.ids[half:]]
    packed = pack_parts(ids, [torch.zeros_like(each) for each in ids])
    prefix = KeysValues(half)
    contexts, prefixes = (None, None, prefix), (prefix,)
    places = packed.position_ids.clone()
    places[half + len(first.ids) :] += half
    ranges = key_ranges(contexts, prefixes, packed.layout.lengths)
    device = places.device
    rows = torch.tensor([row for each in ranges for part in each for row in part], dtype=torch.int32)
    keys = Layout.of(tuple(sum(map(len, each)) for each in ranges), device)
    layout = Layout(packed.layout.starts, packed.layout.longest, packed.layout.lengths, keys, rows.to(device))
    return PackedTokens(packed.input_ids, places, packed.token_type_ids, layout, contexts, prefixes)


# ---------------- The other process

# The program of that process. It ends with its parent from its first line on, since imports take seconds. The
# kernel's own signal for that (PR_SET_PDEATHSIG) comes when the thread ends that started the process.
PROGRAM = """
import os, sys, threading, time

def end_with_parent(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(os.EX_TEMPFAIL)

threading.Thread(target=end_with_parent, args=[int(sys.argv[1])], daemon=True).start()
answer, sys.path[:] = int(sys.argv[2]), sys.argv[3:]
from rerank_grpc.models import reference
reference.main(answer)
"""


def aside(function: Callable[..., Answer], *arguments: Any, seconds: float = SECONDS) -> Answer:
    """Calls a function of this package in a process of its own, so that this one imports nothing for it.

    A process that has imported transformers already calls it itself. Raises the function's ModelLoadError,
    and one that says how the other process ended where it gave no answer in so many seconds.
    """
    if "transformers" in sys.modules:
        return function(*arguments)
    try:
        failure, answer = _ask(pickle.dumps((function, arguments)), seconds)
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(
            f"the process that asks transformers took more than {seconds:g} s{_last_line(error.stderr)}: "
            "load it again when the machine is less busy"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ModelLoadError(
            f"the process that asks transformers ended with status {error.returncode}"
            f"{_last_line(error.stderr)}: {'free some memory, and ' if error.returncode < 0 else ''}"
            "load it again"
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelLoadError(
            f"no answer of a process for transformers ({type(error).__name__}): "
            "free some memory, and load it again"
        ) from error
    if failure:
        raise ModelLoadError(failure)
    made: Answer = answer
    return made


def _ask(task: bytes, seconds: float) -> tuple[str, Any]:
    """Runs the other process, which answers in a file of its own: any library may print to stdout."""
    with _answer_file() as answer:
        numbers = (str(os.getpid()), str(answer.fileno()))
        subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *numbers, *sys.path],
            input=task,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=True,
            pass_fds=[answer.fileno()],
        )
        answer.seek(0)
        found: tuple[str, Any] = pickle.load(answer)
        return found


def _answer_file() -> BinaryIO:
    """Opens a file in memory, which needs no place to write to; a temporary one where the system has none."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("answer"), "w+b")
    return tempfile.TemporaryFile()


def _last_line(said: bytes | None) -> str:
    lines = (said or b"").decode(errors="replace").strip().splitlines()
    return f" ({lines[-1][:160]})" if lines else ""


def main(answer: int) -> None:
    """Calls the function of a task on stdin, and writes its error's text or its answer to a descriptor."""
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        found = "", function(*arguments)
    except ModelLoadError as error:
        found = str(error), None
    with os.fdopen(answer, "wb") as file:
        pickle.dump(found, file)
