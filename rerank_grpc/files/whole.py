"""Writes a file so that its name always stands for a whole one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Gives a file its name once it is whole, and leaves none behind if it does not become so.

    A link is followed. Others may read the file as the umask lets them, unless it is `private`. Raises
    OSError.
    """
    target = Path(os.path.realpath(path))
    number, unfinished = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            if not private:
                os.fchmod(number, 0o666 & ~_umask())
        Path(unfinished).replace(target)
    except BaseException:  # a full disk, or Ctrl-C
        Path(unfinished).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
