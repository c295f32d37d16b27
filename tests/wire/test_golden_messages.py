"""The messages of each release are read by today's stubs, and mean what they meant."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory

from rerank_grpc import __version__
from rerank_grpc.v1 import rerank_pb2

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "golden_messages.py"))
FOLDER: Path = SCRIPT["FOLDER"]
FILES = sorted(FOLDER.glob("*/*.binpb"))


def pool_of(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def contract() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    rerank_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def name_of(binary: Path) -> str:
    """Returns the message's name, of NAME.NUMBER.binpb."""
    return binary.name.partition(".")[0]


def is_read(binary: Path, pool: descriptor_pool.DescriptorPool) -> bool:
    """Tells whether a message means under these descriptors what the file beside it says."""
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"rerank.v1.{name_of(binary)}"))
    meant: str = SCRIPT["text"](kind.FromString(binary.read_bytes()))
    return meant == binary.with_suffix(".json").read_text("utf-8")


def test_this_version_has_its_messages():
    assert (FOLDER / __version__).is_dir(), "run scripts/golden_messages.py (docs/releasing.md)"


@pytest.mark.parametrize("binary", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_message_of_a_release_is_read(binary: Path):
    assert is_read(binary, pool_of(contract()))


def test_every_type_of_every_method_is_there():
    methods = [
        method for service in rerank_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods
    ]
    types = {kind.name for method in methods for kind in (method.input_type, method.output_type)}
    assert {name_of(path) for path in FILES if path.parent.name == __version__} == types


def test_a_field_that_is_renumbered_is_found_whichever_it_is():
    unnoticed, fields = [], 0
    for message in contract().message_type:
        for place, field in enumerate(message.field):
            changed = contract()
            (same,) = (each for each in changed.message_type if each.name == message.name)
            same.field[place].number = 99
            pool = pool_of(changed)
            fields += 1
            if all(is_read(binary, pool) for binary in FILES):
                unnoticed.append(f"{message.name}.{field.name}")
    assert fields > 80
    assert unnoticed == []


def test_a_number_of_an_enum_that_changes_is_found():
    unnoticed = []
    for enum in contract().enum_type:
        for place, value in enumerate(enum.value):
            if not value.number or enum.name == "ErrorReason":  # which travels by name
                continue
            changed = contract()
            (same,) = (each for each in changed.enum_type if each.name == enum.name)
            same.value[place].number = 99
            pool = pool_of(changed)
            if all(is_read(binary, pool) for binary in FILES):
                unnoticed.append(value.name)
    assert unnoticed == []


def test_what_a_release_adds_is_filled_too(tmp_path):
    SCRIPT["write"](tmp_path / "next")
    written = sorted((tmp_path / "next").glob("*.binpb"))
    assert written
    assert all(is_read(binary, pool_of(contract())) for binary in written)
