import signal
import subprocess
import sys

import pytest

# Python's main thread notices a signal that another thread of the process received as late as one that
# came just before it slept: not at all, unless something wakes it.
WAITS = """
import signal, sys, threading
from rerank_grpc.cli.stopping import Stopping

def main_sleeps():
    frame = sys._current_frames()[threading.main_thread().ident]
    # Reading a file lets go of the interpreter: a main thread that waits only for that would go on.
    with open(f"/proc/self/task/{{threading.main_thread().native_id}}/stat") as stat:
        return frame.f_code.co_name == "wait" and stat.read().split()[2] == "S"

def send():
    seen = 0
    while seen < 1_000:
        seen = seen + 1 if main_sleeps() else 0
    signal.pthread_kill(threading.get_ident(), signal.{signal})

stopping = {stopping}
threading.Thread(target=send, daemon=True).start()
stopping.wait()
print("woke", stopping.is_set())
"""
AN_EVENT = """threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
"""


def wait_for(seconds, **parts):
    return subprocess.run(
        [sys.executable, "-c", WAITS.format(**parts)], capture_output=True, text=True, timeout=seconds
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_does_not_interrupt_the_main_thread_wakes_it(name):
    done = wait_for(30, stopping="Stopping(5)", signal=name)
    assert done.stdout == "woke True\n"
    again = "; Ctrl-C again ends at once" if name == "SIGINT" else ""
    assert done.stderr == f"\nstopping: calls in progress have 5 s{again}\n"


def test_sabotage_an_event_sleeps_through_that_signal():
    with pytest.raises(subprocess.TimeoutExpired):
        wait_for(3, stopping=AN_EVENT, signal="SIGTERM")


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal; from rerank_grpc.cli.stopping import Stopping; stopping = Stopping(5)\n"
        "os.kill(os.getpid(), signal.SIGTERM); assert stopping.is_set()\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
