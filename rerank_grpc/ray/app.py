"""The application: `serve run rerank_grpc.ray.app:build model=embedded replicas=2`, or a file of Serve's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rerank_grpc import __version__
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.limits import LIMITS
from rerank_grpc.ray.arguments import Flags, ReplicaPlan, lacking, read_arguments, settings_of
from rerank_grpc.ray.autoscaling import QueuedSeconds
from rerank_grpc.ray.deployment import RerankReplica, most_ongoing
from rerank_grpc.ray.pins import REMEDY, check_ray, missing_names
from rerank_grpc.registry.loading import Loader

log = logging.getLogger("ray.serve")

NAME = "Rerank"
# A replica that stops has to outlast the longest call, and Serve's own wait before it.
SHUTDOWN_SECONDS = LIMITS.deadline_seconds + 10.0
# A replica that does not answer Serve three times in a row is replaced.
HEALTH_PERIOD_SECONDS, HEALTH_TIMEOUT_SECONDS = 2.0, 4.0
# More work has replicas start soon, and less has them stop late: a start takes seconds to minutes.
UP_SECONDS, DOWN_SECONDS, LOOK_BACK_SECONDS = 2.0, 120.0, 15.0


def build(arguments: Mapping[str, Any]) -> Any:
    """Makes the application of arguments; raises ConfigurationError where they or this Ray will not do.

    A replica that fits on no node of the cluster is warned of: a cluster may grow, and Serve waits for it.
    """
    version = check_ray()
    for line in missing_names():
        raise ConfigurationError(f"Ray {version}: {line}: {REMEDY}")
    plan, flags = read_arguments(arguments)
    if reason := lacking(plan.resources, _nodes()):
        log.warning("%s", reason)
    return application(plan, flags)


def application(plan: ReplicaPlan, flags: Flags, loader: Loader | None = None) -> Any:
    """Makes the application of a plan and the server's options; `loader` is in place of the real one."""
    from ray import serve

    options: dict[str, Any] = {
        "name": NAME,
        "max_ongoing_requests": most_ongoing(settings_of(flags)),
        "graceful_shutdown_timeout_s": SHUTDOWN_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
        "ray_actor_options": {"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        "logging_config": {"enable_access_log": False},
        **counts(plan),
    }
    deployment: Any = serve.deployment(RerankReplica)
    return deployment.options(**options).bind(flags, loader, __version__)


def counts(plan: ReplicaPlan) -> dict[str, Any]:
    """Makes the options by which a deployment has a plan's numbers of replicas, as in a file of Serve's."""
    if plan.most == plan.least:
        return {"num_replicas": plan.least}
    policy = {
        "policy_function": f"{QueuedSeconds.__module__}:{QueuedSeconds.__name__}",
        "policy_kwargs": {"target": plan.queued_seconds},
    }
    scaling = {
        "min_replicas": plan.least,
        "max_replicas": plan.most,
        "upscale_delay_s": UP_SECONDS,
        "downscale_delay_s": DOWN_SECONDS,
        "look_back_period_s": LOOK_BACK_SECONDS,
        "policy": policy,
    }
    return {"autoscaling_config": scaling}


def _nodes() -> Sequence[Mapping[str, float]]:
    """Lists what the nodes have, by Ray's names; nothing where no cluster is connected."""
    import ray

    if not ray.is_initialized():
        return []
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]
