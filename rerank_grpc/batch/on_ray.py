"""Scores blocks on a cluster of Ray, by Ray Data: read → map_batches, with actors of the engine.

Ray Data's own checkpoints follow its output blocks of 1 to 128 MiB, while scores are tiny, and hold every id
in memory. Here its rows are our blocks, and the journal says which of them are complete.
"""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from rerank_grpc import __version__
from rerank_grpc.batch.blocks import Block
from rerank_grpc.batch.job import BlockScorer, Job, Run
from rerank_grpc.batch.journal import STAGED, Facts, Journal
from rerank_grpc.batch.progress import RunProgress
from rerank_grpc.batch.workers import Done, Failed, Task, score_block
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.errors import ConfigurationError, RerankError

CONNECT_SECONDS = 10.0
PLACE_SECONDS = 300.0  # for the first actor to be placed, and to load the model
CONTEXT = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    # One of our blocks is a block of Ray's: small ones must neither be joined nor wait for others.
    "target_min_block_size": 1,
    "target_max_block_size": 1,
}
SCHEMA = pa.schema([("block", pa.int64()), ("content", pa.binary())])


class RayRun(Run):
    """A job whose blocks a cluster scores."""

    def __init__(self, job: Job, progress: RunProgress, address: str) -> None:
        super().__init__(job, progress)
        self._address = address

    def _workers(self, task: Task, journal: Journal) -> BlockScorer:
        return RayWorkers(task, self.job.workers, self._address, journal.folder.absolute())


@dataclass(frozen=True, slots=True)
class ClusterShare:
    """The part of the cluster that each actor takes, and the number of actors."""

    actors: int
    gpus: float
    cpus: float
    threads: int  # on CPUs, else 0

    @classmethod
    def of(cls, resources: dict[str, float], device: str, nodes: int, workers: int | None) -> ClusterShare:
        """Divides a cluster's resources; raises ConfigurationError where it has none for the model."""
        gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
        if device.startswith("cuda") or (device == "auto" and gpus):
            if not gpus:
                raise ConfigurationError("--ray: the cluster has no GPU: use --device cpu, or add a machine")
            return cls(min(workers or gpus, gpus), 1, 0, 0)
        actors = workers or nodes
        # Half a CPU each: Ray Data's tasks that read need some too, and would wait for ever without.
        if cpus < actors * 0.5 + 0.5:
            raise ConfigurationError(
                f"--ray: the cluster has {cpus:g} CPUs, too few for {actors} actors that hold a model: "
                "add a machine, or lower --workers"
            )
        return cls(actors, 0, 0.5, max(1, int(cpus // actors)))


class RayWorkers:
    """Scores blocks by actors, which read them from a folder that all machines of the cluster share."""

    def __init__(self, task: Task, count: int | None, address: str, folder: Path) -> None:
        self._folder = folder
        _connect(address)
        try:
            cluster: Any = ray  # whose functions have no types
            nodes = sum(node["Alive"] for node in cluster.nodes())
            self._share = ClusterShare.of(cluster.cluster_resources(), task.settings.device, nodes, count)
            if self._share.gpus:  # Ray shows an actor only its own GPU
                task = replace(task, settings=replace(task.settings, device="cuda"))
            self._task = task
            self.facts = self._probe()
        except BaseException:
            self.close()
            raise

    def _probe(self) -> Facts:
        """Loads the model in an actor for its facts, and to see that the cluster can place it."""
        share = self._share
        remote: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(BlockActor)
        actor: Any = remote.remote(self._task, share.threads)
        found: Facts | Failed
        try:
            found = ray.get(actor.facts.remote(), timeout=PLACE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ConfigurationError(
                f"--ray: the cluster has not placed and loaded the model within {PLACE_SECONDS:.0f} s: "
                f"an actor needs {share.gpus:g} GPUs and {share.cpus:g} CPUs that are free"
            ) from None
        except ray.exceptions.RayError as error:
            raise ConfigurationError(f"--ray: the model could not be loaded: {_reason(error)}") from None
        finally:
            ray.kill(actor)
        if isinstance(found, Failed):
            raise ConfigurationError(f"--ray: {found.text}")
        if (version := getattr(found, "version", "unknown")) != __version__:
            raise ConfigurationError(
                f"--ray: the cluster has version {version} of rerank-grpc, and this machine {__version__}: "
                "install the same on all machines"
            )
        return found

    def score(self, blocks: Iterator[Block], max_batch_tokens: int, done: Callable[[Done], None]) -> None:
        """Writes the blocks for the cluster, then has them scored; `done` takes each result."""
        paths = [self._staged(block) for block in blocks]
        if not paths:
            return
        context = ray.data.DataContext.get_current()
        for name, value in CONTEXT.items():
            setattr(context, name, value)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        share = self._share
        data = ray.data.read_parquet(
            [str(path) for path in paths], override_num_blocks=len(paths), schema=SCHEMA
        ).map_batches(
            BlockActor,
            fn_constructor_args=(self._task, share.threads, self.facts, max_batch_tokens),
            compute=ray.data.ActorPoolStrategy(size=share.actors),
            batch_size=1,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        try:
            for row in data.iter_rows():
                done(pickle.loads(row["done"]))
        except ray.exceptions.RayError as error:
            raise ConfigurationError(
                f"--ray: {_reason(error)}: the same command goes on after the last complete block"
            ) from None

    def _staged(self, block: Block) -> Path:
        """Writes a block where the cluster reads it, unless an earlier start has."""
        path = self._folder / f"{STAGED}{block.number:07d}-{block.digest}.parquet"
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            table = pa.table({"block": [block.number], "content": [pickle.dumps(block)]}, SCHEMA)
            pq.write_table(table, temporary)
            temporary.replace(path)
        return path

    def close(self) -> None:
        """Leaves the cluster, which ends what was started there."""
        ray.shutdown()


class BlockActor:
    """A loaded model on a machine of the cluster, which scores one block a call."""

    def __init__(
        self, task: Task, threads: int, first: Facts | None = None, max_batch_tokens: int = 0
    ) -> None:
        """Loads the model, which must be as that of the `first` actor."""
        provide_threads()
        from rerank_grpc.batch.scoring import Scorer

        if max_batch_tokens:
            engine = replace(task.settings.engine, max_batch_tokens=max_batch_tokens)
            task = replace(task, settings=replace(task.settings, engine=engine))
        self._task, self._budget = task, max_batch_tokens
        self._scorer: Scorer | None = None
        self._failure = ""
        try:
            scorer = Scorer(task.source, task.settings, threads or None)
            if first is not None:
                first.check_same(scorer.facts, f"the machine {socket.gethostname()}")
            self._scorer = scorer
        except (ConfigurationError, RerankError) as error:
            self._failure = str(error)

    def facts(self) -> Facts | Failed:
        """Describes the model, or says why it could not be loaded."""
        return Failed(self._failure) if self._scorer is None else self._scorer.facts

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        if self._scorer is None:
            raise RuntimeError(self._failure)
        done = []
        for content in batch["content"]:
            prepared = self._scorer.prepare(pickle.loads(content))
            done.append(pickle.dumps(score_block(self._task, self._scorer, prepared, self._budget)))
        return {"done": done}


def _connect(address: str) -> None:
    """Joins the cluster; raises ConfigurationError. Ray itself would try an address for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in host:
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigurationError(
                f"--ray: no cluster answers at {address} ({error.strerror or error}): "
                "start one by 'ray start --head'"
            ) from None
    try:
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigurationError(
            f"--ray: no cluster answers at {address} ({_reason(error)}): start one by 'ray start --head'"
        ) from None


def _reason(error: BaseException) -> str:
    """The last line that says something of an error, whose text may hold another machine's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
