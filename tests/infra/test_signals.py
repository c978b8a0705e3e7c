"""The signal to stop: it ends every wait, whenever and to whichever thread it comes."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from tailrace_infra.signals import StopSignal

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@BOTH
def test_a_signal_before_the_wait_is_seen_by_every_wait(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop.is_set()
        assert not stop.wait(0.0)
        os.kill(os.getpid(), number)
        assert stop.wait()
        assert stop.wait(60)
        assert stop.is_set()


@BOTH
def test_a_signal_that_another_thread_gets_ends_the_wait(number: signal.Signals) -> None:
    """It does not interrupt the main thread's system call, as one that comes just before that call does not."""
    with StopSignal() as stop:
        other = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number))
        other.start()
        assert stop.wait(60)
        other.join()


def test_any_thread_may_wait_and_set() -> None:
    with StopSignal() as stop:
        seen: list[bool] = []
        waiting = threading.Thread(target=lambda: seen.append(stop.wait(60)))
        waiting.start()
        for _ in range(1000):  # more than a socket holds is no error
            stop.set()
        waiting.join()
        assert seen == [True]


def test_a_wait_ends_when_something_else_is_readable() -> None:
    ours, theirs = socket.socketpair()
    with StopSignal() as stop, ours, theirs, ours.makefile("rb") as file:
        theirs.sendall(b"x")
        assert not stop.wait(60, [file])
        stop.set()
        assert stop.wait(60, [file])


@BOTH
def test_after_the_last_wait_a_process_ends_as_it_would_have(number: signal.Signals) -> None:
    text = f"""if True:
        import os
        from tailrace_infra.signals import StopSignal
        with StopSignal(last=True) as stop:
            os.kill(os.getpid(), {number.value})
            assert stop.is_set()
        os.kill(os.getpid(), {number.value})
    """
    assert subprocess.run([sys.executable, "-c", text], check=False, timeout=60).returncode == 0


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal(), StopSignal() as inner:
        inner.set()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
