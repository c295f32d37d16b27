"""What the service's values become on the wire."""

import pytest

from rerank_grpc.server import convert
from rerank_grpc.types import Health, ModelInfo, State


@pytest.mark.parametrize("serving", [True, False])
def test_a_model_says_apart_from_its_state_whether_a_call_would_be_answered(serving: bool):
    model = convert.model_to(ModelInfo("m", State.UNLOADED, serving=serving))
    health = convert.health_to(Health("m", State.UNLOADED, "1.2.3", serving=serving))
    assert (model.serving, health.serving) == (serving, serving)
