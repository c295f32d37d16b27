"""The command line: each command reads its settings, and imports torch or grpc only to run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.terminal import fail
from rerank_grpc.config.environment import quiet_libraries
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import mask_kernels, provide_temporary_folder
from rerank_grpc.errors import ConfigurationError, RerankError
from rerank_grpc.files.obstacles import cause, obstacle


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (failed) or 2 (bad option)."""
    _open_standard_streams()
    quiet_libraries()
    provide_temporary_folder()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    output = _Output(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, output)):
            return _run(sys.argv[1:] if arguments is None else arguments)
    except OptionError as error:
        return fail(str(error), 2)
    except (ConfigurationError, RerankError) as error:
        return fail(str(error), 1)
    except OSError as error:
        if error is not output.failure:
            return fail(_told(error), 1)
        _drop_output()
        if isinstance(error, BrokenPipeError):
            # The reader has left, as `head` does; other tools end quietly too.
            return 128 + signal.SIGPIPE
        return fail(f"the output cannot be written: {cause(error)}", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(arguments: Sequence[str]) -> int:
    """Runs one command, and writes out all that it has printed."""
    try:
        parsed = parse(arguments)
        if kernels := parsed.flags.get("kernels"):
            mask_kernels(kernels)  # `auto`, too, wins over the variable
        status: int = parsed.run(parsed)
    finally:  # --help and --version end here
        sys.stdout.flush()
    return status


def _told(error: OSError) -> str:
    """Says by which file a command has failed, or by which error where that names none."""
    if error.filename and isinstance(error.filename, str | os.PathLike):
        return f"{error.filename}: {obstacle(error.filename, error)}"
    return f"{type(error).__name__}: {cause(error)}"


class _Output:
    """A stream that remembers its own failure, by which that is told from those of files and sockets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, as the stream does."""
        with self._remembering():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what waits."""
        with self._remembering():
            self._stream.flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def _drop_output() -> None:
    """Has what is left of the output go nowhere: the interpreter would fail to write it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Opens /dev/null for each stream that the parent has closed: the next socket would become stderr."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))
