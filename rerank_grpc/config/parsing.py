"""From the text that an operator types to a value; a reader raises ValueError with its objection."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rerank_grpc.config.settings import ANY_NAME, ModelSpec
from rerank_grpc.config.targets import read_target
from rerank_grpc.errors import suggestion
from rerank_grpc.files.sockets import SCHEME, socket_path

T = TypeVar("T")
NAME = re.compile(r"[\w.:/@+-]{1,200}")


def text(text: str) -> str:
    """Reads a name, address or path as it is."""
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("is empty, or has spaces around it or control characters in it")
    return text


def host(name: str) -> str:
    """Reads an address or a name to listen on, never the path of a Unix socket."""
    if "/" in name or name.startswith(("unix:", "unix-abstract:")):
        raise ValueError("is no address: name an IP address or a host; this port is never a Unix socket")
    return text(name)


def host_or_socket(name: str) -> str:
    """Reads an address or a name to listen on, or unix: and the absolute path of a socket."""
    path = socket_path(name)
    if path is None:
        if "/" in name or name.startswith("unix-abstract:"):
            raise ValueError(
                "is no address: name an IP address, a host, or a socket as unix:/run/rerank.sock"
            )
        return text(name)
    if not path.is_absolute() or path.name == "":
        raise ValueError("is no absolute path of a socket, such as unix:/run/rerank.sock")
    return f"{SCHEME}{text(str(path))}"


def targets(text: str) -> tuple[str, ...]:
    """Reads one target of gRPC, or several between commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(map(read_target, parts or [text]))


def origin(text: str) -> str:
    """Reads an origin as browsers write it, or * for all; null, which strangers share, is none."""
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text):
        raise ValueError(
            "is no origin such as https://app.example.com (in lower case, without a path), nor *"
        )
    return text


def or_none(word: str, read: Callable[[str], T]) -> Callable[[str], T | None]:
    """Makes a reader that reads one word ("off", "auto") as None, and any other text as `read` does."""
    return lambda text: None if text == word else read(text)


def one_of(*choices: str) -> Callable[[str], str]:
    """Makes a reader of one of several words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}{suggestion(text, choices)}")
        return text

    return read


def count(text: str) -> int:
    """Reads a whole number above 0."""
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) == 0:
        raise ValueError("is not a whole number above 0")
    return int(text)


def port(text: str) -> int:
    """Reads a port; 0 is any free one."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65_535:
        raise ValueError("is not a port (1 to 65535, or 0 for any free one)")
    return int(text)


def seconds(text: str) -> float:
    """Reads a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise ValueError("is not a number of seconds above 0 and up to 86400")
    return value


def amount(text: str) -> int:
    """Reads an amount of memory such as 20GiB."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(MiB|GiB|TiB|MB|GB|TB)", text)
    if match is None or float(match[1]) == 0:
        raise ValueError("is not an amount of memory such as 20GiB, nor off")
    base, power = (1024 if "i" in match[2] else 1000), "MGT".index(match[2][0]) + 2
    return int(float(match[1]) * base**power)


def device(text: str) -> str:
    """Reads "auto", "cpu", "cuda" or "cuda:N"."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise ValueError("is none of auto, cpu, cuda, cuda:0, cuda:1 ...")
    return text


def model(text: str) -> ModelSpec:
    """Reads NAME=DIR_OR_HUB_ID; without a name the basename is it."""
    name, equals, source = text.partition("=")
    if not equals:
        name, source = re.split(r"[/\\]", text.rstrip("/\\"))[-1].partition("@")[0], text
    if not source or not NAME.fullmatch(name):
        raise ValueError("is not NAME=DIR_OR_HUB_ID, nor a directory or hub id alone")
    return ModelSpec(name, source)


def alias(text: str) -> tuple[str, str]:
    """Reads ALIAS=NAME, or *=NAME for every unknown name."""
    alias, equals, name = text.partition("=")
    if not equals or not name or not (alias == ANY_NAME or NAME.fullmatch(alias)):
        raise ValueError("is not ALIAS=NAME, nor *=NAME for every unknown name")
    return alias, name


def calibration(text: str) -> tuple[str, Path]:
    """Reads NAME=FILE, a model and the file of its calibration."""
    name, equals, file = text.partition("=")
    if not equals or not file or not NAME.fullmatch(name):
        raise ValueError("is not NAME=FILE, a model's name and its calibration")
    return name, Path(file)
