"""Lays out a calibration for people: its map, its figures, its thresholds, and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import ROUND_FLOOR, Context

from rerank_grpc.calibration.calibration import CLEAR_AUC, Calibration, ProposedThreshold
from rerank_grpc.calibration.maps import IsotonicMap, PlattMap
from rerank_grpc.cli.terminal import Screen, table

# Rounded up, a threshold would leave out the pair that it was taken from.
_FLOOR = Context(prec=5, rounding=ROUND_FLOOR)
ENOUGH_FOR_ISOTONIC = 1_000  # pairs, by scikit-learn's manual on calibration


def described(found: Calibration, screen: Screen) -> Iterator[str]:
    """Yields the lines that describe a calibration."""
    model, fitted, held_out = found.model, found.fitted_on, found.held_out
    yield f"{model.name}, revision {model.revision}, {model.precision}; by {found.made_by}, {found.made}"
    for text, counts in (("fitted on", fitted), ("measured on", held_out)):
        yield (
            f"{text} {counts.queries:,} queries: {counts.relevant:,} relevant pairs, "
            f"{counts.irrelevant:,} irrelevant"
        )
    yield _formula(found.map)
    yield ""
    figures = found.figures
    before, after = figures.before, figures.after
    rows = [
        ("ECE", f"{before.ece:.4f}", f"{after.ece:.4f}", f"{figures.ece_of_chance:.4f} would be chance"),
        ("Brier score", f"{before.brier:.4f}", f"{after.brier:.4f}", ""),
        (
            "AUC",
            f"{before.auc:.4f}",
            f"{after.auc:.4f}",
            f"of the logit; {figures.auc_low:.4f} to {figures.auc_high:.4f} with 95 % confidence",
        ),
    ]
    yield from table(("held out", "before", "after", ""), rows, screen)
    yield ""
    if not figures.clean_separation:
        yield (
            f"no clean separation: the AUC of {before.auc:.2f} is below {CLEAR_AUC}: relevant and "
            "irrelevant pairs have much the same logits, so no threshold is proposed"
        )
        return
    of_held_out = ("held out above", "precision", "95 % interval", "recall")
    head = ("for", "calibrated_score", "relevance_score", "logit", *of_held_out)
    yield from table(head, [_row(each) for each in found.thresholds], screen)


def cautions(found: Calibration, *, separated: bool) -> Iterator[str]:
    """Yields what speaks against using a calibration as it is."""
    counts = found.fitted_on
    if separated:
        yield (
            "a logit separates all relevant pairs of the fit from the others, so that the slope only says "
            "how few they are: judge more pairs"
        )
    if isinstance(found.map, IsotonicMap) and counts.relevant + counts.irrelevant < ENOUGH_FOR_ISOTONIC:
        few = f"fewer than {ENOUGH_FOR_ISOTONIC:,} pairs"
        yield f"an isotonic map of {few} follows chance: take --method platt"
    if isinstance(found.map, PlattMap) and found.map.slope == 0:
        yield (
            "a higher logit is no sign of relevance here, so that the map is a constant: are the judgements "
            "another collection's?"
        )
    figures = found.figures
    if figures.after.ece > max(0.05, 3 * figures.ece_of_chance):
        other = "isotonic" if isinstance(found.map, PlattMap) else "platt"
        error = f"{figures.after.ece:.3f}"
        yield f"the map's error on the held-out half, {error}, is no chance: try --method {other}"


def _formula(found: PlattMap | IsotonicMap) -> str:
    if isinstance(found, IsotonicMap):
        (first, low), (last, high) = found.knots[0], found.knots[-1]
        return (
            f"isotonic: {len(found.knots)} knots, from {low:.4f} at logit {first:g} to {high:.4f} at {last:g}"
        )
    sign = "-" if found.intercept < 0 else "+"
    return f"platt: 1 / (1 + exp(-({found.slope:.6g} · logit {sign} {abs(found.intercept):.6g})))"


def _row(each: ProposedThreshold) -> tuple[str, ...]:
    aim = f"{each.aim} {each.asked:g}"
    if each.calibrated_score is None or each.logit is None:
        return (aim, "not reachable", *[""] * 6)
    return (
        aim,
        _down(each.calibrated_score),
        "none" if each.relevance_score is None else _down(each.relevance_score),
        f"{float(_FLOOR.create_decimal(each.logit)):.5g}",
        f"{each.above:,}",
        *_precision(each),
        "" if each.recall is None else f"{each.recall:.3f}",
    )


def _precision(each: ProposedThreshold) -> tuple[str, str]:
    if each.precision is None:
        return ("no pair", "")
    return (f"{each.precision:.3f}", f"{each.precision_low:.3f} to {each.precision_high:.3f}")


def _down(value: float) -> str:
    return f"{math.floor(value * 10_000) / 10_000:.4f}"
