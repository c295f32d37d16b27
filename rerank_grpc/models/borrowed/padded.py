"""Transformers' own passes over padded sequences: for all that cannot be packed, and for `verify`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rerank_grpc.evidence.facts import Kind, Reading
from rerank_grpc.evidence.modules import read_saved_model
from rerank_grpc.models.assembly import unasked
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.borrowed.hooked import reads_types, stretching_rotation
from rerank_grpc.models.borrowed.weights import SAFE, quiet

# The tokens of padding that cost about as much as one more pass.
WORTHWHILE_PADDING = 256


class Padding:
    """Lays sequences of like length side by side, padded on the left for what reads leftward only.

    Like lengths are padded together: scheduler and meter take a batch to cost about as much as its tokens.
    """

    def __init__(self, network: Any, *, left: bool) -> None:
        takes = inspect.signature(network.forward).parameters
        self._side = "left" if left else "right"
        self._pad = int(network.config.pad_token_id or 0)
        # On the right the network counts by itself, as RoBERTa's relatives do in their own way.
        self._places = left and "position_ids" in takes
        self._types = "token_type_ids" in takes and reads_types(network)
        self._options = {"use_cache": False} if "use_cache" in takes else {}
        self._alone = bool(stretching_rotation(network.config))

    def batches(self, packed: PackedTokens) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yields the indices of some sequences, and what a forward takes  # [num_sequences, longest] each."""
        lengths = packed.layout.lengths
        # int32 on a GPU, which not every network takes
        ids, types = (each.long().split(lengths) for each in (packed.input_ids, packed.token_type_ids))
        for group in by_length(lengths, 0 if self._alone else WORTHWHILE_PADDING):
            mask = self._together([torch.ones_like(ids[index]) for index in group], 0)
            inputs = {"attention_mask": mask} | self._options
            inputs["input_ids"] = self._together([ids[index] for index in group], self._pad)
            if self._types:
                inputs["token_type_ids"] = self._together([types[index] for index in group], 0)
            if self._places:
                inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
            yield group, inputs

    def _together(self, rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self._side)


class PaddedBody:
    """Runs any body of transformers, with its own attention, over padded sequences."""

    def __init__(self, body: Any, *, causal: bool = False) -> None:
        self.body = body
        self._padding = Padding(body, left=causal)

    def __call__(self, packed: PackedTokens) -> Tensor:
        """Returns the last rows  # [num_tokens, hidden] float32, in the order of the packed tokens."""
        rows: dict[int, Tensor] = {}
        for group, inputs in self._padding.batches(packed):
            hidden = self.body(**inputs).last_hidden_state.float()
            own = [row[mask.bool()] for row, mask in zip(hidden, inputs["attention_mask"], strict=True)]
            rows.update(zip(group, own, strict=True))
        return torch.cat([rows[index] for index in range(len(rows))])


class Padded:
    """Scores sequences with transformers' own forward pass, of which the head is a part.

    The score is the one label of a classifier, e.g. DeBERTa-v2; with `answers`, token ids, it is the logit
    of the first as the next token, less that of the second if there are two.
    """

    def __init__(
        self, card: ModelCard, network: Any, *, answers: tuple[int, ...] = (), causal: bool = False
    ) -> None:
        self.card = card
        if answers:
            network.set_output_embeddings(narrowed_head(network, answers))
        own = {id(weight) for weight in network.base_model.parameters()}
        for weight in network.parameters():
            weight.data = weight.data if id(weight) in own else weight.data.float()
        # Behind a body in 16 bits, the head still computes in float32.
        network.base_model.register_forward_hook(_float_output)
        self._network = network
        self._answers = bool(answers)
        self._padding = Padding(network, left=causal)
        self._options = last_place(network) if answers else {}

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        """Runs one pass: a logit for each sequence  # [num_sequences, 1] float32."""
        found: dict[int, Tensor] = {}
        for group, inputs in self._padding.batches(packed):
            logits = self._network(**inputs, **self._options).logits.float()
            logits = answer_logits(logits[:, -1]) if self._answers else logits
            found.update(zip(group, logits, strict=True))
        return torch.stack([found[index] for index in range(len(found))])


def narrowed_head(
    network: Any, answers: tuple[int, ...], constants: tuple[float, ...] = ()
) -> torch.nn.Linear:
    """Copies the rows of one or two token ids out of the head of a language model, in float32.

    In the head's place it serves as well: what the network does to its logits, as scales and soft caps, it
    does to each by itself. Behind the answers stand `constants`, which do not depend on the tokens.
    """
    head, rows = network.get_output_embeddings(), list(answers)
    weight = head.weight[rows].float()
    bias = weight.new_zeros(len(rows)) if head.bias is None else head.bias[rows].float()
    weight = torch.cat([weight, weight.new_zeros(len(constants), head.in_features)])
    narrow = torch.nn.Linear(head.in_features, len(weight), device="meta").requires_grad_(False)
    state = {"weight": weight, "bias": torch.cat([bias, weight.new_tensor(constants)])}
    narrow.load_state_dict(state, assign=True)
    return narrow


def last_place(network: Any) -> dict[str, int]:
    """The option by which a language model computes the logits of the last place only, if it has one."""
    takes = inspect.signature(network.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}


def answer_logits(logits: Tensor) -> Tensor:
    """[num_sequences, num_answers] → [num_sequences, 1]: a logit, or its excess over a second one."""
    return logits[:, :1] - logits[:, 1:] if logits.shape[1] == 2 else logits


def own_attention(network: Any) -> str:
    """Gives a network transformers' fastest attention that computes all that its layers ask for.

    Returns its name: "sdpa", or "eager" for soft caps, sinks and architectures without another.
    """
    with quiet():
        try:
            network.set_attn_implementation("sdpa")
        except ValueError:
            network.set_attn_implementation("eager")
    return str(network.config._attn_implementation)


def by_length(lengths: Sequence[int], padding: int = WORTHWHILE_PADDING) -> list[list[int]]:
    """Groups indices of sequences, the longest first, so that no group is padded by more than `padding`."""
    groups: list[list[int]] = []
    longest = padded = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padded += longest - lengths[index]
        if not groups or padded > padding:
            groups.append([])
            longest, padded = lengths[index], 0
        groups[-1].append(index)
    return groups


def check_reads_both_ways(card: ModelCard, network: Any) -> None:
    """Raises ModelLoadError for a decoder, which expects a prompt; for a classifier that comes without."""
    ids = torch.arange(5, 17, device=next(network.parameters()).device) % network.config.vocab_size
    if reads_leftward_only(network, ids):
        raise unasked(card)


@torch.inference_mode()
def reads_leftward_only(network: Any, ids: Tensor) -> bool:
    """Whether the first token's row stays the same when the last token changes."""
    other = ids.clone()
    other[-1] = ids[0]
    rows = [network.base_model(input_ids=each[None])[0][0, 0] for each in (ids, other)]
    return torch.equal(*rows)


def _float_output(module: torch.nn.Module, args: object, output: Any) -> Any:
    """Makes a body's result float32, so that pooler and classifier compute in it."""
    for name, value in list(output.items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            output[name] = value.float()
    return output


def has_plain_reference(card: ModelCard) -> bool:
    """Whether `reference_logits` can score a model: one that reads texts as they are, by a network alone."""
    plain = Reading(token_types=card.reading.token_types)
    if card.kind is Kind.LATE_INTERACTION or card.reading != plain:
        return False
    modules = read_saved_model(card.tokenizer_file.parent).modules
    return all(module.type in ("Pooling", "Normalize") for module in modules)


def reference_logits(card: ModelCard, query: str, documents: Sequence[str]) -> list[float]:
    """Scores documents as transformers does, in fp32: logits, or cosines for a bi-encoder.

    The packed pass shares nothing with this but the files. The model has a plain reference.
    """
    pairs = card.kind is Kind.CROSS_ENCODER
    directory = card.tokenizer_file.parent
    auto = AutoModelForSequenceClassification if pairs else AutoModel
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="right", **SAFE)
        network = auto.from_pretrained(directory, dtype=torch.float32, use_safetensors=True, **SAFE)
    network = network.eval().to(card.device)

    texts = ([query] * len(documents), list(documents)) if pairs else ([query, *documents],)
    batch = tokenizer(
        *texts, padding=True, truncation=True, max_length=card.max_tokens, return_tensors="pt"
    ).to(card.device)
    with torch.inference_mode():
        output = network(**batch)
        if pairs:
            return [float(logit) for logit in output.logits[:, 0]]
        vectors = normalize(_pooled(output.last_hidden_state, batch["attention_mask"], card.pooling))
        return [float(cosine) for cosine in vectors[1:] @ vectors[0]]


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pools  # [num_texts, longest, hidden]  over each text's own rows, by a name of POOLS."""
    texts = [rows[own.bool()].float() for rows, own in zip(hidden, mask, strict=True)]
    match pooling:
        case "first":
            return torch.stack([rows[0] for rows in texts])
        case "last":
            return torch.stack([rows[-1] for rows in texts])
        case "max":
            return torch.stack([rows.amax(dim=0) for rows in texts])
    return torch.stack([rows.mean(dim=0) for rows in texts])
