"""What the packed families share: one pass through an encoder's body, and the rows to pool."""

from __future__ import annotations

from itertools import accumulate

import torch

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
            sequence_lengths=packed.lengths,
        )
    output = body(
        input_ids=packed.input_ids[None],
        position_ids=position_ids[None],
        token_type_ids=token_type_ids[None],
        sequence_lengths=packed.lengths,
    )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


def run_first_rows(
    body: torch.nn.Module | Encoder,
    packed: PackedTokens,
    *,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
) -> torch.Tensor:
    """The first row of each sequence after the last layer, in float32  # [num_sequences, hidden]."""
    rows = run_body(body, packed, position_ids=position_ids, token_type_ids=token_type_ids)
    return rows.float() if isinstance(body, Encoder) else first_rows(rows, packed.lengths)


def first_rows(hidden: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Picks the first token's row of each sequence, in float32  # [num_sequences, hidden]."""
    starts = torch.tensor(list(accumulate(lengths[:-1], initial=0)))
    if hidden.is_cuda:  # a copy out of pinned memory does not make the host wait
        starts = starts.pin_memory().to(hidden.device, non_blocking=True)
    return hidden.index_select(0, starts).float()


def mean_rows(hidden: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Averages the rows of each sequence, in float32  # [num_sequences, hidden]."""
    return torch.stack([rows.float().mean(dim=0) for rows in hidden.split(lengths)])
