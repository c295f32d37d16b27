"""Fetches a model's files from the hub into its cache: resumed, checked, and visible only when complete.

The hub's own client finds the files and transfers them. It throws away what a
transfer that was cut off had got, and checks no digest; so here each file is
written to `blobs/ETAG.incomplete`, continued where it ended, compared with the
size and digest that the hub gives, and only then renamed. config.json, without
which nothing is a model, comes last, and the branch's name after it.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rerank_grpc.checkpoints.transfer import Progress, RemoteFile, Silence, Transfer, replace
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.units import size

CONFIG = "config.json"
NEEDED = ("model*.safetensors", "tokenizer.json")
KINDS = (".safetensors", ".safetensors.index.json", ".json", ".txt", ".model")
PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")
POOLING = re.compile(r"\d+_\w+/config\.json")  # sentence-transformers' modules
SPARE_BYTES = 16 << 20  # what a download leaves free


def cached(hub_id: str, revision: str, *, exact: bool = False) -> Path | None:
    """Finds a complete model in the hub's cache: the revision, or else what is there of its main branch."""
    from huggingface_hub import try_to_load_from_cache

    for each in (revision,) if exact else dict.fromkeys((revision, "main")):
        found = try_to_load_from_cache(hub_id, CONFIG, revision=each)
        if isinstance(found, str) and all(any(Path(found).parent.glob(name)) for name in NEEDED):
            return Path(found).parent
    return None


def fetch(hub_id: str, revision: str, *, progress: Progress | None = None, pickled: bool = False) -> Path:
    """Fetches what is missing of a model and returns its directory.

    With `pickled`, old weights are fetched where there are no others. Raises
    ModelLoadError: whatever is wrong, in one line with the remedy.
    """
    watcher: Progress = progress or Silence()
    # It would warn of every connection that is lost and made anew, into the middle of a progress bar.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with explained(hub_id, revision):
        commit, listed = _list_files(hub_id, revision)
        wanted = choose(listed, pickled=pickled)
        _check_kinds(hub_id, wanted)
        root = _storage(hub_id)
        missing = [file for file in wanted if not _place(root, commit, file).exists()]
        check_room(root, missing)
        for file in sorted(missing, key=lambda file: (file.name == CONFIG, file.name)):
            Transfer(hub_id, commit, root, file, watcher).run()
        if revision != commit:
            replace(root / "refs" / revision, lambda path: path.write_text(commit))
    return root / "snapshots" / commit


def choose(files: list[RemoteFile], *, pickled: bool) -> list[RemoteFile]:
    """Picks the files a model consists of: never code, and pickles only where nothing else is there."""
    top = [file for file in files if "/" not in file.name]
    chosen = [file for file in top if file.name.endswith(KINDS) and not PICKLED.fullmatch(file.name)]
    chosen += [file for file in files if POOLING.fullmatch(file.name)]
    if pickled and not any(file.name.endswith(".safetensors") for file in chosen):
        chosen += [file for file in top if PICKLED.fullmatch(file.name)]
    return chosen


def check_room(root: Path, files: list[RemoteFile]) -> None:
    """Raises ModelLoadError if the disk has no room for what is still to be fetched."""
    place = next(path for path in (root, *root.parents) if path.exists())
    there = sum(path.stat().st_size for path in (root / "blobs").glob("*.incomplete"))
    needed, free = sum(file.size or 0 for file in files), shutil.disk_usage(place).free
    if needed and needed - there + SPARE_BYTES > free:
        raise ModelLoadError(
            f"{root}: {size(needed)} are to be fetched and {size(free)} are free on the disk: "
            "free some, or name another place in HF_HOME"
        )


def _check_kinds(hub_id: str, files: list[RemoteFile]) -> None:
    names = [file.name for file in files]
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


def _storage(hub_id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def _place(root: Path, commit: str, file: RemoteFile) -> Path:
    return root / "snapshots" / commit / file.name


@contextmanager
def explained(hub_id: str, revision: str) -> Iterator[None]:
    """Turns whatever the hub's client or the disk raises into one line with the remedy."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise ModelLoadError(f"{hub_id}: {_reason(error, revision)}") from error


def _reason(error: Exception, revision: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; what has been fetched is kept, and the next try goes on from there"
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
                f"the hub did not give it ({type(error).__name__}): check the network and HF_ENDPOINT, "
                "or put its files into the models directory; the next try goes on where this one ended"
            )
