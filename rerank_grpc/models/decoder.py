"""Language models that rerank: a decoder's body, and one row of its head, at the last position only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.attention import kernel_for
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import CausalParts
from rerank_grpc.kernels.gathered import GatheredParts
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.prompt import Prompt
from rerank_grpc.types import Scoring


class Decoder:
    """Scores by what the model would answer next; `answers` are the token ids of the prompt's.

    With two answers the logit is the first's less the second's, so that its
    sigmoid is the softmax over both.
    """

    prompt: ClassVar[Prompt]
    scoring: ClassVar[Scoring]
    max_tokens: ClassVar[int]

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype, answers: tuple[int, ...]) -> None:
        self.card = card
        self._kernel = kernel_for(card.attention)
        rows = network.lm_head.weight[list(answers)].float()  # [num_answers, hidden]
        self._head = rows[0] - rows[1] if len(rows) == 2 else rows[0].clone()  # [hidden]
        self._body = network.model
        # Not .to(dtype): it would round the frequencies of the rotary embedding as well.
        for weight in self._body.parameters():
            weight.data = weight.data.to(dtype)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence, and fills the prefixes; see base.Model.  # [num_sequences, 1]."""
        layout = packed.layout or Layout.of(packed.lengths)
        hidden = self._body(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            use_cache=False,
            sequence_lengths=packed.lengths,
            layout=layout,
            causal_parts=self._parts(packed, layout),
        ).last_hidden_state[0]  # [num_tokens, hidden]
        rows = hidden.index_select(0, layout.lasts(len(packed.prefixes))).float()
        logits: torch.Tensor = rows @ self._head  # [num_sequences]
        return logits[:, None]

    def _parts(self, packed: PackedTokens, layout: Layout) -> CausalParts | GatheredParts:
        contexts = packed.contexts or (None,) * len(packed.lengths)
        if self._kernel is None:
            return CausalParts(contexts, packed.prefixes)
        return GatheredParts(contexts, packed.prefixes, layout, self._kernel)


def check_decoder(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError if a decoder attends in a way that the packed pass does not."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds or config.get("use_sliding_window") or config.get("use_bidirectional_attention"):
        raise ModelLoadError(f"{where}: attention other than to all that stands before is not supported")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "?"
    if kind not in {"default", "linear", "yarn", "llama3"}:
        raise ModelLoadError(
            f"{where}: rotary embedding {str(kind)[:40]!r} makes scores depend on neighbours: not supported"
        )


def prefix_token_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """What the keys and values of one token take in all layers; `config` is config.json's."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    width = int(config.get("num_key_value_heads") or heads) * size
    return 2 * int(config["num_hidden_layers"]) * width * dtype.itemsize
