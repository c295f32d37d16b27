"""`rerank-grpc batch`: reranks a file of queries and candidates, here or on a cluster of Ray."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rerank_grpc.cli.process import needs
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.config.environment import provide
from rerank_grpc.config.reading import read_settings


def run(parsed: argparse.Namespace) -> int:
    """Reranks a file: 0 if all rows were scored, 3 if some were bad; raises ConfigurationError."""
    from rerank_grpc.batch.job import Job, Run
    from rerank_grpc.batch.progress import RunCounts, RunProgress

    settings = read_settings(parsed.flags)
    provide_threads()  # the workers inherit it
    job = Job(
        input=Path(parsed.input),
        output=Path(parsed.output),
        source=parsed.model,
        settings=settings,
        top_n=parsed.top_n,
        instruction=parsed.instruction,
        block_pairs=parsed.block_pairs,
        workers=parsed.workers,
    )
    _check_packages(job.input, job.output)
    progress = RunProgress(RunCounts(), Screen.of(sys.stderr).width)
    if parsed.ray is not None:
        provide("RAY_DATA_USE_DATASOURCE_V2", "0")  # its reader makes many small files one block
        with needs("batch --ray", 'pip install "rerank-grpc[server,ray]"'):
            from rerank_grpc.batch.on_ray import RayRun
        return RayRun(job, progress, parsed.ray).run()
    return Run(job, progress).run()


def _check_packages(*paths: Path) -> None:
    """Raises ConfigurationError where Parquet is asked for and pyarrow is missing."""
    if any(path.suffix in (".parquet", ".pq") for path in paths):
        with needs("batch with Parquet", 'pip install "rerank-grpc[batch]"'):
            import pyarrow  # noqa: F401  # read where rows are; missing here, it is told before any work
