"""The arguments of an application: how many replicas, of what size, and the server's own options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_grpc.config.options import SERVER_OPTIONS, OptionError
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import suggestion

# Serve listens, and each replica is one of several behind an address.
NOT_HERE = (
    "host",
    "port",
    "admin-host",
    "admin-port",
    "metrics-host",
    "metrics-port",
    "tls-cert",
    "tls-key",
    "tls-client-ca",
    "connection-age",
    "grace",
)
Flags = dict[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """How many replicas an application has, and the share of a node that each takes.

    Between `least` and `most` there are as many as keep the work that waits in each below `queued_seconds`.
    `cpus` and `gpus` may be fractions: replicas with 0.5 GPUs share one in pairs, each with its own model.
    """

    least: int = 1
    most: int = 1
    queued_seconds: float = 1.0
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def resources(self) -> dict[str, float]:
        """The resources of a replica, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("is not a number from 0")
    return number


def _seconds(text: str) -> float:
    if not (number := _number(text)):
        raise ValueError("is not a time above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise ValueError("is not a whole number from 1 to 10,000")
    return int(text)


def _gpus(text: str) -> float:
    number = _number(text)
    if number > 1 and number % 1:
        raise ValueError("is no share of one GPU, nor a whole number of them")
    return number


# Each name with its reader, whose ValueError ends a sentence about the text, and its meaning.
PLAN_OPTIONS: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "replicas": (_count, "N", "how many replicas there are; or their bounds:"),
    "min-replicas": (_count, "N", "the least number of replicas"),
    "max-replicas": (_count, "N", "the most, as many as the waiting work needs"),
    "queued-seconds": (_seconds, "SECONDS", "how much work may wait in each before there are more"),
    "cpus": (_number, "CPUS", "the CPUs that a replica takes"),
    "gpus": (_gpus, "GPUS", "the GPUs that a replica takes; 0.5 is half of one"),
}


def read_plan(texts: Mapping[str, str]) -> ReplicaPlan:
    """Reads a plan of texts by the names of PLAN_OPTIONS; raises OptionError, naming one."""
    values = {}
    for name, text in texts.items():
        try:
            values[name] = PLAN_OPTIONS[name][0](text)
        except ValueError as error:
            raise OptionError(f"{name}: {text!r} {error}") from None
    fixed = values.pop("replicas", None)
    least, most = values.pop("min-replicas", None), values.pop("max-replicas", None)
    if fixed is not None and (least or most):
        raise OptionError("replicas: not together with min-replicas and max-replicas, which bound it")
    least = fixed or least or 1
    most = fixed or most or least
    if most < least:
        raise OptionError(f"max-replicas: {most} is below min-replicas, which is {least}")
    own = {name.replace("-", "_"): value for name, value in values.items()}
    return ReplicaPlan(least=least, most=most, **own)


def read_arguments(arguments: Mapping[str, Any]) -> tuple[ReplicaPlan, Flags]:
    """Reads an application's arguments: a plan, and the server's options as flags.

    Values are those of YAML or a command line. Raises OptionError for an unknown name, a value of a type that
    no option has, or one that the server refuses.
    """
    options = {option.name: option for option in SERVER_OPTIONS}
    known = [*PLAN_OPTIONS, *(name for name in options if not unused(name))]
    plan: dict[str, str] = {}
    flags: Flags = {}
    for name, value in arguments.items():
        if unused(name):
            raise OptionError(
                f"{name}: not an argument on Ray: Serve listens, by grpc_options and http_options"
            )
        if name not in known:
            raise OptionError(f"{name}: unknown argument{suggestion(str(name), known)}")
        if name in PLAN_OPTIONS:
            plan[name] = _text(name, value)
        elif options[name].repeatable:
            listed = value if isinstance(value, list) else [value]
            flags[name] = [_text(name, each) for each in listed]
        else:
            flags[name] = _text(name, value)
    return read_plan(plan), flags


def unused(name: str) -> bool:
    """Tells whether an option of the server has no meaning in a replica."""
    return name in NOT_HERE or name.startswith("rest-")


def settings_of(flags: Flags) -> ServerSettings:
    """Reads the settings of flags, without the tokens, whose file only replicas need to have."""
    return read_settings({name: value for name, value in flags.items() if name != "token-file"})


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        off = ': write "off"' if value is False else ""
        raise OptionError(f"{name}: takes a string or a number, not {type(value).__name__}{off}")
    return str(value)


def lacking(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """Says in a line why no node can hold a replica; "" where one can, or none is known."""
    if not nodes or any(_fits(resources, node) for node in nodes):
        return ""
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
    largest = ", ".join(f"{max(node.get(name, 0.0) for node in nodes):g} {name}" for name in resources)
    return (
        f"no node of this cluster can hold a replica, which takes {wanted}: the most that one has is "
        f"{largest}; lower cpus or gpus, or add a larger node"
    )


def _fits(resources: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in resources.items())
