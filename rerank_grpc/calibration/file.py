"""The file of a calibration: JSON, read strictly, and replaced only by a whole one."""

from __future__ import annotations

import enum
import json
import math
import os
import stat
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.calibration.maps import BadField
from rerank_grpc.errors import ConfigurationError, one_line
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.whole import write_whole

FORMAT = "rerank-grpc calibration"
VERSION = 1
MOST_BYTES = 1 << 20
_LONGEST_TEXT = 100_000  # characters, as of an instruction
_LARGEST_COUNT = 1 << 53
_REMEDY = "give a file that `rerank-grpc calibrate` has written, unchanged"


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads a calibration; raises ConfigurationError with the file, the field and what was expected."""
    place = one_line(os.fspath(path))
    try:
        text = _content(Path(path)).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except OSError as error:
        raise ConfigurationError(f"{place}: {obstacle(path, error)}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{place}: is not UTF-8: {_REMEDY}") from None
    except BadField as error:
        raise ConfigurationError(f"{place}: {error}: {_REMEDY}") from None
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{place}: line {error.lineno}: is not JSON ({error.msg}): {_REMEDY}"
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets within brackets
        raise ConfigurationError(f"{place}: is not JSON of a calibration: {_REMEDY}") from None
    try:
        return _read_envelope(value)
    except BadField as error:
        raise ConfigurationError(f"{place}: {one_line(str(error))}: {_REMEDY}") from None


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Writes a calibration, so that a file of that name is a whole one at any time; raises OSError."""
    value = {"format": FORMAT, "version": VERSION, **_written(calibration)}
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(Path(path), f"{text}\n".encode())


def _content(path: Path) -> bytes:
    # Opening a FIFO without a writer would wait for one.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise BadField("the path", "a regular file is expected")
        with open(number, "rb", closefd=False) as file:
            content = file.read(MOST_BYTES + 1)
    finally:
        os.close(number)
    if len(content) > MOST_BYTES:
        raise BadField("the file", f"at most {MOST_BYTES:,} bytes are expected")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise BadField(name, "a finite number is expected")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadField(one_line(twice[:100]), "one value is expected, and there are several")
    return found


def _read_envelope(value: Any) -> Calibration:
    """Reads the whole content; raises BadField."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BadField("format", f'an object with "format": "{FORMAT}" is expected')
    version = value.get("version")
    if version != VERSION or isinstance(version, bool):
        raise BadField("version", f"{VERSION} is expected, the one that this release reads")
    rest = {name: each for name, each in value.items() if name not in ("format", "version")}
    found: Calibration = _read_object(Calibration, rest, "")
    return found


def _read_object(kind: Any, value: Any, place: str) -> Any:
    """Reads an object as a dataclass, field by field."""
    prefix = f"{place}." if place else ""
    if not isinstance(value, Mapping):
        raise BadField(place, "an object is expected")
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind) if each.init]
    for name in value:
        if name not in names:
            raise BadField(f"{prefix}{name[:100]}", f"no such field is known; these are: {', '.join(names)}")
    for name in names:
        if name not in value:
            raise BadField(f"{prefix}{name}", "is missing")
    read = {name: _read_value(hints[name], value[name], f"{prefix}{name}") for name in names}
    try:
        return kind(**read)
    except BadField as error:
        raise BadField(f"{prefix}{error.name}", error.expected) from None


def _read_value(hint: Any, value: Any, place: str) -> Any:
    """Reads a value as a type; raises BadField."""
    if is_dataclass(hint):
        return _read_object(hint, value, place)
    if get_origin(hint) is tuple:
        return _read_tuple(get_args(hint), value, place)
    if get_origin(hint) in (types.UnionType, Union):
        return _read_union(get_args(hint), value, place)
    if issubclass(hint, enum.Enum):
        choices = {each.value: each for each in hint}
        if not isinstance(value, str) or value not in choices:
            raise BadField(place, f"one of {', '.join(choices)} is expected")
        return choices[value]
    return _SCALARS[hint](value, place)


def _read_tuple(hints: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise BadField(place, "a list is expected")
    if hints[-1] is not Ellipsis and len(value) != len(hints):
        raise BadField(place, f"a list of {len(hints)} is expected")
    own = [hints[0]] * len(value) if hints[-1] is Ellipsis else hints
    return tuple(
        _read_value(hint, each, f"{place}[{index}]")
        for index, (hint, each) in enumerate(zip(own, value, strict=True))
    )


def _read_union(hints: tuple[Any, ...], value: Any, place: str) -> Any:
    """Reads a value that may be null, or one of several maps, which its "method" tells."""
    if type(None) in hints:
        return None if value is None else _read_value(hints[0], value, place)
    by_method = {hint.method: hint for hint in hints}
    method = value.get("method") if isinstance(value, dict) else None
    if not isinstance(method, str) or method not in by_method:
        raise BadField(f"{place}.method", f"one of {', '.join(by_method)} is expected")
    own = {name: each for name, each in value.items() if name != "method"}
    return _read_object(by_method[method], own, place)


def _read_text(value: Any, place: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise BadField(place, f"a text of at most {_LONGEST_TEXT:,} characters is expected")
    return value


def _read_bool(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise BadField(place, "true or false is expected")
    return value


def _read_count(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_COUNT:
        raise BadField(place, "a count is expected: a whole number of 0 or more")
    return value


def _read_number(value: Any, place: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond float64
            number = math.inf
        if math.isfinite(number):
            return number
    raise BadField(place, "a finite number is expected")


_SCALARS = {str: _read_text, bool: _read_bool, int: _read_count, float: _read_number}


def _written(value: Any) -> Any:
    """Turns a value into what JSON can hold."""
    if is_dataclass(value):
        method = getattr(value, "method", None)
        own = {each.name: _written(getattr(value, each.name)) for each in fields(value) if each.init}
        return {"method": method, **own} if method else own
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    return value.value if isinstance(value, enum.Enum) else value
