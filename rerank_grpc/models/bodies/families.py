"""The families that have bodies of their own, and the descriptions of their networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from rerank_grpc.models.bodies import bert, llama, modernbert
from rerank_grpc.models.bodies.plan import ClassifierPlan, DenseStep, NetworkPlan, NoPlan

Values: TypeAlias = Mapping[str, Any]  # of a config.json


class OwnFamily(NamedTuple):
    """How checkpoints of one family become bodies."""

    network: Callable[[Values], NetworkPlan]
    classifier: Callable[[Values], ClassifierPlan]
    prefix: str  # before the names of a body's weights, where a head stands beside it


OWN_FAMILIES: Mapping[str, OwnFamily] = {
    **{
        family: OwnFamily(
            partial(bert.network_plan, family),
            lambda _, family=family: bert.classifier_plan(family),  # type: ignore[misc]
            prefix,
        )
        for family, prefix in bert.PREFIXES.items()
    },
    "modernbert": OwnFamily(modernbert.network_plan, modernbert.classifier_plan, modernbert.PREFIX),
    **{
        family: OwnFamily(
            partial(llama.network_plan, family), lambda _: (DenseStep("score", bias=False),), llama.PREFIX
        )
        for family in llama.FAMILIES
    },
}


def plan_of(family: str, values: Values) -> NetworkPlan:
    """Describes the body of a checkpoint; raises NoPlan where no own body computes it."""
    own = OWN_FAMILIES.get(family)
    if own is None:
        raise NoPlan(f"family {family}")
    try:
        return own.network(values)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Values of other types than a config has: transformers says what is wrong with them.
        raise NoPlan(f"settings that are odd ({str(error)[:80]})") from error
