"""Values that are read when they are due rather than recorded when they change."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Final, NamedTuple

__all__ = ["OBSERVE_INTERVAL_S", "Observation", "Observers", "Read"]

OBSERVE_INTERVAL_S: Final = 5.0
"""Two observations in each window of 10 s."""

Observation = tuple[float, Mapping[str, object]]
"""A value and its attributes."""
Read = Callable[[], "float | Iterable[Observation] | None"]
"""What a host registers: a value, none just now, or one for each of several sets of attributes."""

_log = logging.getLogger("tailrace.producer")


class _Observer(NamedTuple):
    metric: str
    read: Read
    attributes: Mapping[str, object]
    record: Callable[[float, Mapping[str, object]], None]


class Observers:
    """Calls all callbacks each interval, in a daemon thread of their own: one that hangs holds up the others, but
    nothing else. One that fails is counted, logged the first time, and called again in the next pass.
    """

    def __init__(self, count_error: Callable[[str], None]) -> None:
        """`count_error` is given the metric's name."""
        self._count_error = count_error
        self._observers: list[_Observer] = []
        self._failed: set[str] = set()
        self.start_over()

    def start_over(self) -> None:
        """Go on in a forked child, with a thread of its own."""
        self._stop = Event()
        self._lock = Lock()
        """Passes do not overlap."""
        self._thread: Thread | None = None
        if self._observers:
            self._start()

    def add(self, metric: str, read: Read, attributes: Mapping[str, object], record: Callable[..., None]) -> None:
        """Call `read` each interval from now on. The first one starts the thread."""
        self._observers.append(_Observer(metric, read, attributes, record))
        if self._thread is None and not self._stop.is_set():
            self._start()

    def collect(self) -> None:
        """One pass, in the calling thread."""
        with self._lock:
            for observer in tuple(self._observers):
                self._observe(observer)

    def close(self, timeout_s: float) -> None:
        """A last pass, so that the end of a short run is seen too. It is waited for as long as `timeout_s`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        self._thread = Thread(target=self._run, args=(self._stop,), name="tailrace-observers", daemon=True)
        self._thread.start()

    def _run(self, stop: Event) -> None:
        while not stop.wait(OBSERVE_INTERVAL_S):
            self.collect()
        self.collect()

    def _observe(self, observer: _Observer) -> None:
        try:
            result = observer.read()
            if isinstance(result, Iterable):
                for value, attributes in result:
                    observer.record(value, {**observer.attributes, **attributes})
            elif result is not None:
                observer.record(result, observer.attributes)
        except BaseException as error:  # a host's callback, which may call sys.exit() too
            if not isinstance(error, Exception) and current_thread() is main_thread():
                raise  # of a signal handler, which came during `collect`
            self._count_error(observer.metric)
            if observer.metric not in self._failed:
                self._failed.add(observer.metric)
                with suppress(Exception):  # a host's logging may raise
                    _log.warning("%s could not be observed: %r; counted from now on", observer.metric, error)
