import subprocess
import sys

IMPORTS = """
import gc, weakref
import rerank_grpc.server.app
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
import rerank_grpc.server.app

def server(settings):
    print(gc.get_freeze_count() > 100_000)
    raise SystemExit

rerank_grpc.server.app.RerankServer = server
from rerank_grpc.cli import main
main(["serve"])
"""

ENDS = """
import threading, types
from rerank_grpc.cli import main, serve
from rerank_grpc.errors import ConfigurationError

def beside(*_):
    raise ConfigurationError("no port")

serve._build = lambda _: types.SimpleNamespace(port=1)
serve.rest.beside = beside
serve._end = lambda *_: print(threading.current_thread() is threading.main_thread())
print(main(["serve"]))
"""


def output_of(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    return done.stdout or done.stderr


def test_a_full_collection_does_not_walk_what_was_imported_and_no_garbage_stays():
    assert output_of(IMPORTS) == "True True True\n"


def test_serve_does_so_before_it_makes_the_server():
    assert output_of(SERVES) == "True\n"


def test_what_drains_leaves_the_main_thread_to_the_second_signal():
    assert output_of(ENDS) == "False\n1\n"
