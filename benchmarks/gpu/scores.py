"""How far scores are from those of transformers, and from each other where only the batch differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.ours import Ours
from benchmarks.gpu.telling import NotHere, Teller
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from rerank_grpc.runner.runner import Runner

# Our bf16 logits may be off by so much more than transformers' own: docs/precision.md.
BOUND = 1.2
# fp32 against fp32 on a card: the products add in another order.
EXACT = 1e-3
MOST_PAIRS = 12  # of the small batches, which are captured


class Scores:
    """One shape's row in the table of scores; `expected` are transformers' logits in fp32."""

    def __init__(self, teller: Teller, name: str, expected: list[float], theirs: list[float]) -> None:
        self._teller, self._name = teller, name
        self._expected = torch.tensor(expected)
        self._theirs = self._error(theirs)
        teller.score(name, deviation=float(self._expected.std()), theirs=self._theirs)

    def compare(self, ours: Ours, workload: Workload) -> None:
        """Compares our logits in the run's precision."""
        found = self._error(ours.score([ours.encode(workload)]))
        allowed = max(BOUND * self._theirs, EXACT)
        self._teller.score(self._name, ours=found, met="yes" if found <= allowed else "**no**")

    def compare_exact(self, ours: Ours, workload: Workload) -> None:
        """Compares our logits in fp32."""
        found = self._error(ours.score([ours.encode(workload)]))
        self._teller.score(self._name, exact=found, exact_met="yes" if found <= EXACT else "**no**")

    def compare_packing(self, ours: Ours, workload: Workload) -> None:
        """Compares each pair alone with the same among all others."""
        sequences = ours.encode(workload)
        together = torch.tensor(ours.runner.launch(tuple(sequences))())
        alone = torch.tensor([ours.runner.launch((each,))()[0] for each in sequences])
        self._teller.score(self._name, packed=self._largest(alone, together))

    def compare_graphs(self, ours: Ours, workload: Workload) -> None:
        """Compares captured passes with the same runner's without any, for batches of few pairs."""
        plain = uncaptured(ours)
        sequences, largest, equal, captured = ours.encode(workload), 0.0, 0, 0
        for count in range(1, MOST_PAIRS + 1):
            batch = tuple(sequences[-count:])
            one, other = (torch.tensor(runner.launch(batch)()) for runner in (ours.runner, plain))
            largest = max(largest, self._largest(one, other))
            equal += bool(torch.equal(one, other))
            captured += is_captured(ours, batch)
        cell = f"{largest:.2g} ({equal} of {MOST_PAIRS} equal, {captured} captured)"
        self._teller.score(self._name, graphs=cell)

    def _error(self, found: list[float]) -> float:
        """The root of the mean square difference, as a share of the logits' standard deviation."""
        difference = torch.tensor(found) - self._expected
        return float(difference.square().mean().sqrt() / self._expected.std())

    def _largest(self, one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / self._expected.std())


def uncaptured(ours: Ours) -> Runner:
    """Another runner of the same model, without captured passes; on the CPU one like the first."""
    from rerank_grpc.runner.accelerator import Cuda
    from rerank_grpc.runner.cuda import CudaRunner
    from rerank_grpc.runner.runner import CpuRunner

    if isinstance(ours.runner, CpuRunner):
        return CpuRunner(ours.model)
    if not ours.graphs:
        raise NotHere("no pass of it is captured")
    return CudaRunner(ours.model, Cuda(torch.device(ours.card.device)), {})


def is_captured(ours: Ours, batch: tuple[object, ...]) -> bool:
    """Whether the runner has a captured pass for a batch."""
    from rerank_grpc.runner.graphs import shape_for

    shape = shape_for(batch)  # type: ignore[arg-type]
    return shape is not None and shape in getattr(ours.runner, "_graphs", {})
