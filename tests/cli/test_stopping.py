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
        return frame.f_code.co_name in ("wait", "drain") and stat.read().split()[2] == "S"

def send():
    seen = 0
    while seen < 1_000:
        seen = seen + 1 if main_sleeps() else 0
    print("sent", flush=True)
    signal.pthread_kill(threading.get_ident(), signal.{signal})

stopping = {stopping}
threading.Thread(target=send, daemon=True).start()
stopping.{waits}
print("woke", stopping.is_set())
"""
FULL = """
import contextlib, os, signal
from rerank_grpc.cli.stopping import Stopping

_, writing = os.pipe()
os.set_blocking(writing, False)
with contextlib.suppress(BlockingIOError):
    while True:
        os.write(writing, bytes(4096))
os.set_blocking(writing, True)
os.dup2(writing, 2)
stopping = Stopping(5)
signal.raise_signal(signal.SIGTERM)
stopping.wait()
print("woke")
"""
AN_EVENT = """threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
"""


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


def wait_for(seconds, *, waits="wait()", **parts):
    code = WAITS.format(waits=waits, **parts)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_does_not_interrupt_the_main_thread_wakes_it(name):
    done = wait_for(30, stopping="Stopping(5)", signal=name)
    assert done.stdout == "sent\nwoke True\n"
    again = "; Ctrl-C again ends at once" if name == "SIGINT" else ""
    assert done.stderr == f"\nstopping: calls in progress have 5 s{again}\n"


def test_sabotage_an_event_sleeps_through_that_signal():
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        wait_for(5, stopping=AN_EVENT, signal="SIGTERM")
    assert caught.value.stdout == b"sent\n"


def test_nor_does_it_matter_who_has_taken_the_wake_up_descriptor():
    taken = "Stopping(5); signal.set_wakeup_fd(-1)"
    # Sent to the process: the main thread gets it, in the middle of its sleep.
    code = WAITS.format(stopping=taken, waits="wait()", signal="SIGTERM")
    code = code.replace("signal.pthread_kill(threading.get_ident()", "import os; os.kill(os.getpid()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "sent\nwoke True\n"


def test_what_drains_may_hang_and_a_second_signal_still_ends_the_process():
    first = "Stopping(5); signal.raise_signal(signal.SIGTERM)"
    done = wait_for(30, stopping=first, waits="drain(threading.Event().wait)", signal="SIGTERM")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "sent\n")


def test_what_drains_is_waited_for_and_its_failure_is_raised():
    code = "from rerank_grpc.cli.stopping import Stopping\nStopping(5).drain(lambda: {})"
    done = subprocess.run(
        [sys.executable, "-c", code.format("print('done')")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    done = subprocess.run([sys.executable, "-c", code.format("1 / 0")], capture_output=True, text=True)
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (1, True)


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal; from rerank_grpc.cli.stopping import Stopping; stopping = Stopping(5)\n"
        "os.kill(os.getpid(), signal.SIGTERM); assert stopping.is_set()\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


def test_a_reader_that_reads_no_more_keeps_nobody_waiting():
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=30)
    assert done.stdout == "woke\n"
