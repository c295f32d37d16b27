"""What the packed families share: one pass through an encoder's body, and the rows to pool."""

from __future__ import annotations

import torch

from rerank_grpc.kernels.base import Layout
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.encoder import Encoder


def run_body(
    body: torch.nn.Module | Encoder,
    packed: PackedTokens,
    *,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
) -> torch.Tensor:
    """Runs the layers over all sequences at once; returns  # [num_tokens, hidden]."""
    if isinstance(body, Encoder):
        return body(
            input_ids=packed.input_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            layout=packed.layout or Layout.of(packed.lengths),
        )
    output = body(
        input_ids=packed.input_ids[None],
        position_ids=position_ids[None],
        token_type_ids=token_type_ids[None],
        sequence_lengths=packed.lengths,
        layout=packed.layout,
    )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


def first_rows(hidden: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Picks the first token's row of each sequence, in float32  # [num_sequences, hidden]."""
    layout = packed.layout or Layout.of(packed.lengths)
    return hidden.index_select(0, layout.firsts).float()


def mean_rows(hidden: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Averages the rows of each sequence, in float32  # [num_sequences, hidden]."""
    return torch.stack([rows.float().mean(dim=0) for rows in hidden.split(packed.lengths)])
