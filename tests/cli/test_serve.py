import os
import subprocess
import sys
from typing import Any

from tests.command import environment, full_pipe

IMPORTS = """
import gc, weakref
import rerank_grpc.server.server
from rerank_grpc.cli.serve import freeze_imports

class Garbage:
    pass

gc.disable()
garbage = Garbage()
garbage.itself = garbage
left = weakref.ref(garbage)
del garbage
before = len(gc.get_objects())
assert left() is not None
freeze_imports()
print(left() is None, before > 100_000, len(gc.get_objects()) < 100)
"""

SERVES = """
import gc
import rerank_grpc.server.server

def server(settings, *, on_hang, **_):
    print(gc.get_freeze_count() > 100_000)
    raise SystemExit

rerank_grpc.server.server.RerankServer = server
from rerank_grpc.cli import main
main(["serve", "--metrics-port", "off"])
"""

ENDS = """
import threading, types
from rerank_grpc.cli import main, serve
from rerank_grpc.errors import ConfigurationError

def beside(*_):
    raise ConfigurationError("no port")

names = types.SimpleNamespace(configured_name=str)
server = types.SimpleNamespace(local_port=1, health=None, registry=names)
serve._build = lambda *_: (server, types.SimpleNamespace(stop=lambda _: None))
serve.rest_beside = beside
serve._drain = lambda *_: print(threading.current_thread() is threading.main_thread(), flush=True)
main(["serve", "--metrics-port", "off"])
"""

HANGS = """
import sys, threading, types

def server(settings, *, on_hang, **_):
    on_hang()
    threading.Event().wait()

sys.modules["rerank_grpc.server.server"] = types.SimpleNamespace(RerankServer=server)
from rerank_grpc.cli import main
main(["serve", "--metrics-port", "off"])
"""

QUIET = """
import sys, types

def server(settings, *, on_hang, **_):
    from huggingface_hub.utils import logging
    print(logging.get_verbosity() == logging.CRITICAL)
    raise SystemExit

sys.modules["rerank_grpc.server.server"] = types.SimpleNamespace(RerankServer=server)
from rerank_grpc.cli import main
main(["serve", "--metrics-port", "off"])
"""


def run(script, **options):
    own: dict[str, Any] = {"stderr": subprocess.PIPE, "env": environment()}
    return subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=60, **own | options
    )


def output_of(script):
    done = run(script)
    return done.stdout or done.stderr


def test_a_full_collection_does_not_walk_what_was_imported_and_no_garbage_stays():
    assert output_of(IMPORTS) == "True True True\n"


def test_serve_does_so_before_it_makes_the_server():
    assert output_of(SERVES) == "True\n"


def test_the_hubs_warnings_stay_off_stderr_unless_the_operator_wants_them():
    variables = {name: text for name, text in os.environ.items() if name != "HF_HUB_VERBOSITY"}
    assert run(QUIET, env=variables).stdout == "True\n"
    assert run(QUIET, env=variables | {"HF_HUB_VERBOSITY": "info"}).stdout == "False\n"


def test_what_drains_leaves_the_main_thread_to_the_second_signal():
    done = run(ENDS)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr.endswith("\nrerank-grpc: error: no port\n")


def test_a_device_that_hangs_ends_the_process_with_a_status_of_its_own():
    done = run(HANGS)
    assert done.returncode == os.EX_SOFTWARE == 70
    assert "the device of a model hangs; ending with status 70" in done.stderr


def test_so_it_does_though_nobody_reads_the_log():
    with full_pipe() as writing:
        assert run(HANGS, stderr=writing).returncode == 70
