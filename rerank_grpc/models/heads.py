"""Heads over pooled rows: chains of sentence-transformers' modules, and the answers of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Chain, Module

WEIGHTS = "model.safetensors"


class Dense(nn.Module):
    """A linear layer with an activation behind it, and perhaps the input added to the result."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        inputs, outputs = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=bool(config.get("bias", True)))
        self.activation = _activation(config.get("activation_function"))
        self.adds_input = bool(config.get("use_residual"))
        if self.adds_input and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        made: Tensor = self.activation(self.linear(rows))
        if not self.adds_input:
            return made
        return made + (self.residual(rows) if hasattr(self, "residual") else rows)


class RowNorm(nn.Module):
    """A layer norm under the name that its weights have."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(rows)  # type: ignore[no-any-return]


class Unit(nn.Module):
    """Scales rows to length 1."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()

    def forward(self, rows: Tensor) -> Tensor:
        return normalize(rows)


TYPES: Mapping[str, type[nn.Module]] = {"Dense": Dense, "LayerNorm": RowNorm, "Normalize": Unit}


def build_chain(chain: Chain, width: int) -> nn.Sequential:
    """Builds a chain over rows  # [num_rows, width], in fp32, on the CPU.

    Raises ModelLoadError for a module whose files are missing or wrong, or whose size does not fit.
    """
    built = []
    for module in chain.modules:
        built.append(_build(module, width))
        width = _outputs(module, width)
    return nn.Sequential(*built).eval().requires_grad_(False)


def _build(module: Module, width: int) -> nn.Module:
    where = module.directory / "config.json"
    expected = module.config.get("in_features", module.config.get("dimension", width))
    if expected != width:
        raise ModelLoadError(f"{where}: takes rows of {expected} numbers, and the one before gives {width}")
    try:
        with torch.device("meta"):  # sizes that a file claims take no memory
            made = TYPES[module.type](module.config)
            # Only a Dense has a function of its own. Norms of meta tensors would import torch's compiler.
            given = made(torch.empty(1, width)).shape[-1] if module.type == "Dense" else width
    except Exception as error:  # torch raises half a dozen classes for what is no layer
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise ModelLoadError(f"{where}: describes no {module.type} ({reason}): copy it again") from error
    if given != _outputs(module, width):
        raise ModelLoadError(f"{where}: its activation changes the size of rows: use another checkpoint")
    if any(True for _ in made.parameters()):
        _load_weights(made, module)
    return made


def _load_weights(made: nn.Module, module: Module) -> None:
    path = module.directory / WEIGHTS
    if not path.is_file():
        remedy = "copy the whole checkpoint"
        if (module.directory / "pytorch_model.bin").is_file():
            remedy = f"'rerank-grpc convert {module.directory.parent}' makes it of the pickle beside it"
        raise ModelLoadError(f"{path}: no such file: {remedy}")
    try:
        with safe_open(path, "pt") as file:  # which may hold the body's weights too
            weights = {name: file.get_tensor(name).float() for name in made.state_dict()}
        made.load_state_dict(weights, assign=True)
    except Exception as error:  # safetensors and torch raise half a dozen classes, some over pages
        reason = " ".join(str(error).split())[:120]
        raise ModelLoadError(f"{path}: does not fit its config.json ({reason}): copy both again") from error
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise ModelLoadError(f"{path}: a weight is not finite: copy it again")


def _outputs(module: Module, width: int) -> int:
    return int(module.config.get("out_features", width)) if module.type == "Dense" else width


def _activation(name: Any) -> nn.Module:
    """Builds the activation of a Dense by its path in torch; Tanh is what files of old leave out."""
    if name is None:
        return nn.Tanh()
    own = getattr(nn, str(name).rpartition(".")[2], None) if str(name).startswith("torch.nn.") else None
    if not isinstance(own, type) or not issubclass(own, nn.Module):
        raise ValueError(f"activation {str(name)[:60]!r} is not torch's own")
    made: nn.Module = own()
    if any(True for _ in made.parameters()):
        raise ValueError(f"activation {str(name)[:60]!r} has weights")
    return made


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Scores by the next token: the logit of an answer, or how much it exceeds that of the other."""

    rows: Tensor  # of the answers, in the language model's head  # [num_answers, hidden] float32
    bias: Tensor  # [num_answers] float32
    cap: float | None = None  # bends logits so that none is beyond it

    @classmethod
    def of(cls, head: Any, answers: tuple[int, ...], config: Any) -> AnswerHead:
        """Picks the rows of the answers' token ids out of the head of a language model."""
        rows = head.weight[list(answers)].detach().float().clone()
        bias = rows.new_zeros(len(rows)) if head.bias is None else head.bias[list(answers)].detach().float()
        return cls(rows, bias, getattr(config, "final_logit_softcapping", None))

    def to(self, device: torch.device) -> AnswerHead:
        """Brings its rows to a device."""
        return replace(self, rows=self.rows.to(device), bias=self.bias.to(device))

    def bend(self, logits: Tensor) -> Tensor:
        """Applies the soft cap."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def __call__(self, last: Tensor) -> Tensor:
        """[num_sequences, hidden] → [num_sequences, 1]."""
        logits = self.bend(last @ self.rows.T + self.bias)
        return logits[:, :1] - logits[:, 1:] if logits.shape[1] == 2 else logits
