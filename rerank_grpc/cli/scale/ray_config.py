"""`rerank-grpc ray-config`: the files by which Ray Serve, or KubeRay, serves the models."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rerank_grpc.checkpoints.catalogue import read_catalogue
from rerank_grpc.checkpoints.disk import COMMIT
from rerank_grpc.checkpoints.lookup import Source
from rerank_grpc.cli.process import needs
from rerank_grpc.config import parsing
from rerank_grpc.config.options import SERVER_OPTIONS, Option
from rerank_grpc.config.reading import read_effective
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.ray.arguments import PLAN_OPTIONS, read_arguments, settings_of, unused

# What a replica takes is an argument of the application; how many there are is not.
SIZES = ("cpus", "gpus")
EXAMPLES = """\
examples:
  rerank-grpc ray-config --model BAAI/bge-reranker-v2-m3 --gpus 1 --replicas 2 > serve.yaml
  rerank-grpc ray-config --config rerank.toml --min-replicas 1 --max-replicas 8
  rerank-grpc ray-config --ray-service --image registry.internal/rerank-grpc:ray > ray-service.yaml

Takes the options of `serve`, in flags, variables and the file of --config, and
prints a file for `serve run` and `serve deploy`, or with --ray-service one for
KubeRay. Tokens are in neither: replicas read RERANK_TOKENS, or --token-file.
"""


def options() -> list[Option]:
    """Lists the options of `serve` that a replica has."""
    return [option for option in SERVER_OPTIONS if not unused(option.name)]


def port(text: str) -> int:
    """Reads a port; raises ArgumentTypeError."""
    try:
        return parsing.port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def run(parsed: argparse.Namespace) -> int:
    """Prints the file; raises ConfigurationError where Ray will not do, and OptionError for bad options."""
    with needs("Ray Serve", 'pip install "rerank-grpc[server,ray]"'):
        from rerank_grpc.ray.pins import check_ray

        version = check_ray()
        from rerank_grpc.ray import config
    given = dict(_given(parsed, list(PLAN_OPTIONS)))
    rows = read_effective(parsed.flags)
    values: dict[str, Any] = {
        row.name: list(row.texts) if row.option.repeatable else row.texts[0]
        for row in rows
        if row.option is not None and row.origins and not unused(row.name)
    }
    plan, flags = read_arguments({**values, **given})
    sizes = {name: getattr(plan, name) for name in SIZES if name in given}
    content = config.serve_config({**sizes, **values}, plan, port=parsed.grpc_port)
    if parsed.ray_service:
        content = config.ray_service(content, plan, image=parsed.image, version=version)
    print(f"# Written by `rerank-grpc ray-config`, for Ray {version}.")
    if not parsed.ray_service:
        print("# Every process of the cluster needs, before `ray start`:")
        for name, text in config.ENVIRONMENT.items():
            print(f"#   export {name}={text!r}" if " " in text else f"#   export {name}={text}")
        if "token-file" not in values:
            print("# And RERANK_TOKENS, or any caller is served.")
    for hub_id in unpinned(settings_of(flags)):
        print(f"# Replicas may load different revisions of {hub_id}: write --model {hub_id}@COMMIT.")
    print(config.dump(content), end="")
    return 0


def unpinned(settings: ServerSettings) -> Iterator[str]:
    """Yields the hub id of each model whose files may change between the starts of two replicas."""
    path = settings.catalogue
    # The file may be on the nodes alone.
    catalogue = read_catalogue(path if path is not None and path.is_file() else None)
    for model in settings.models:
        source = Source.read(model.source, catalogue)
        if source.public_id(settings.models_dir) and not COMMIT.fullmatch(source.revision):
            yield source.hub_id


def _given(parsed: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        text = getattr(parsed, name.replace("-", "_"))
        if text is not None:
            yield name, text
