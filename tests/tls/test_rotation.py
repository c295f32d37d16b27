"""R23: a certificate is rotated under load, and broken ones are put in its place."""

from benchmarks.rotation import run


def test_no_call_fails_while_certificates_are_rotated_and_broken_ones_refused():
    """Has four rotations, of every way, and two mishaps; benchmarks/rotation.py has more of each."""
    figures = run(rotations=4, settle_seconds=0.5)
    assert figures.failures == []
    assert (figures.taken, figures.refused) == (4, 2)
    assert min(figures.calls.values()) > 50
