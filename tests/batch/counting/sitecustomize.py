"""Notes which pairs the workers of a command score: Python imports this first where it is found."""

import os
import sys

place = os.environ.get("COUNT_SCORED")
if place and "--multiprocessing-fork" in sys.orig_argv:
    from rerank_grpc.batch.scoring import Scorer

    score = Scorer.score

    def noted(self, prepared, **options):
        found = score(self, prepared, **options)
        with open(str(place), "a") as file:
            file.write(f"{prepared.block.number} {sum(len(row.documents) for row in prepared.rows)}\n")
        return found

    Scorer.score = noted  # type: ignore[method-assign]
