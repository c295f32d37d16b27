"""Reads a checkpoint's weights into transformers' own networks, or one at a time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Chain, Classifier
from rerank_grpc.models.bodies.tensors import check_finite

# Makes another weight of a parameter and its name in the network; None leaves it as it is.
Swap: TypeAlias = Callable[[Tensor, str], Tensor | None]

# The class of transformers for each of our heads
CLASSES: Mapping[type, Any] = {
    Classifier: AutoModelForSequenceClassification,
    Answers: AutoModelForCausalLM,
    Chain: AutoModel,
}
# Transformers neither asks the hub nor runs a checkpoint's own code.
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

_output = threading.Lock()


def read_network(auto_class: Any, checkpoint: Checkpoint, *, attention: str | None, **options: Any) -> Any:
    """Loads a checkpoint in its stored precision, on the CPU, in evaluation mode.

    Raises ModelLoadError if transformers cannot build it, or a weight is missing, misshapen or not finite.
    """
    options |= SAFE | {"dtype": checkpoint.dtype, "use_safetensors": True, "output_loading_info": True}
    if attention is not None:
        options["attn_implementation"] = attention
    directory = checkpoint.directory
    with quiet():
        try:
            network, report = auto_class.from_pretrained(directory, **options)
        except Exception as error:  # the operator gets one line, whatever is wrong with the files
            reason = " ".join(str(error).split())[:160]
            raise ModelLoadError(
                f"{directory}: transformers cannot load it ({type(error).__name__}: {reason}): "
                "check that config.json and the weights belong together"
            ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]!r} first: "
            "config.json and the weights do not belong together, or the model was never trained for this"
        )
    for name, weight in network.named_parameters():
        check_finite(checkpoint, name, weight)
    return network.eval().requires_grad_(False)


def convert_weights(body: Any, dtype: torch.dtype) -> Any:
    """Converts the weights of a body, one at a time, where it stands, and gives it back."""
    # Not .to(dtype), which would round the frequencies of the rotary embedding as well.
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
    return body


@contextmanager
def swapped_weights(network: Any, swap: Swap) -> Iterator[None]:
    """Gives each module other weights while it runs; `swap` makes them of a parameter and its name.

    Only those of the module that runs are in memory; the modules inside it have their own turns.
    """
    handles = []
    for path, module in network.named_modules():
        if module._parameters:
            handles += _swap_while_running(module, f"{path}." if path else "", swap)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _swap_while_running(module: Any, path: str, swap: Swap) -> list[Any]:
    own = dict(module._parameters)

    def enter(module: Any, _: object) -> None:
        for name, parameter in own.items():
            other = None if parameter is None else swap(parameter, path + name)
            if other is not None:
                module._parameters[name] = torch.nn.Parameter(other, requires_grad=False)

    def leave(module: Any, *_: object) -> None:
        module._parameters.update(own)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars and from warnings about files that are checked here."""
    with _output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
