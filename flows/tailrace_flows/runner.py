"""Runs a dataflow as an operator wants it run: recovery on, clean stops.

The engine runs in a thread so that the main thread takes the signals: Bytewax by itself dies at once of SIGTERM, and
ignores SIGINT while it waits for the other processes of its cluster.
"""

import ctypes
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from bytewax._bytewax import cli_main
from tailrace_schemas import clock

from tailrace_flows import host_clock
from tailrace_flows.recovery import prepare_recovery
from tailrace_flows.settings import Settings

__all__ = ["ClockSetError", "keep_freed_memory", "run", "start_deaf"]

log = logging.getLogger(__name__)

GRACE_S = 3.0
"""After a signal, ClickHouse has this long to take writes before they are left to the next start."""
EXIT_S = 4.5
"""After a signal, the process is gone by then, whatever hangs: recovery makes that safe."""
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
KEPT_BYTES = 256 * 1024 * 1024
LARGEST_KEPT_BYTES = 32 * 1024 * 1024


class ClockSetError(Exception):
    """The host's clock was set: the process must end at once, as if killed, and start anew."""

    def __init__(self, by_us: int) -> None:
        super().__init__(f"the host's clock was set {by_us / 1e6:+.1f} s: starting anew by it")
        self.ahead = by_us > 0


def keep_freed_memory() -> None:
    """Tells malloc to reuse what numpy's arrays free, up to KEPT_BYTES, rather than give it back and fault it in again.

    That was a third of the time of the windows. Does nothing where malloc is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, 1)  # only the first arena keeps anything


def start_deaf(thread: threading.Thread) -> None:
    """Starts a thread that takes no STOP_SIGNALS: what the main thread blocks, no other may get."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    settings: Settings,
    build: Callable[..., Any],
    recovery_directory: Path,
    *,
    process: int = 0,
    addresses: list[str] | None = None,
    duration_s: float | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Runs the dataflow that `build` gives until SIGTERM, SIGINT or `duration_s`, then drains. Main thread only.

    It goes by `host_clock`, as its `begin` was called last.

    The caller holds the `lock` of the recovery directory. With `addresses`, this is one process of a cluster.
    `ready` is called as soon as signals lead to a clean end.

    Raises:
        ClockSetError: the host's clock was set; the engine may hang, and the process must end. SIGTERM and SIGINT are
            blocked then, until this is called again.
        whatever the dataflow raised.
    """
    keep_freed_memory()
    # What lives long here, such as series, has no cycles: looking for some took a twentieth of the time.
    gc.set_threshold(100_000, 20, 50)
    stop = threading.Event()
    stopped_at: list[float] = []

    def begin_stop(number: int, frame: object) -> None:
        # Nothing here that takes a lock: what this interrupts may hold it.
        if not stopped_at:
            stopped_at.append(clock.monotonic_s())

    # Never restored: a second signal while the process ends must not turn a clean end into a killed one.
    for number in STOP_SIGNALS:
        signal.signal(number, begin_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    ready()
    failure: list[BaseException] = []

    def hurry() -> bool:
        return bool(stopped_at) and clock.monotonic_s() - stopped_at[0] > GRACE_S

    dataflow = build(settings, stop=stop, hurry=hurry, process=process)
    hosts = {address.rpartition(":")[0] for address in addresses or ()}
    recovery = prepare_recovery(recovery_directory, alone=not addresses, shared_out=len(hosts) > 1)

    def engine() -> None:
        try:
            cli_main(
                dataflow,
                process_id=process if addresses else None,
                addresses=addresses,
                epoch_interval=timedelta(seconds=settings.recovery.epoch_s),
                recovery_config=recovery,
            )
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failure.append(error)

    thread = threading.Thread(target=engine, name="bytewax", daemon=True)
    ends_at = None if duration_s is None else clock.monotonic_s() + duration_s
    start_deaf(thread)
    while thread.is_alive():
        thread.join(0.1)
        now_s = clock.monotonic_s()
        if not stopped_at and (set_by_us := host_clock.set_by_us()):
            # What comes from here on stops the process once it has started anew: it stays blocked through an exec.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            if not stopped_at:
                raise ClockSetError(set_by_us)
        if not stop.is_set() and (stopped_at or (ends_at is not None and now_s >= ends_at)):
            log.info("stopping: %s", "signal" if stopped_at else "the duration is over")
            stop.set()
        if stopped_at and now_s - stopped_at[0] > EXIT_S:
            log.warning("not drained in time; what is not yet durable is done again at the next start")
            logging.shutdown()
            os._exit(0)
    # An interpreter that ends sets every handler back, but not this.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if failure:
        if not hurry():
            raise failure[0]
        # A write that gave up, or another process of the cluster that is gone by now: a stop like any other.
        log.warning("stopped before everything was durable; that is done again at the next start: %s", failure[0])
