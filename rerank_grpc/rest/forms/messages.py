"""The contract's messages in protobuf's JSON."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS, too_many_documents
from rerank_grpc.rest.forms.decoded import Body, Json
from rerank_grpc.wire.messages import UINT32_MAX

# What a field of some type holds, for errors.
WANTED = {
    FieldDescriptor.TYPE_STRING: "a text",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_UINT32: f"a whole number from 0 to {UINT32_MAX:,}",
    FieldDescriptor.TYPE_FLOAT: "a number",
}


def json_of(message: Message) -> Json:
    """Writes a message, with zeros and empty texts: not every caller knows the contract's defaults."""
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def message_of(value: Body, kind: type[Message]) -> Message:
    """Reads a message from JSON; ignores unknown fields, as gRPC does; raises InvalidRequest for a wrong one.

    Documents are read here: the library takes a text for an object without known fields.
    """
    given = _given(value, kind)
    documents = _documents(given.pop("documents", []))
    try:
        message = json_format.ParseDict(given, kind())
    except json_format.ParseError:
        message = None
    if message is None:
        raise _wrong_field(given, kind)  # outside of the handler: the library's error quotes values
    if documents:
        message.MergeFrom(kind(documents=documents))
    return message


def _given(value: Body, kind: type[Message]) -> dict[str, Json]:
    """Picks the known fields, each under the one of its two names that came; refuses both at once."""
    given: dict[str, Json] = {}
    for field in kind.DESCRIPTOR.fields:
        spellings = dict.fromkeys((field.name, field.camelcase_name))
        present = [name for name in spellings if value.get(name) is not None]
        if len(present) > 1:
            raise InvalidRequest.of(present[1], f"is the same field as {present[0]}: send one of them")
        given.update({name: value[name] for name in present})
    return given


def _field(kind: type[Message], name: str) -> Any:
    descriptor = kind.DESCRIPTOR
    return descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)


def _documents(listed: Json) -> list[dict[str, str]]:
    if not isinstance(listed, list):
        raise InvalidRequest.of("documents", "must be a list of objects with a text")
    if len(listed) > LIMITS.documents:
        raise too_many_documents()
    return [_document(f"documents[{index}]", item) for index, item in enumerate(listed)]


def _document(place: str, item: Json) -> dict[str, str]:
    if not isinstance(item, dict):
        raise InvalidRequest.of(place, 'must be an object, such as {"text": "..."}')
    texts = {name: item[name] for name in ("text", "id") if item.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InvalidRequest.of(f"{place}.{name}", "must be a text")
    return texts


def _wrong_field(given: Body, kind: type[Message]) -> InvalidRequest:
    """Makes the error of the first field that cannot be read alone."""
    for name, part in given.items():
        try:
            json_format.ParseDict({name: part}, kind())
        except json_format.ParseError:
            field = _field(kind, name)
            names = field.enum_type.values_by_name if field.enum_type else ()
            return InvalidRequest.of(
                name, f"must be {WANTED.get(field.type) or 'one of ' + ', '.join(names)}"
            )
    raise AssertionError("one of the fields cannot be read")
