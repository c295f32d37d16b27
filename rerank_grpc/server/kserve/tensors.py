"""ModelInfer's messages: tensors of a request → texts and options; results → tensors of a response."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS, check_count
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.server.parts import FieldNames, Part
from rerank_grpc.types import Document, RerankRequest, RerankSummary, ScoredDocument, Truncation
from rerank_grpc.wire.messages import UINT32_MAX

QUERY, PASSAGE = INPUTS = ("QUERY", "PASSAGE")
OUTPUTS: Mapping[str, Callable[[ScoredDocument], float]] = {
    "SCORE": attrgetter("relevance_score"),
    "LOGIT": attrgetter("logit"),
}
TEXT, NUMBER = "BYTES", "FP32"
# Parameters of a tensor that change what the protocol means by it.
UNSERVED = ("classification", "shared_memory_region")
TRUNCATIONS = {truncation.value: truncation for truncation in Truncation}
# Options by their names in RerankRequest, with the type of their values. Other parameters are ignored.
OPTIONS: Mapping[str, tuple[type[object], str]] = {
    "instruction": (str, "a string"),
    "truncation": (Truncation, '"end", "start" or "none"'),
    "max_tokens_per_document": (int, f"an integer from 0 to {UINT32_MAX}"),
    "max_chunks_per_document": (int, f"an integer from 0 to {UINT32_MAX}"),
    "ignore_unsupported_options": (bool, "a boolean"),
}
_Tensor: TypeAlias = pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor
NAMES = FieldNames(f"{QUERY}[{{}}]", f"{PASSAGE}[{{}}]", "parameters[{}]".format)
# Names of the caller's own in an error.
NAME_CHARACTERS = 100


class Inference(NamedTuple):
    """A request, read: its options, a query for all passages or one for each, and the outputs it wants.

    `shape` is that of PASSAGE; `raw` tells the form of its texts, and so of the answer.
    """

    options: RerankRequest
    queries: Sequence[str]
    passages: Sequence[str]
    shape: Sequence[int]
    outputs: Sequence[str]
    raw: bool

    def parts(self) -> Iterator[Part]:
        """Yields a request for each query that differs."""
        places: dict[str, list[int]] = {}
        for place in range(len(self.passages)):
            places.setdefault(self.queries[place if len(self.queries) > 1 else 0], []).append(place)
        for query, own in places.items():
            documents = [Document(self.passages[place]) for place in own]
            yield Part(self.options._replace(query=query, documents=documents), own)


def inference_from(message: pb.ModelInferRequest) -> Inference:
    """Reads a request; raises InvalidRequest in the names of its tensors."""
    if len(message.id) > LIMITS.id_characters:
        text = f"has {len(message.id):,} characters, at most {LIMITS.id_characters:,} are allowed"
        raise InvalidRequest.of("id", text)
    outputs = _names("outputs", message.outputs, tuple(OUTPUTS))
    tensors = dict(zip(_names("inputs", message.inputs, INPUTS), _contents(message), strict=True))
    for name in INPUTS:
        if name not in tensors:
            raise InvalidRequest.of("inputs", f"{name} is missing")
    (queries, _), (passages, shape) = tensors[QUERY], tensors[PASSAGE]
    if len(queries) not in (1, len(passages)):
        text = f"has {len(queries):,} elements: send one, or one for each element of {PASSAGE}"
        raise InvalidRequest.of(QUERY, f"{text}, which has {len(passages):,}")
    options = RerankRequest("", (), model=message.model_name, **_options(message.parameters))
    raw = bool(message.raw_input_contents)
    return Inference(options, queries, passages, shape, outputs or tuple(OUTPUTS), raw)


def _names(
    field: str,
    tensors: Iterable[_Tensor],
    known: Sequence[str],
) -> list[str]:
    """Returns the names of tensors, each known and there once; none of them asks for what is not served."""
    names, served = list[str](), " and ".join(known)
    for index, tensor in enumerate(tensors):
        place = f"{field}[{index}].name"
        if tensor.name not in known:
            text = f"{tensor.name[:NAME_CHARACTERS]!r} is unknown: {served} are served"
            raise InvalidRequest.of(place, text)
        if tensor.name in names:
            raise InvalidRequest.of(place, f"{tensor.name} is there twice")
        for unserved in UNSERVED:
            if unserved in tensor.parameters:
                raise InvalidRequest.of(f"{field}[{index}].parameters[{unserved}]", "is not served")
        names.append(tensor.name)
    return names


def _contents(message: pb.ModelInferRequest) -> Iterator[tuple[list[str], Sequence[int]]]:
    """Yields the texts of each input and its shape, whichever form they were sent in."""
    inputs, raw = message.inputs, message.raw_input_contents
    if raw and len(raw) != len(inputs):
        text = f"holds {len(raw):,}, must hold one for each of {len(inputs):,} inputs"
        raise InvalidRequest.of("raw_input_contents", text)
    for index, tensor in enumerate(inputs):
        if tensor.datatype != TEXT:
            raise InvalidRequest.of(f"{tensor.name}.datatype", f"must be {TEXT}")
        count = _count(tensor.name, tensor.shape)
        if raw and tensor.contents.ByteSize():
            text = "must be empty where raw_input_contents is not"
            raise InvalidRequest.of(f"{tensor.name}.contents", text)
        elements = _unpacked(tensor.name, count, raw[index]) if raw else tensor.contents.bytes_contents
        if len(elements) != count:
            text = f"has {len(elements):,} elements where its shape says {count:,}"
            raise InvalidRequest.of(tensor.name, text)
        yield [_text(tensor.name, place, each) for place, each in enumerate(elements)], list(tensor.shape)


def _count(name: str, shape: Sequence[int]) -> int:
    """Returns the number of elements of a tensor; raises InvalidRequest unless its shape is a list's."""
    if not 1 <= len(shape) <= 2 or min(shape) < 0 or (len(shape) == 2 and 1 not in shape):
        raise InvalidRequest.of(f"{name}.shape", "must be [n], [n, 1] or [1, n]")
    count = shape[0] * shape[-1] if len(shape) == 2 else shape[0]
    check_count(name, count)
    return count


def _unpacked(name: str, count: int, raw: bytes) -> list[bytes]:
    """Splits raw contents: each element follows its length, of four bytes, the lowest first."""
    elements, at = [], 0
    for index in range(count):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if at > len(raw):
            text = "is longer than what is left of its raw_input_contents"
            raise InvalidRequest.of(f"{name}[{index}]", text)
        elements.append(raw[start:at])
    if at < len(raw):
        text = f"its raw_input_contents go on for {len(raw) - at:,} bytes after {count:,} elements"
        raise InvalidRequest.of(name, text)
    return elements


def _text(name: str, index: int, element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        start = error.start
    # Outside the handler: the codec's error holds the whole text, and must not become a context.
    raise InvalidRequest.of(f"{name}[{index}]", f"is no UTF-8 at byte {start:,}")


def _options(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Reads the parameters that are options; 0, false and an empty text mean the default."""
    values = {name: _option(name, parameters[name]) for name in OPTIONS if name in parameters}
    return {name: value for name, value in values.items() if value}


def _option(name: str, parameter: pb.InferParameter) -> Any:
    """Reads an option; raises InvalidRequest for a value of another type or range."""
    kind, noun = OPTIONS[name]
    choice = parameter.WhichOneof("parameter_choice")
    value: Any = getattr(parameter, choice) if choice else None
    value = TRUNCATIONS.get(value) if kind is Truncation else value
    if type(value) is kind and (not isinstance(value, int) or 0 <= value <= UINT32_MAX):
        return value
    raise InvalidRequest.of(f"parameters[{name}]", f"must be {noun}")


def inference_to(
    inference: Inference, results: Sequence[ScoredDocument], summary: RerankSummary
) -> pb.ModelInferResponse:
    """Writes a response of results in the passages' order: each output in the form of the request's texts."""
    response = pb.ModelInferResponse(model_name=summary.model, model_version=summary.model_revision)
    for name in inference.outputs:
        numbers = list(map(OUTPUTS[name], results))
        tensor = response.outputs.add(name=name, datatype=NUMBER, shape=inference.shape)
        if inference.raw:
            response.raw_output_contents.append(struct.pack(f"<{len(numbers)}f", *numbers))
        else:
            tensor.contents.fp32_contents.extend(numbers)
    return response
