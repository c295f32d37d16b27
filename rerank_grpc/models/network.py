"""Reads a checkpoint's weights into transformers' own model code."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models import weights

_output = threading.Lock()


def read_network(auto_class: Any, checkpoint: Checkpoint, *, attention: str | None, **options: Any) -> Any:
    """Loads a checkpoint in its stored precision, on the CPU, in evaluation mode.

    Raises:
        ModelLoadError: if transformers cannot build it, or if the weights are
            not all there, of the right shape and finite.
    """
    if attention is not None:
        options["attn_implementation"] = attention
    directory = checkpoint.directory
    with _quiet():
        try:
            network, report = auto_class.from_pretrained(
                directory,
                dtype=checkpoint.dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # whatever is wrong with the files, the operator gets one line
            raise ModelLoadError(
                f"{directory}: transformers cannot load it ({_one_line(error)}): "
                "check that config.json and the weights belong together"
            ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]!r} first: "
            "config.json and the weights do not belong together, or the model was never trained for this"
        )
    _check_finite(network, checkpoint)
    return network.eval().requires_grad_(False)


def read_outline(
    build: Callable[[Any], Any], auto_class: Any, checkpoint: Checkpoint, **options: Any
) -> tuple[Any, Callable[[str], torch.Tensor]]:
    """A network without weights, and a function that reads one by its name, in fp32.

    Of all weights there is then only one in memory twice. What is not plain
    about the files is left to read_network, with its errors.
    """
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(
                checkpoint.directory, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                network = build(config)
            take = weights.reader(checkpoint, network)
        except Exception:
            take = None
    if take is None:
        network = read_network(auto_class, checkpoint, attention=None, **options)
        parameters = dict(network.named_parameters())
        return network, lambda name: parameters[name].detach().float()
    return network.eval(), take


def fill(module: Any, take: Callable[[str], torch.Tensor], name: str) -> Any:
    """Gives a network's part its weights, in fp32, on the CPU."""
    state = {key: take(f"{name}.{key}") for key, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)


def _check_finite(network: torch.nn.Module, checkpoint: Checkpoint) -> None:
    for name, weight in network.named_parameters():
        # A sum is not finite if any value is not, and costs no second copy.
        if not torch.isfinite(weight.sum(dtype=torch.float64)):
            raise ModelLoadError(
                f"{checkpoint.directory}: weight {name!r} is not finite: copy the weights again"
            )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars and from warning of what is checked here."""
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
