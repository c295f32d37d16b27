"""The command line: each command reads its settings, and imports torch or grpc only to run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.terminal import fail
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import quiet_libraries
from rerank_grpc.errors import ConfigurationError, RerankError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (failed) or 2 (bad option)."""
    _open_standard_streams()
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        parsed = parse(sys.argv[1:] if arguments is None else arguments)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except OptionError as error:
        return fail(str(error), 2)
    except (ConfigurationError, RerankError) as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        # The reader has left, as `head` does; other tools end quietly too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _open_standard_streams() -> None:
    """Opens /dev/null for each stream that the parent has closed: the next socket would become stderr."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))
