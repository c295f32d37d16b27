"""Fetches a model from the hub into its cache, where it is visible only when complete."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from rerank_grpc.checkpoints.disk import free_if_short, written
from rerank_grpc.checkpoints.transfer import Progress, RemoteFile, Transfer
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.units import size

CONFIG = "config.json"
NEEDED = ("model*.safetensors", "tokenizer.json")
KINDS = (".safetensors", ".safetensors.index.json", ".json", ".txt", ".model")
SINGLE = ("chat_template.jinja", "artifact.metadata")  # a prompt, and Stanford ColBERT's settings
PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")
# Further prompts, and the modules of sentence-transformers. Module 0 is the network, whose weights are above.
BELOW = re.compile(
    r"additional_chat_templates/\w[\w.-]*\.jinja|\d+_\w+/config\.json|[1-9]\d*_\w+/model\.safetensors"
)
PICKLED_MODULE = re.compile(r"([1-9]\d*_\w+)/pytorch_model\.bin")


def cached(hub_id: str, revision: str, *, exact: bool = False) -> Path | None:
    """Finds a complete model in the hub's cache: the revision, or unless `exact` the main branch."""
    from huggingface_hub import try_to_load_from_cache

    for each in (revision,) if exact else dict.fromkeys((revision, "main")):
        found = try_to_load_from_cache(hub_id, CONFIG, revision=each)
        if isinstance(found, str) and all(any(Path(found).parent.glob(name)) for name in NEEDED):
            return Path(found).parent
    return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def fetch(hub_id: str, revision: str, *, progress: Progress | None = None, pickled: bool = False) -> Path:
    """Fetches a model's missing files, with `pickled` old weights too; raises only ModelLoadError."""
    try:
        return _fetch(hub_id, revision, progress or Progress(), pickled=pickled)
    except ModelLoadError:
        raise
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise ModelLoadError(f"{hub_id}: {_reason(error, revision)}") from error


def _fetch(hub_id: str, revision: str, progress: Progress, *, pickled: bool) -> Path:
    from huggingface_hub import constants

    if Path(constants.HF_HUB_CACHE).parts[:1] == ("~",):  # it would be a folder of this name, here
        raise ModelLoadError(
            f"{hub_id}: the user has no home folder to fetch it into: name a folder in HF_HOME"
        )
    commit, listed = _list_files(hub_id, revision)
    chosen = _choose(listed, pickled=pickled)
    _check_kinds(hub_id, chosen)
    root = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    missing = [file for file in chosen if not (snapshot / file.name).exists()]
    _check_disk(root, missing)
    # A directory is no model without config.json, which comes last, and the branch's name after it.
    for file in sorted(missing, key=lambda file: (file.name == CONFIG, file.name)):
        Transfer(hub_id, commit, root, file, progress).run()
    if revision != commit:
        with written(root / "refs" / revision) as path:
            path.write_text(commit)
    return snapshot


def _choose(files: list[RemoteFile], *, pickled: bool) -> list[RemoteFile]:
    """Picks a model's files: never code, and pickles only where there are no safetensors."""
    top = [file for file in files if "/" not in file.name]
    chosen = [
        file
        for file in top
        if file.name in SINGLE or (file.name.endswith(KINDS) and not PICKLED.fullmatch(file.name))
    ]
    has_weights = any(file.name.endswith(".safetensors") for file in chosen)
    chosen += [file for file in files if BELOW.fullmatch(file.name)]
    if pickled:
        chosen += [file for file in top if PICKLED.fullmatch(file.name) and not has_weights]
        chosen += _pickled_modules(files)
    return chosen


def _pickled_modules(files: list[RemoteFile]) -> list[RemoteFile]:
    """Picks the pickled weights of modules that have no others."""
    names = {file.name for file in files}
    found = ((PICKLED_MODULE.fullmatch(file.name), file) for file in files)
    return [file for match, file in found if match and f"{match[1]}/model.safetensors" not in names]


def _check_disk(root: Path, missing: list[RemoteFile]) -> None:
    needed = sum(file.size or 0 for file in missing)
    begun = sum(path.stat().st_size for path in (root / "blobs").glob("*.incomplete"))
    free = free_if_short(root, max(0, needed - begun))
    if free is not None:
        raise ModelLoadError(
            f"{root}: {size(needed)} are to be fetched and {size(free)} are free on the disk: "
            "free some, or name another place in HF_HOME"
        )


def _check_kinds(hub_id: str, files: list[RemoteFile]) -> None:
    names = [file.name for file in files if "/" not in file.name]
    if CONFIG not in names:
        raise ModelLoadError(f"{hub_id}: has no config.json: it is no model in transformers' format")
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise ModelLoadError(
            f"{hub_id}: has only pickled weights, which are never loaded: "
            f"'rerank-grpc download {hub_id}' fetches and converts them"
        )


def _list_files(hub_id: str, revision: str) -> tuple[str, list[RemoteFile]]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    files = [
        RemoteFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in info.siblings or ()
    ]
    if not info.sha or not files:
        raise ModelLoadError(f"{hub_id}: the hub lists no files of it")
    return info.sha, files


def _reason(error: Exception, revision: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; what has been fetched is kept, and the next try goes on from there"
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and isinstance(error.filename, str | os.PathLike)
    ):
        place, where = os.fspath(error.filename), "or name another place in HF_HOME"
        return f"{place} cannot be written: {obstacle(place, error, writing=True)}, {where}"
    match error:
        case errors.GatedRepoError():
            return "the hub gives it only to those who accepted its terms: do so, and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or not for this token: check the id and HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"the hub has no revision {revision} of it: name another as ID@REVISION"
        case errors.OfflineModeIsEnabled():
            return "it is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        case _:
            return (
                f"the hub at {_host()} did not give it ({type(error).__name__}): "
                "check the network and HF_ENDPOINT, "
                "or put its files into the models directory; the next try goes on where this one ended"
            )


def _host() -> str:
    """Names the hub's host without what else its URL holds, which may be a secret."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
