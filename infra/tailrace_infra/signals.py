"""Waiting for the signal to stop, such that it cannot be missed."""

import selectors
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

__all__ = ["ReloadSignal", "StopSignal"]


class StopSignal:
    """An Event that SIGINT and SIGTERM set, while the context lasts. Made in the main thread; any thread may wait.

    Nothing else is interrupted, and further signals change nothing. It is a socket, because the two obvious ways have
    races: a handler that calls `Event.set()` deadlocks if it interrupts the wait between its lock and its sleep; and a
    signal that comes just before the main thread goes to sleep on a lock (of an Event or a queue) does not wake it. The
    interpreter writes to `set_wakeup_fd` from the signal itself, and what was written stays readable.
    """

    def __init__(self, *, last: bool = False) -> None:
        """`last`: the process ends after the context, which signals are to change no more, its exit code least."""
        self._last = last

    def __enter__(self) -> "StopSignal":
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        # The handlers must exist, or the signals would have their default action; the work is done by then.
        self._previous = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def set(self) -> None:
        """As if a signal had come."""
        with suppress(BlockingIOError):  # full: it is set more than once already
            self._waker.send(b"\0")

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.wait(0.0)

    def wait(self, timeout: float | None = None, others: Iterable[IO[Any]] = ()) -> bool:
        """Whether a signal has come; waits for one up to `timeout` seconds, or until one of `others` is readable."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for one in others:
                selector.register(one, selectors.EVENT_READ)
            return any(key.fileobj is self._woken for key, _ in selector.select(timeout))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, signal.SIG_IGN if self._last else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._woken.close()
        self._waker.close()


class ReloadSignal(StopSignal):
    """SIGHUP as well, each signal told by its number."""

    def __enter__(self) -> "ReloadSignal":
        super().__enter__()
        self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: None)
        return self

    def next(self, timeout: float | None = None) -> int | None:
        """The number of the next signal, 0 for `set`; None if none came within `timeout` seconds."""
        return self._woken.recv(1)[0] if self.wait(timeout) else None
