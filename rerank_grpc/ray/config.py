"""The files that a cluster is told by: Serve's configuration, and KubeRay's RayService around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.limits import LIMITS
from rerank_grpc.ray.app import NAME, build, counts
from rerank_grpc.ray.arguments import ReplicaPlan
from rerank_grpc.ray.ingress import add_services

GRPC_PORT, HTTP_PORT = 9_000, 8_000
# Serve ends a call that takes longer; the replica itself ends it before.
TIMEOUT_SECONDS = LIMITS.deadline_seconds + 10.0
# A pod that ends has to outlast a replica's drain.
POD_GRACE_SECONDS = 150
# HAProxy asks each replica this often, and again soon after no answer: a replica that hangs twice is left
# within 6.5 s, and its calls end as UNAVAILABLE, which clients call again.
HEALTH_CHECK = "2s on-marked-down shutdown-sessions"
# Serve reads these when a process starts: they belong to every node, and to `ray start`.
ENVIRONMENT: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(LIMITS.reply_bytes),
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": HEALTH_CHECK,
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # A proxy that is not ready three times in a row is killed, and `serve run` fails: 5 s are few.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
TOKENS_SECRET = "rerank-tokens"


def serve_config(
    arguments: Mapping[str, Any], plan: ReplicaPlan, *, name: str = "rerank", port: int = GRPC_PORT
) -> dict[str, Any]:
    """Makes Serve's configuration of one application.

    HTTP stays on: KubeRay's readiness probe asks it. The numbers of replicas are the deployment's, not among
    the arguments: when these change, Serve replaces every replica.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},
        "grpc_options": {
            "port": port,
            "request_timeout_s": TIMEOUT_SECONDS,
            # The replica answers reflection itself, where tokens guard it.
            "enable_reflection": False,
            "grpc_servicer_functions": [f"{add_services.__module__}:{add_services.__name__}"],
        },
        "applications": [
            {
                "name": name,
                "route_prefix": "/",
                "import_path": f"{build.__module__}:{build.__name__}",
                "args": dict(arguments),
                "deployments": [{"name": NAME, **counts(plan)}],
            }
        ],
    }


def ray_service(config: Mapping[str, Any], plan: ReplicaPlan, *, image: str, version: str) -> dict[str, Any]:
    """Makes KubeRay's RayService: a head without replicas, and workers of one replica each.

    Its ports have the names by which KubeRay finds them.
    """
    port = config["grpc_options"]["port"]
    worker = {**_container("ray-worker", image, port), "resources": _resources(plan)}
    head = _container("ray-head", image, port)
    head["ports"].append({"containerPort": 6_379, "name": "gcs"})
    head["resources"] = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "rerank"},
        "spec": {
            "serveConfigV2": Indented(dump(config)),
            "rayClusterConfig": {
                "rayVersion": version,
                "enableInTreeAutoscaling": plan.most > plan.least,
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _pod(head)},
                "workerGroupSpecs": [
                    {
                        "groupName": "replicas",
                        "replicas": plan.least,
                        "minReplicas": plan.least,
                        "maxReplicas": plan.most,
                        "rayStartParams": {},
                        "template": _pod(worker),
                    }
                ],
            },
        },
    }


def _container(name: str, image: str, port: int) -> dict[str, Any]:
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in ENVIRONMENT.items()]
    # Tokens come from a Secret, which need not exist.
    secret = {"secretKeyRef": {"name": TOKENS_SECRET, "key": "tokens", "optional": True}}
    environment.append({"name": "RERANK_TOKENS", "valueFrom": secret})
    ports = [{"containerPort": HTTP_PORT, "name": "serve"}, {"containerPort": port, "name": "serve-grpc"}]
    return {"name": name, "image": image, "env": environment, "ports": ports}


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    # Kubernetes' variables of a Service named rerank would look like settings.
    spec = {
        "terminationGracePeriodSeconds": POD_GRACE_SECONDS,
        "enableServiceLinks": False,
        "containers": [container],
    }
    return {"metadata": {"labels": {"app": "rerank"}}, "spec": spec}


def _resources(plan: ReplicaPlan) -> dict[str, Any]:
    requests = {"cpu": f"{max(plan.cpus, 1.0):g}", "memory": "4Gi"}
    limits = {"memory": "4Gi"}
    if plan.gpus:
        # Pods take whole GPUs; Ray shares one among replicas.
        limits["nvidia.com/gpu"] = f"{max(1, round(plan.gpus + 0.49))}"
    return {"requests": requests, "limits": limits}


class Indented(str):
    """A text of several lines, which YAML holds as it is."""


def dump(content: Mapping[str, Any]) -> str:
    """Writes YAML, keys in their order."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Holds a Indented as it is."""

    Dumper.add_representer(
        Indented, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    )
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=100)
    return text
