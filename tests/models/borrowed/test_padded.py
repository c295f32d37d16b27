"""Padding is bounded by grouping, which changes no score (test_parity.py) and is a pure function."""

import random
from pathlib import Path

import pytest
import torch

from rerank_grpc.kernels.base import Layout
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.borrowed.padded import WORTHWHILE_PADDING, Padded, by_length
from tests.conftest import load


def padding_of(lengths: list[int], group: list[int]) -> int:
    own = [lengths[index] for index in group]
    return max(own) * len(own) - sum(own)


def test_sequences_of_like_length_go_together():
    assert by_length([10, 500, 10, 490], padding=20) == [[1, 3], [0, 2]]


def test_every_sequence_is_in_one_group_and_no_group_is_padded_by_more_than_is_worth_a_pass():
    chance = random.Random(7)
    for _ in range(200):
        lengths = [
            chance.choice([3, 10, 60, 128, 512]) + chance.randint(0, 9) for _ in range(chance.randint(1, 60))
        ]
        groups = by_length(lengths)
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        assert all(padding_of(lengths, group) <= WORTHWHILE_PADDING for group in groups)


def test_nothing_makes_no_group():
    assert by_length([]) == []


class Counted(torch.nn.Module):
    """Counts the rows and columns that pass through a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.shapes = network, list[torch.Size]()

    def forward(self, *, input_ids: torch.Tensor, **inputs: torch.Tensor) -> object:
        self.shapes.append(input_ids.shape)
        return self.network(input_ids=input_ids, **inputs)


def test_one_long_document_beside_many_short_ones_costs_its_own_tokens(directories: dict[str, Path]):
    model = load(directories["deberta"], precision="fp32")
    assert isinstance(model, Padded)
    counted = model._network = Counted(model._network)
    lengths = (9,) * 60 + (120,) + (10,) * 60
    ids = torch.randint(5, 1_000, (sum(lengths),), generator=torch.Generator().manual_seed(7))
    places = torch.cat([torch.arange(length) for length in lengths])
    logits = model.forward(PackedTokens(ids, places, torch.zeros_like(ids), Layout.of(lengths)))
    computed = sum(rows * columns for rows, columns in counted.shapes)
    assert computed <= 1.5 * sum(lengths)
    for index in (0, 60, 61):
        start = sum(lengths[:index])
        own, layout = slice(start, start + lengths[index]), Layout.of(lengths[index : index + 1])
        alone = PackedTokens(ids[own], places[own], torch.zeros_like(ids[own]), layout)
        torch.testing.assert_close(model.forward(alone), logits[index : index + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [(7,), (30, 4, 30)])
def test_outputs_come_in_the_order_of_the_batch(lengths: tuple[int, ...], directories: dict[str, Path]):
    model = load(directories["electra"], precision="fp32")
    ids = torch.arange(5, 5 + sum(lengths))
    places = torch.cat([torch.arange(length) for length in lengths])
    packed = PackedTokens(ids, places, torch.zeros_like(ids), Layout.of(lengths))
    assert model.forward(packed).shape == (len(lengths), 1)
