"""Writes the requests and replies that every later release must read, to tests/golden/contract/VERSION.

    python scripts/golden_messages.py               those of this tree's version, once; at a release
    python scripts/golden_messages.py --unreleased  those of what the next release adds, to `unreleased`

For each message that a method takes or gives there is NAME.binpb, its bytes, and NAME.json, what they mean;
several for one that has enums itself, so that each value of these is there. Every field is filled, with a
value of its own. The files of a release never change: a change that needs another file breaks a caller. Those
of `unreleased` may, until a release replaces them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden" / "contract"
UNRELEASED = "unreleased"
COPIES = 5  # of a repeated message: as many as the longest enum has values, so that each value is there


def messages() -> Iterator[tuple[str, Any]]:
    """Yields the name and a filled message of each type that a method takes or gives."""
    from google.protobuf import message_factory

    from rerank_grpc.v1 import rerank_pb2

    seen = set()
    for service in rerank_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            for kind in (method.input_type, method.output_type):
                if kind.full_name not in seen:
                    seen.add(kind.full_name)
                    for copy in range(1, 1 + max(map(values_of, kind.fields), default=1)):
                        message = message_factory.GetMessageClass(kind)()
                        fill(message, copy)
                        yield f"{kind.name}.{copy}", message


def values_of(field: Any) -> int:
    """Counts the messages that it takes to hold each value of a field once; 1 for what is no enum."""
    return 1 if field.enum_type is None else len(field.enum_type.values) - 1


def fill(message: Any, copy: int) -> None:
    """Fills each field of a message, and of those in it; the value tells its field and its copy."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            parts = [getattr(message, field.name)]
            if field.is_repeated:
                parts = [parts[0].add() for _ in range(COPIES)]
            for number, part in enumerate(parts, copy):
                fill(part, number)
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, number) for number in (copy, copy + 1))
        else:
            setattr(message, field.name, value(field, copy))


def value(field: Any, copy: int) -> Any:
    """Makes the value of a field that is no message; never the type's default."""
    if field.enum_type is not None:
        numbers = [each.number for each in field.enum_type.values if each.number]
        return numbers[(copy - 1) % len(numbers)]
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            return f"{field.name} {copy}: ñ, 文, 🙂"
        case field.CPPTYPE_BOOL:
            return True
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return field.number + copy / 8  # the same in both precisions
        case field.CPPTYPE_UINT64 | field.CPPTYPE_INT64:
            return (1 << 33) + 100 * field.number + copy
        case _:
            return 1000 * field.number + copy


def text(message: Any) -> str:
    """Returns what a message means: only the fields that are there, by the proto's names."""
    from google.protobuf import json_format

    meant = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(meant, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write(folder: Path) -> None:
    """Writes the files of all messages into a new folder."""
    folder.mkdir(parents=True)
    for name, message in messages():
        (folder / f"{name}.binpb").write_bytes(message.SerializeToString(deterministic=True))
        (folder / f"{name}.json").write_text(text(message), "utf-8")


def main() -> None:
    """Writes the set of this version, or that of the next; raises SystemExit if a release's is there."""
    from rerank_grpc import __version__

    unreleased = f"--{UNRELEASED}" in sys.argv[1:]
    folder = FOLDER / (UNRELEASED if unreleased else __version__)
    if folder.exists() and not unreleased:
        raise SystemExit(f"{folder.relative_to(ROOT)} is there already: a release's messages never change")
    shutil.rmtree(FOLDER / UNRELEASED, ignore_errors=True)
    write(folder)
    print(f"wrote {len(list(folder.iterdir()))} files to {folder.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
