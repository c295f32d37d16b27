"""Checks at load that a model's pass gives what transformers' own forward gives for the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Chain, Classifier, Evidence
from rerank_grpc.kernels.base import CPU
from rerank_grpc.models.assembly import answer_ids
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.bodies.tensors import Extent, Take, find_extents, mapper
from rerank_grpc.models.borrowed.hooked import HookedBody, NotPackable, reads_types
from rerank_grpc.models.borrowed.padded import answer_logits, last_place, narrowed_head
from rerank_grpc.models.borrowed.weights import CLASSES, SAFE, quiet, read_network, swapped_weights
from rerank_grpc.models.encoders import POOLS, Head, Pool
from rerank_grpc.models.heads import AnswerHead
from rerank_grpc.models.reference import (
    BOUND,
    LOGITS,
    Agreement,
    Probe,
    ReferenceAnswers,
    difference,
    pack_parts,
    passes,
    surplus_of,
)

# From what a forward takes for one sequence to its logit  # [1]  or vector  # [hidden], float32
Reference: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]

SHORT, LONG = 11, 24  # tokens of the two sequences where there is no window
BEYOND = 32  # the longer one's tokens beyond the widest window


def check_against_reference(
    model: Model, network: Any, reference: Reference, *, shares_prefixes: bool = False, bound: float = BOUND
) -> Agreement:
    """Compares a model's pass over two random sequences with `reference`, which runs `network` for each.

    `network` holds the very weights of the model and is set to the model's attention; the reference runs
    with the eager one. Weights of 16 bits are computed with in float32, a module at a time, so that one bound
    tells rounding from a fault. With `shares_prefixes`, the second sequence is also run behind a prefix.
    A pass that fails does not agree, and the reason tells by what.
    """
    with _exact(model, network), narrowed_windows(network) as window, torch.inference_mode():
        probes = draw_probes(network, window)
        try:
            found = [model.forward(each) for each in passes(model, probes, shares_prefixes)]
            with defining_attention(network):
                expected = torch.stack([reference(inputs_of(probe, network)) for probe in probes])
        except NotPackable as asked:
            return Agreement(math.inf, str(asked), bound)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of code that was not written for such a pass
            return Agreement(math.inf, f"code of its own ({type(error).__name__})", bound)
    head = getattr(model, "head", None)
    if (
        isinstance(head, AnswerHead)
        and isinstance(reference, AnswersReference)
        and not reference.bends_as(head)
    ):
        return Agreement(math.inf, "logits that are scaled or capped", bound)
    return Agreement(max(difference(each, expected.to(each)) for each in found), bound=bound)


def inputs_of(probe: Probe, network: Any) -> dict[str, Tensor]:
    """One sequence as the forward of a network takes it, in a batch of one."""
    device = next(network.parameters()).device
    device = CPU if device.type == "meta" else device
    inputs = {"input_ids": probe.ids[None].to(device)}
    if reads_types(network):
        inputs["token_type_ids"] = probe.types[None].to(device)
    return inputs


def draw_probes(network: Any, window: int | None) -> tuple[Probe, Probe]:
    """Draws a short sequence, and one that is longer than the window; none has a control token of config."""
    table = network.get_input_embeddings()
    allowed = torch.ones(table.num_embeddings, dtype=torch.bool)
    allowed[[each for each in _named_ids(network) if each < len(allowed)]] = False
    candidates = allowed.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    probes = []
    for length in (SHORT, LONG if window is None else window + BEYOND):
        ids = candidates[torch.randint(len(candidates), (length,), generator=generator)]
        types = (torch.arange(length) * 2 >= length).long() if reads_types(network) else torch.zeros_like(ids)
        probes.append(Probe(ids, types))
    return probes[0], probes[1]


def _named_ids(network: Any) -> set[int]:
    """The token ids that the configs name: padding, ends, places of images."""
    values = [
        value
        for config in _configs(network)
        for name, value in vars(config).items()
        if name.endswith("token_id")
    ]
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return {each for each in flat if isinstance(each, int) and each >= 0}


def _configs(network: Any) -> list[Any]:
    """The configs of a network and its parts, each once."""
    found = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    return list(found.values())


@contextmanager
def _exact(model: Model, network: Any) -> Iterator[None]:
    """Lets model and network compute in float32, whatever their weights are stored in."""
    body = getattr(model, "body", None)
    with ExitStack() as stack:
        if isinstance(body, HookedBody):
            stack.enter_context(body.without_kernel())
        stack.enter_context(in_float32(network))
        yield


@contextmanager
def in_float32(network: Any) -> Iterator[None]:
    """Lets a network compute in float32 with the weights as they are stored, a module's at a time."""
    tables = [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]
    most = network.get_input_embeddings().num_embeddings
    # DeBERTa reads the weight of a small one itself, of its relative positions, without a lookup.
    stored = {table: table.weight for table in tables if table.num_embeddings < most}
    for table, weight in stored.items():
        table.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    in_tables = {id(table.weight) for table in tables}

    def swap(weight: Tensor, name: str) -> Tensor | None:
        # Of a table, which may be the largest weight, only the rows that were looked up are converted.
        return None if weight.dtype is torch.float32 or id(weight) in in_tables else weight.float()

    handles = [table.register_forward_hook(lambda _module, _args, rows: rows.float()) for table in tables]
    try:
        with swapped_weights(network, swap):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for table, weight in stored.items():
            table.weight = weight


@contextmanager
def defining_attention(network: Any) -> Iterator[None]:
    """Sets a network to the attention that defines its architecture, and back."""
    before = network.config._attn_implementation
    with quiet():
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet():
            network.set_attn_implementation(before)


def _windows(network: Any) -> list[tuple[Any, str, int]]:
    """Lists the windows of a network: the config or module that holds each, its attribute, its tokens."""
    return [
        (holder, name, value)
        for holder in (*_configs(network), *network.modules())
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(value := getattr(holder, name, None), int)
    ]


def _widest_window(network: Any) -> int | None:
    return max((value for _, _, value in _windows(network)), default=None)


@contextmanager
def narrowed_windows(network: Any) -> Iterator[int | None]:
    """Narrows windows above WIDEST to NARROWED, in configs and modules; yields the widest, None if none is.

    A module that counts one place more than the config, as ModernBERT's do, still does so.
    """
    before, widest = _windows(network), _widest_window(network)
    surplus = surplus_of(widest)
    try:
        if surplus:
            for holder, name, value in before:
                setattr(holder, name, max(2, value - surplus))
        yield None if widest is None else widest - surplus
    finally:
        for holder, name, value in before if surplus else ():
            setattr(holder, name, value)


def classifier_reference(network: Any) -> Reference:
    """A classifier's one label, by its own forward."""
    return lambda inputs: network(**inputs).logits[0].float()


class AnswersReference:
    """A language model's logit of one next token, or how much it exceeds that of another.

    It copies the answers' rows when it is made: before a body is converted, whose table the head may be.
    """

    def __init__(self, network: Any, answers: tuple[int, ...]) -> None:
        self._network, self._count = network, len(answers)
        self._head = narrowed_head(network, answers, LOGITS)
        self._options = {"use_cache": False} | last_place(network)
        self.bent = torch.tensor(LOGITS)  # what the network makes of these

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        head = self._network.get_output_embeddings()
        self._network.set_output_embeddings(self._head)
        try:
            logits = self._network(**inputs, **self._options).logits[:, -1].float()
        finally:
            self._network.set_output_embeddings(head)
        own, self.bent = logits.split([self._count, len(LOGITS)], dim=1)
        return answer_logits(own)[0]

    def bends_as(self, head: AnswerHead) -> bool:
        """Whether a head scales and caps logits as the network did in the last call."""
        return torch.allclose(self.bent, head.bend(self.bent.new_tensor(LOGITS)), rtol=BOUND)


def pooled_reference(body: Any, pool: Pool, head: Head | None, *, unit: bool) -> Reference:
    """Applies pool and head, if any, to a body's last rows; if `unit`, scales the result to length 1."""

    def reference(inputs: Mapping[str, Tensor]) -> Tensor:
        ids = inputs["input_ids"][0]
        rows = body(**inputs).last_hidden_state[0].float()
        pooled = pool(rows, pack_parts([ids], [torch.zeros_like(ids)]))
        made = pooled if head is None else head(pooled)
        return normalize(made)[0] if unit else made[0]

    return reference


# ---------------- The answers that own bodies are compared with


def make_answers(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> ReferenceAnswers:
    """Runs transformers' own network over two probes, in float32; raises ModelLoadError where it cannot.

    A module's weights are mapped from the files while it runs, so that no network is in memory.
    """
    network = _outline(checkpoint, evidence)
    try:
        with narrowed_windows(network) as window:
            return _answers(checkpoint, evidence, card, network, draw_probes(network, window))
    except (ModelLoadError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the operator gets one line, whatever is wrong with the files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelLoadError(
            f"{checkpoint.directory}: transformers cannot run it ({reason}): check config.json"
        ) from error


def _answers(
    checkpoint: Checkpoint, evidence: Evidence, card: ModelCard, network: Any, probes: tuple[Probe, Probe]
) -> ReferenceAnswers:
    hidden: list[Tensor] = []
    network.base_model.register_forward_hook(lambda *seen: hidden.append(seen[2].last_hidden_state[0]))
    with _streamed(network, checkpoint, probes), defining_attention(network), torch.inference_mode():
        reference = _reference_of(evidence, network)
        found = [reference(inputs_of(probe, network)) for probe in probes]
        pool = POOLS.get(card.pooling, POOLS["mean"])
        parts = [pack_parts([probe.ids], [probe.types]) for probe in probes]
        rows = torch.cat([pool(own.float(), part) for own, part in zip(hidden, parts, strict=True)])
    logits = None if isinstance(evidence.head, Chain) else torch.stack(found)
    bent = reference.bent if isinstance(reference, AnswersReference) else None
    return ReferenceAnswers(probes, rows, logits, bent)


def _reference_of(evidence: Evidence, network: Any) -> Reference:
    match evidence.head:
        case Classifier():
            return classifier_reference(network)
        case Answers():
            return AnswersReference(network, answer_ids(evidence.head))
    return lambda inputs: network(**inputs).last_hidden_state[0, 0]


def _outline(checkpoint: Checkpoint, evidence: Evidence) -> Any:
    """Builds a network whose parameters take no memory; one with its weights where the files are not plain.

    Plain files hold every parameter, in its shape, under its own name.
    """
    auto_class, options = CLASSES[type(evidence.head)], {}
    try:
        with quiet(), _weightless():
            config = AutoConfig.from_pretrained(checkpoint.directory, **SAFE)
            network = auto_class.from_config(config, dtype=torch.float32)
        if isinstance(evidence.head, Chain) and getattr(network, "pooler", None) is not None:
            network.pooler = None  # of which many files have no weights
            options = {"add_pooling_layer": False}
        _stored(network, checkpoint)
    except Exception:  # the errors of what follows are an operator's
        return read_network(auto_class, checkpoint, attention=None, **options)
    return network.eval()


@contextmanager
def _weightless() -> Iterator[None]:
    """Lets parameters that are made have a shape alone; buffers, as those of rotations, have their values."""
    register = torch.nn.Module.register_parameter

    def outlined(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = outlined  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _stored(network: Any, checkpoint: Checkpoint) -> dict[str, Extent]:
    """Finds the parameters of a network in the files, also where those are of more or of less than it.

    Raises KeyError for one that is missing or of another shape.
    """
    extents, prefix = find_extents(checkpoint), f"{network.base_model_prefix}."
    found = {}
    for name, parameter in network.named_parameters():
        names = (name, prefix + name, name.removeprefix(prefix))
        fitting = [extents[each] for each in names if each in extents]
        if not fitting or fitting[0].shape != tuple(parameter.shape):
            raise KeyError(name)
        found[name] = fitting[0]
    return found


@contextmanager
def _streamed(network: Any, checkpoint: Checkpoint, probes: tuple[Probe, Probe]) -> Iterator[None]:
    """Gives each module of an outline its weights in float32 while it runs.

    A network that has its weights computes in float32 as well.
    """
    if not any(parameter.is_meta for parameter in network.parameters()):
        with in_float32(network):
            yield
        return
    take = mapper(_stored(network, checkpoint))
    words, ids = network.get_input_embeddings().weight, torch.cat([probe.ids for probe in probes])
    if (head := network.get_output_embeddings()) is not None:
        _map_head(head, network, take)

    def swap(parameter: Tensor, name: str) -> Tensor:
        weight = take(name)
        if parameter is not words or weight.dtype is torch.float32:
            return weight.float()
        table = torch.empty(weight.shape)  # the largest, of which only pages that are written to take memory
        table[ids] = weight[ids].float()
        return table

    with swapped_weights(network, swap):
        yield


def _map_head(head: Any, network: Any, take: Take) -> None:
    """Maps the parameters of a language model's head, of which single rows are read."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for name, parameter in list(head.named_parameters()):
        setattr(head, name, torch.nn.Parameter(take(names[id(parameter)]), requires_grad=False))
