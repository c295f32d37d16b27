"""A checkpoint's directory, checked as far as its files can be without a model."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.checkpoints.disk import (
    COMMIT,
    SHA256,
    check_listed,
    check_types,
    is_file,
    kept_digest,
    read_json,
    sha256_of,
    unreadable,
)
from rerank_grpc.checkpoints.lookup import EMBEDDED, EMBEDDED_REVISION, check_embedded
from rerank_grpc.checkpoints.native import find_form, is_native
from rerank_grpc.errors import ModelLoadError

BLOCK = 1 << 20
DIGEST_WHOLE_BYTES, DIGEST_BLOCKS = 4 << 30, 256  # larger weights are digested in part, in this many blocks
HEADER_BYTES_MAX = 100 << 20  # the bound of the safetensors format itself
REMOTE_CODE_KEYS = ("auto_map", "_attn_implementation_internal")
STOCK_MODULES = ("sentence_transformers.", "pylate.models.Dense")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
SIZES = (*LAYERS, "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads")
CONFIG_TYPES: Mapping[str, type] = {
    "architectures": list,
    "id2label": dict,
    "model_type": str,
    **dict.fromkeys(SIZES, int),
}
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes of a number, by its type
WIDTHS: Mapping[str, int] = {
    **{name: dtype.itemsize for name, dtype in FLOATS.items()},
    **dict.fromkeys(("BOOL", "I8", "U8"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64"), 8),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that may be loaded, under the operator's name for it."""

    source: str
    directory: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    dtype: torch.dtype  # of the stored floats
    revision: str  # the hub's commit, or "sha256:" and 12 digits of the weights' digest
    known: KnownModel | None = None

    @property
    def family(self) -> str:
        """Transformers' model_type."""
        return str(self.config["model_type"])

    @property
    def tokenizer_file(self) -> Path:
        return self.directory / "tokenizer.json"


def open_checkpoint(source: str, directory: Path, known: KnownModel | None = None) -> Checkpoint:
    """Checks a checkpoint's files; raises ModelLoadError."""
    if source == EMBEDDED:
        check_embedded(directory)
    config = read_config(directory)
    weights = find_weights(directory)
    if not is_file(directory / "tokenizer.json"):
        raise ModelLoadError(
            f"{directory}: no tokenizer.json: copy it again, or 'rerank-grpc convert {directory}' "
            "makes it of an older tokenizer"
        )
    _check_layers(config, weights, directory)
    dtype = _stored_dtype(weights)
    revision = EMBEDDED_REVISION if source == EMBEDDED else revision_of(directory, weights)
    return Checkpoint(source, directory, config, weights, dtype, revision, known)


def read_config(directory: Path) -> Mapping[str, Any]:
    """Reads config.json and refuses one that needs code of its own; raises ModelLoadError."""
    path = directory / "config.json"
    config = read_json(path)
    check_types(config, CONFIG_TYPES, path)
    if find_form(config) is not None:
        raise ModelLoadError(
            f"{path}: names a class with code of its own, which is never run: "
            f"'rerank-grpc convert {directory}' rewrites it as one of transformers' classes"
        )
    for key in REMOTE_CODE_KEYS:
        if _has_key(config, key) and not (key == "auto_map" and _is_left_over(directory, config)):
            raise ModelLoadError(
                f"{path}: has {key!r}, which runs code from outside: "
                "use a checkpoint that transformers supports without remote code"
            )
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{path}: no model_type: use a checkpoint in transformers' format")
    if config.get("quantization_config") is not None:
        raise ModelLoadError(f"{path}: quantized weights are not supported: use the original weights")
    return config


def _is_left_over(directory: Path, config: Mapping[str, Any]) -> bool:
    """Tells whether an auto_map is of no use: sentence-transformers' modules, and a class of transformers."""
    try:
        modules = json.loads((directory / "modules.json").read_bytes())
        kinds = [str(module["type"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return bool(kinds) and all(kind.startswith(STOCK_MODULES) for kind in kinds) and is_native(config)


def find_weights(directory: Path) -> tuple[Path, ...]:
    """Lists the safetensors files of a checkpoint, or raises ModelLoadError."""
    check_listed(directory)
    names = weight_names(directory, "model.safetensors")
    if not names:
        if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
            raise ModelLoadError(
                f"{directory}: only pickled weights, which can run code and are never served: "
                f"'rerank-grpc convert {directory}' makes safetensors of them"
            )
        raise ModelLoadError(f"{directory}: no model.safetensors: copy the whole checkpoint")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            index = directory / "model.safetensors.index.json"
            raise ModelLoadError(f"{index}: names {name!r}, which is no safetensors file of this directory")
        if not is_file(directory / name):
            raise ModelLoadError(f"{directory / name}: no such file, but the index names it: copy it again")
    return tuple(directory / name for name in names)


def weight_names(directory: Path, single: str) -> list[str]:
    """Lists the weights' file or those of its index, whose names are unchecked; raises ModelLoadError."""
    if is_file(directory / single):
        return [single]
    index = directory / f"{single}.index.json"
    if not is_file(index):
        return []
    mapping = read_json(index).get("weight_map")
    names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
    if not names:
        raise ModelLoadError(f"{index}: names no files: copy it again")
    return names


def read_header(path: Path) -> dict[str, Any]:
    """Reads a safetensors file's header, by tensor; raises ModelLoadError.

    Each tensor must have the bytes of its shape, right behind those of another, and the file no others.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, HEADER_BYTES_MAX):
                raise ValueError(length)
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = 8 + length + _data_bytes(tensors)
    except OSError as error:
        raise unreadable(path, error) from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error) as error:
        raise ModelLoadError(f"{path}: not a safetensors file, or a damaged one: copy it again") from error
    if size != expected:
        raise ModelLoadError(f"{path}: has {size:,} bytes where its header says {expected:,}: copy it again")
    return tensors


def _data_bytes(tensors: Mapping[str, Any]) -> int:
    """Counts the bytes of all tensors; raises ValueError, TypeError or LookupError for gaps and overlaps."""
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: tuple(entry["data_offsets"])):
        (begin, stop), shape = entry["data_offsets"], entry["shape"]
        if any(type(number) is not int or number < 0 for number in (begin, stop, *shape)):
            raise ValueError(entry)
        size, width = stop - begin, WIDTHS.get(entry["dtype"])  # None for types that are read nowhere
        if begin != end or size != (max(0, size) if width is None else math.prod(shape) * width):
            raise ValueError(entry)
        end = stop
    return end


def _check_layers(config: Mapping[str, Any], weights: tuple[Path, ...], directory: Path) -> None:
    """Raises ModelLoadError for more layers than weights: transformers would build them all first."""
    stored = sum(len(read_header(path)) for path in weights)
    for name in LAYERS:
        layers = config.get(name)
        if layers is not None and not 0 < layers <= stored:
            raise ModelLoadError(
                f"{directory}/config.json: {name} is {layers}, but there are {stored} weights: "
                "use the config.json that the weights came with"
            )


def _stored_dtype(weights: tuple[Path, ...]) -> torch.dtype:
    """Returns the float type of all tensors, which neither rounds nor doubles the memory; fp32 if mixed."""
    names = {str(entry.get("dtype")) for path in weights for entry in read_header(path).values()}
    types = [FLOATS[name] for name in names if name in FLOATS]
    return types[0] if len(types) == 1 else torch.float32


def revision_of(directory: Path, weights: tuple[Path, ...]) -> str:
    """Names the weights: by the commit if the hub's cache holds them, else by their digest.

    A file in the hub's cache is a link to a blob named by its SHA-256; raises
    ModelLoadError for a damaged one.
    """
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots" and COMMIT.fullmatch(resolved.name):
        for path in weights:
            expected = path.resolve().name
            if SHA256.fullmatch(expected) and sha256_of(path) != expected:
                raise ModelLoadError(
                    f"{path}: its SHA-256 is not {expected}: delete it from the hub's cache and load again"
                )
        return resolved.name
    return f"sha256:{kept_digest('revision', weights, partial(_revision, weights))}"


def _revision(weights: tuple[Path, ...]) -> str:
    """Digests all weights to 12 digits; large ones in part."""
    digest = hashlib.sha256()
    whole = sum(path.stat().st_size for path in weights) <= DIGEST_WHOLE_BYTES
    for path in weights:
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        for block in _blocks(path, whole=whole):
            digest.update(block)
    return digest.hexdigest()[:12]


def _blocks(path: Path, *, whole: bool) -> Iterator[bytes]:
    """Yields all blocks of a file, or DIGEST_BLOCKS of them at even distances."""
    size = path.stat().st_size
    step = BLOCK if whole else max(BLOCK, size // DIGEST_BLOCKS)
    with path.open("rb") as file:
        for offset in range(0, size, step):
            file.seek(offset)
            yield file.read(BLOCK)


def _has_key(value: object, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(item, key) for item in value.values())
    if isinstance(value, list):
        return any(_has_key(item, key) for item in value)
    return False
