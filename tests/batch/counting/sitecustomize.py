"""Notes which pairs the workers of a command score, and holds one: Python imports this first where it is."""

import itertools
import os
import sys
import threading

place, most = os.environ.get("COUNT_SCORED"), os.environ.get("MOST_SCORED")
if (place or most) and "--multiprocessing-fork" in sys.orig_argv:
    from rerank_grpc.batch.scoring import Scorer

    score, numbers = Scorer.score, itertools.count()

    def noted(self, prepared, **options):
        if most and next(numbers) >= int(most):
            threading.Event().wait()  # until the test has it killed
        found = score(self, prepared, **options)
        if place:
            with open(place, "a") as file:
                pairs = sum(len(row.documents) for row in prepared.rows)
                file.write(f"{prepared.block.number} {pairs}\n")
        return found

    Scorer.score = noted  # type: ignore[method-assign]
