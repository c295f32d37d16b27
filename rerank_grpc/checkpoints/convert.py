"""Rewrites a checkpoint, offline and without running anything of it, into a form that can be served."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rerank_grpc.checkpoints import pickles
from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.checkpoints.checkpoint import find_weights, read_config, read_header
from rerank_grpc.checkpoints.described import (
    DENSE_FOLDER,
    TEMPLATE_FILE,
    Files,
    classifier_files,
    pooled_files,
    template_of,
)
from rerank_grpc.checkpoints.disk import check_listed, read_json
from rerank_grpc.checkpoints.native import Native, architecture_of, find_form, renamed
from rerank_grpc.checkpoints.pickles import Say
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.files.obstacles import obstacle

CONFIG = "config.json"
STAGING = ".convert"  # one name, so that the next conversion clears what a killed one left
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def convert(directory: Path, say: Say = lambda _: None, prompted: KnownModel | None = None) -> list[Path]:
    """Converts what a checkpoint has in older or other forms; returns the files made.

    That is pickled weights, classes with code of their own that transformers has too, and a missing
    tokenizer.json; with a model that has a prompt, also the files that say how a classifier made of it is
    asked. Raises ModelLoadError.
    """
    check_listed(directory)
    config = read_json(directory / CONFIG)
    native = _native_form(directory, config)
    if native is None:
        read_config(directory)
    made = []
    if not any(directory.glob("model*.safetensors")):
        made += pickles.convert_weights(directory, say)
    made += pickles.convert_modules(directory, say)
    if native is not None:
        made += _rewrite(directory, native, say)
    if not (directory / "tokenizer.json").is_file():
        say("writing tokenizer.json")
        made.append(_convert_tokenizer(directory))
    if prompted is not None:
        made += _describe(directory, prompted, say)
    return made


def is_needed(directory: Path) -> bool:
    """Tells whether a checkpoint's weights or its class have a form that is never served."""
    if not any(directory.glob("model*.safetensors")) or pickles.module_pickles(directory):
        return True
    return find_form(read_json(directory / CONFIG)) is not None


def _native_form(directory: Path, config: dict[str, Any]) -> Native | None:
    """Returns the form of transformers' own class; None if it is in one. Raises ModelLoadError."""
    form = find_form(config)
    try:
        return form(config) if form else None
    except ModelLoadError as error:
        raise ModelLoadError(f"{directory / CONFIG}: cannot be converted: {error}") from None
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise ModelLoadError(f"{directory / CONFIG}: cannot be converted ({reason}): copy it again") from None


def _rewrite(directory: Path, native: Native, say: Say) -> list[Path]:
    """Writes the form of transformers' own class in place of a checkpoint's own."""
    weights = find_weights(directory)
    say(f"rewriting {CONFIG} as {native.config['architectures'][0]}")
    with _staged(directory) as (folder, made):
        if native.names:
            pickles.check_space(directory, list(weights))
            weights = _rename_weights(weights, folder, native, say)
        _check_shapes(directory, weights, native)
        if native.prompt is not None:
            _write_score_row(weights, native.temperature, folder)
            before, after = _control_tokens(directory, native.config)
            template = before + template_of(native.prompt) + after
            _write(folder, pooled_files(template, native.config["hidden_size"]))
        _write(folder, {CONFIG: native.config})
    return made


def _rename_weights(weights: tuple[Path, ...], folder: Path, native: Native, say: Say) -> tuple[Path, ...]:
    """Writes each file of weights anew, with their new names, and the index of several."""
    file_of = {}
    for path in weights:
        say(f"rewriting {path.name}")
        with safe_open(path, "pt") as file:
            tensors = dict(
                pair
                for name in read_header(path)
                for pair in renamed(name, file.get_tensor(name), native.names)
            )
        pickles.write_weights(folder / path.name, tensors)
        file_of.update(dict.fromkeys(tensors, path.name))
    if [path.name for path in weights] != [pickles.SAFE]:
        (folder / f"{pickles.SAFE}.index.json").write_text(pickles.index_text(file_of))
    return tuple(folder / path.name for path in weights)


def _check_shapes(directory: Path, weights: tuple[Path, ...], native: Native) -> None:
    """Raises ModelLoadError unless the weights are those of transformers' class, all and no others."""
    found = {name: tuple(entry["shape"]) for path in weights for name, entry in read_header(path).items()}
    try:
        expected = native.shapes()
    except ModelLoadError as error:
        raise ModelLoadError(f"{directory}: cannot be converted: {error}") from None
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ModelLoadError(
            f"{directory}: cannot be converted: {len(wrong)} weights, {wrong[0]!r} first, "
            f"are not those of {native.config['architectures'][0]}"
        )


def _write_score_row(weights: tuple[Path, ...], temperature: float, folder: Path) -> None:
    """Writes the score row as the weights of a module, which divides by no temperature."""
    (holder,) = [path for path in weights if "score.weight" in read_header(path)]
    with safe_open(holder, "pt") as file:
        row = file.get_tensor("score.weight").float() / temperature
    (folder / DENSE_FOLDER).mkdir()
    pickles.write_weights(folder / DENSE_FOLDER / pickles.SAFE, {"linear.weight": row})


def _control_tokens(directory: Path, config: dict[str, Any]) -> tuple[str, str]:
    """The control tokens that a tokenizer puts before and behind a text, as a template's expressions."""
    with tempfile.TemporaryDirectory() as folder:
        for pattern in TOKENIZER_FILES:
            for path in directory.glob(pattern):
                shutil.copy(path, folder)
        _write(Path(folder), {CONFIG: config})
        tokenizer = _tokenizer(Path(folder), directory)
    bare, whole = tokenizer("word", add_special_tokens=False).input_ids, tokenizer("word").input_ids
    tokens = [json.dumps(token) for token in tokenizer.convert_ids_to_tokens(whole)]
    begin = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    sides = tokens[:begin], tokens[begin + len(bare) :]
    before, after = ("".join(f"{{{{ {token} }}}}" for token in side) for side in sides)
    return before, after


def _describe(directory: Path, prompted: KnownModel, say: Say) -> list[Path]:
    """Writes the files that say how a classifier made of a language model is asked."""
    config = dict(read_config(directory))
    architecture = architecture_of(config)
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if config["model_type"] != prompted.family or not architecture.endswith("ForSequenceClassification"):
        raise ModelLoadError(
            f"{directory / CONFIG}: {architecture} is no classifier made of a {prompted.family}, "
            f"which the prompt of {prompted.short} is for"
        )
    if labels != 1:
        raise ModelLoadError(f"{directory / CONFIG}: {labels} labels where a reranker has 1")
    if (directory / "modules.json").is_file():
        raise ModelLoadError(
            f"{directory}/modules.json: says already how the model is asked: nothing is written"
        )
    say(f"writing {TEMPLATE_FILE} and sentence-transformers' files")
    with _staged(directory) as (folder, made):
        _write(folder, classifier_files(prompted.prompt))
        pad = _tokenizer(directory, directory).pad_token_id
        if config.get("pad_token_id") != pad:  # transformers scores the last token that is not this one
            _write(folder, {CONFIG: config | {"pad_token_id": pad}})
    return made


def _convert_tokenizer(directory: Path) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        _tokenizer(directory, directory).save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{directory}: its tokenizer has no form as tokenizer.json")
        content = path.read_bytes()
    with pickles.written(directory / "tokenizer.json") as temporary:
        temporary.write_bytes(content)
    return directory / "tokenizer.json"


def _tokenizer(folder: Path, directory: Path) -> Any:
    """Reads a tokenizer by transformers, without code of its own; raises ModelLoadError."""
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelLoadError(
                f"{directory}: transformers makes no tokenizer of what is there "
                f"({type(error).__name__}): copy tokenizer.json from where the model came from"
            ) from error


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            content if isinstance(content, str) else json.dumps(content, indent=2) + "\n", "utf-8"
        )


@contextmanager
def _staged(directory: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yields a folder, whose files take their places in a directory when the block ends well, and their list.

    Until then the directory is as it was. A file that is replaced, weights apart, is kept as NAME.original;
    config.json comes last, so a conversion that is killed on the way can be done again.
    """
    folder = directory / STAGING
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        made: list[Path] = []
        yield folder, made
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path == folder / CONFIG, path)):
            made.append(_place(path, directory / path.relative_to(folder)))
    except OSError as error:
        raise ModelLoadError(
            f"{directory}: cannot be written: {obstacle(directory, error, writing=True)}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(path: Path, target: Path) -> Path:
    """Moves a file to its place; keeps what was there."""
    target.parent.mkdir(exist_ok=True)
    kept = target.with_name(f"{target.name}.original")
    if target.is_file() and target.suffix != ".safetensors" and not kept.exists():
        with pickles.written(kept) as temporary:
            shutil.copyfile(target, temporary)
    return path.replace(target)
