import signal
import subprocess
import sys
import time

import pytest

# Python's main thread notices a signal that another thread of the process received as late as one that
# came just before it slept: not at all, unless something wakes it.
WAITS = """
import signal, sys, threading
from rerank_grpc.cli.process import Process

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

process = {process}
threading.Thread(target=send, daemon=True).start()
process.{waits}
print("woke", process.stopping)
process.log.close()
"""
# Standard error is a full pipe that nobody reads.
FULL = """
import contextlib, ctypes, os, signal, sys, threading
_, writing = os.pipe()
os.set_blocking(writing, False)
with contextlib.suppress(BlockingIOError):
    while True:
        os.write(writing, bytes(4096))
os.set_blocking(writing, True)
os.dup2(writing, 2)

from rerank_grpc.cli.process import Process

process = Process("info", "text", {grace})
"""
AN_EVENT = """threading.Event()
signal.signal(signal.SIGTERM, lambda *_: process.set())
"""


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


def wait_for(*, waits="wait()", **parts):
    return run(WAITS.format(waits=waits, **parts))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_does_not_interrupt_the_main_thread_wakes_it(name):
    done = wait_for(process='Process("info", "text", 5)', signal=name)
    assert done.stdout == "sent\nwoke True\n"
    again = "; Ctrl-C again ends at once" if name == "SIGINT" else ""
    assert done.stderr == f"\nstopping: calls in progress have 5 s{again}\n"


def test_sabotage_an_event_sleeps_through_that_signal():
    code = WAITS.format(waits="wait()", process=AN_EVENT, signal="SIGTERM")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "sent\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
        finally:
            process.kill()
        assert process.stdout.read() == ""


def test_nor_does_it_matter_who_has_taken_the_wake_up_descriptor():
    taken = 'Process("info", "text", 5); signal.set_wakeup_fd(-1)'
    # Sent to the process: the main thread gets it, in the middle of its sleep.
    code = WAITS.format(process=taken, waits="wait()", signal="SIGTERM")
    code = code.replace("signal.pthread_kill(threading.get_ident()", "import os; os.kill(os.getpid()")
    assert run(code).stdout == "sent\nwoke True\n"


def test_what_drains_may_hang_and_a_second_signal_still_ends_the_process():
    first = 'Process("info", "text", 90); signal.raise_signal(signal.SIGTERM)'
    done = wait_for(process=first, waits="drain(threading.Event().wait)", signal="SIGTERM")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "sent\n")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


MADE = """
import os, signal, sys
from rerank_grpc.cli.process import Process
process = Process("info", "text", 90)
"""

# The thread hangs before the grace begins, and the kernel's alarm, which is tried below, comes later.
STALLS = (
    MADE.replace("90", "0")
    + """
import threading
from rerank_grpc.cli import process as module

module.ALARM_SECONDS = 30
hangs = threading.Event()

def stalls():
    hangs.set()
    signal.pause()

threading.Thread(target=stalls, daemon=True).start()
hangs.wait()
process.drain(threading.Event().wait)
"""
)


def test_what_drains_is_waited_for_and_its_failure_is_raised():
    done = run(MADE + "process.drain(lambda: print('done'))")
    assert (done.returncode, done.stdout) == (0, "done\n")
    done = run(MADE + "process.drain(lambda: 1 / 0)")
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (1, True)


def test_a_second_signal_ends_the_process_at_once():
    send = "os.kill(os.getpid(), signal.SIGTERM)"
    done = run(MADE + f"{send}; assert process.stopping\n{send}; print('still here')")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


def test_a_thread_that_hangs_after_the_grace_is_shown_and_ends_the_process():
    done = run(STALLS)
    assert done.returncode == 1
    assert "in stalls" in done.stderr


# With a log that nobody reads


def test_a_reader_that_reads_no_more_keeps_nobody_waiting():
    ends = "signal.raise_signal(signal.SIGTERM); process.wait(); print('woke', flush=True); process.end(0)"
    done = run(FULL.format(grace=90) + ends)
    assert (done.returncode, done.stdout) == (0, "woke\n")


def test_a_second_signal_ends_the_process_though_nobody_reads_the_log():
    raises = """
def drain():
    print("drains", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()

signal.raise_signal(signal.SIGTERM)
process.drain(drain)
"""
    done = run(FULL.format(grace=90) + raises)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "drains\n")


@pytest.mark.clock
@pytest.mark.parametrize("hangs", ["signal.pause", "ctypes.PyDLL(None).pause"])
def test_the_kernel_ends_a_process_whose_last_words_nobody_reads(hangs):
    # PyDLL keeps the interpreter for itself: no Python code runs any more.
    begin = time.monotonic()
    done = run(FULL.format(grace=0.2) + f"process.drain({hangs})")
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - begin < 0.2 + 2 + 5  # and Python's own start
