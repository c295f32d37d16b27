"""A file of settings in TOML: the options by their names, read and written."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rerank_grpc.config.options import Option, OptionError
from rerank_grpc.config.origins import Effective, Given, Origin
from rerank_grpc.config.parsing import calibration, model
from rerank_grpc.errors import suggestion
from rerank_grpc.files.obstacles import obstacle

# All options take a few KiB, and a thousand models less than this.
MOST_BYTES = 1 << 16
# tomllib's time grows with the square of a dotted key's parts, and no key here has any.
MOST_DOTS = 1_000
# A longer key is cut where an error names it.
KEY_CHARACTERS = 60
NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")
SECRET = re.compile(r"((access|api|auth|rerank|upstream)[_-]?)?(tokens?|key|password|secret)", re.IGNORECASE)
KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}


def read_file(path: str, where: str, options: Iterable[Option]) -> dict[str, Given]:
    """Reads the texts of each option in a file, by its name.

    Relative paths in it are the file's neighbours. Raises OptionError for a file that cannot be read, naming
    by `where` what told of it, and for a key or a type of value that no option has, naming file and key.
    """
    known = {option.name: option for option in options}
    folder = os.path.join(os.getcwd(), os.path.dirname(path))
    texts: dict[str, Given] = {}
    for key, value in _parse(path, _load(path, where)).items():
        place = f"{path}: {_shown(key)}"
        if key not in known:
            raise OptionError(f"{place}: {_unknown(key, value, known)}")
        option = known[key]
        listed = value if isinstance(value, list) and option.repeatable else [value]
        if not listed and option.default_text:
            raise OptionError(f"{place}: the array is empty: leave the key out for {option.default_text}")
        read = [placed(option, _text(option, each, place), folder) for each in listed]
        if read:
            texts[key] = Given(tuple(read), Origin("file", path), f"{path}: {key}")
    return texts


def placed(option: Option, text: str, folder: str) -> str:
    """Takes a relative path from a folder: of a file's option, and of a model that begins with ./ or ../ ."""
    if option.read is Path:
        return os.path.join(folder, text)
    if option.read is calibration:
        name, equals, file = text.partition("=")
        return name + equals + os.path.join(folder, file) if file else text
    if option.read is model:
        name, equals, source = text.partition("=") if "=" in text else ("", "", text)
        if re.match(r"\.\.?(/|$)", source):
            below = re.sub(r"^(\./+)+", "", source) or "."  # a model's last part may be its name
            return name + equals + os.path.join(folder, below)
    return text


def _load(path: str, where: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{where}: cannot read {path!r}: {obstacle(path, error)}") from None
    if len(data) > MOST_BYTES:
        raise OptionError(f"{where}: {path!r} is no file of settings: it has more than {MOST_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise OptionError(f"{where}: cannot read {path!r}: line {row} is not UTF-8") from None
    for row, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise OptionError(f"{path}: line {row} has more than {MOST_DOTS:,} dots: break it up")
    return text


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = text.count("\n") + 1
        told = str(error).replace("at end of document", f"at the end, line {last}")
        raise OptionError(f"{path}: not TOML: {told}") from None
    except RecursionError:
        raise OptionError(f"{path}: not TOML that can be read: it is nested too deeply") from None
    except ValueError:  # of a number with thousands of digits
        raise OptionError(f"{path}: not TOML that can be read: a number is too long") from None


def _unknown(key: str, value: object, known: Iterable[str]) -> str:
    names = list(known)
    if isinstance(value, dict):
        flat = next((name for name in names if name.startswith(f"{key}-")), "rest-port")
        return f"a table, and settings have none: write keys such as {flat} by themselves"
    if SECRET.fullmatch(key):
        return "no file of settings holds a secret: name a file by token-file, or set the variable"
    return f"unknown key{suggestion(key, names) or '; `rerank-grpc config --toml` lists all'}"


def _text(option: Option, value: object, place: str) -> str:
    """Returns the text that an operator would type for a value; raises OptionError for a type without one."""
    if isinstance(value, str):
        if not value or "\0" in value:
            raise OptionError(f"{place}: the string is empty or has a NUL in it: leave the key out for none")
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and option.is_numeric:
        if isinstance(value, int) and value.bit_length() > 64:
            raise OptionError(f"{place}: the number is too large")
        return str(value)
    kind = KINDS.get(type(value), "a table" if isinstance(value, dict) else "a date or a time")
    wanted = "a number or a string" if option.is_numeric else "a string"
    several = " or an array of strings" if option.repeatable else ""
    off = ': write "off"' if value is False and option.metavar.endswith("|off") else ""
    raise OptionError(f"{place}: takes {wanted}{several}, not {kind}{off}")


def _shown(key: str) -> str:
    """Names a key in an error, where it may be any text."""
    plain = re.fullmatch(r"[\w-]+", key) is not None and len(key) <= KEY_CHARACTERS
    return key if plain else repr(key[:KEY_CHARACTERS])


def write_file(rows: Iterable[Effective]) -> Iterator[str]:
    """Writes settings as the lines of a file that is read back as the same; defaults stand behind a #.

    Relative paths are made absolute, because the file may be kept anywhere. Raises OptionError for a text
    that is not UTF-8.
    """
    yield "# What begins with # is the default, or the form of a setting that is not set."
    for row in rows:
        origins = ", ".join(map(str, row.origins))
        if row.option is None:
            yield from ("", _comment(f"{row.name}: {_joined(row)}; no file holds them"))
            continue
        yield from ("", _comment(row.option.help))
        texts = tuple(placed(row.option, text, os.getcwd()) for text in row.texts) or (row.option.metavar,)
        line = f"{row.name} = {_toml(row.option, texts)}"
        yield f"{line}  {_comment(origins)}" if row.origins else f"#{line}"


def _joined(row: Effective) -> str:
    return ", ".join([*row.texts, *map(str, row.origins)]) or "none"


def _comment(text: str) -> str:
    return "# " + "".join(character if character.isprintable() else "?" for character in text)


def _toml(option: Option, texts: tuple[str, ...]) -> str:
    if option.repeatable:
        return f"[{', '.join(map(_string, texts))}]"
    (text,) = texts
    return text if option.is_numeric and NUMBER.fullmatch(text) else _string(text)


def _string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{text!r} is not UTF-8, which is all that a TOML file can hold") from None
    # A string of JSON is one of TOML, except that TOML wants DEL escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
