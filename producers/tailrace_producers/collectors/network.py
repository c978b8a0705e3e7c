"""Network interfaces, and TCP connections by state."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import psutil

from tailrace_producers.collectors.proc import parse_sockstat
from tailrace_producers.collectors.reading import PROC, Failure, Reading
from tailrace_producers.collectors.sock_diag import (
    CLOSE,
    ESTABLISHED,
    FIN_WAIT_2,
    SYN_RECEIVED,
    TIME_WAIT,
    count_sockets,
)

__all__ = ["IGNORED_INTERFACES", "Connections", "Interfaces", "derive_states", "parse_tcp"]

IGNORED_INTERFACES: Final = ("veth*", "cali*", "lxc*")
"""The host's ends of containers' interfaces: they come and go, with other names each time."""
STATES: Final = {
    ESTABLISHED: "established", 2: "syn_sent", SYN_RECEIVED: "syn_received", 4: "fin_wait_1", FIN_WAIT_2: "fin_wait_2",
    TIME_WAIT: "time_wait", 8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing",
}  # fmt: skip
"""Linux's numbers (include/net/tcp_states.h) as OpenTelemetry's `network.connection.state`; CLOSE has no connection."""


class Interfaces:
    """Traffic and state of network interfaces, as psutil has them. Cost: 0.2 ms, 0.2 ms an interface."""

    name = "interfaces"

    def __init__(self, ignored: Sequence[str] = IGNORED_INTERFACES) -> None:
        """`ignored` are patterns (`*`, `?`, `[...]`) of names to leave out."""
        self._ignored = ignored

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        for name, io in psutil.net_io_counters(pernic=True, nowrap=False).items():
            if self._has(name):
                attributes = {"network.interface.name": name}
                for direction, size, packets, errors, dropped in (
                    ("receive", io.bytes_recv, io.packets_recv, io.errin, io.dropin),
                    ("transmit", io.bytes_sent, io.packets_sent, io.errout, io.dropout),
                ):
                    of_direction = {**attributes, "network.io.direction": direction}
                    yield Reading("system.network.io", "cumulative", "By", size, of_direction)
                    yield Reading("system.network.packet.count", "cumulative", "{packet}", packets, of_direction)
                    yield Reading("system.network.packet.dropped", "cumulative", "{packet}", dropped, of_direction)
                    yield Reading("system.network.errors", "cumulative", "{error}", errors, of_direction)
        for name, state in psutil.net_if_stats().items():
            if self._has(name):
                attributes = {"network.interface.name": name}
                yield Reading("system.network.interface.up", "gauge", "1", float(state.isup), attributes)
                yield Reading("system.network.interface.mtu", "gauge", "By", state.mtu, attributes)
                if state.speed:  # 0: it has none, or does not tell
                    yield Reading("system.network.interface.speed", "gauge", "bit/s", state.speed * 1e6, attributes)
                if state.duplex != psutil.NIC_DUPLEX_UNKNOWN:
                    full = float(state.duplex == psutil.NIC_DUPLEX_FULL)
                    yield Reading("system.network.interface.full_duplex", "gauge", "1", full, attributes)

    def _has(self, name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in self._ignored)


class Connections:
    """TCP connections by state, both versions of IP together. Linux only; elsewhere it gives nothing.

    The kernel lists what is neither established nor in TIME_WAIT; how many those are follows from its own totals. So
    it takes 1 ms, and 0.1 us a connection that the kernel passes over, where reading /proc/net/tcp takes 2 us a line:
    9 ms instead of 177 with 90,000 connections. Where the kernel does not offer that (no `tcp_diag`), those files are
    read.
    """

    name = "connections"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc
        self._asks_kernel = proc is not None and proc == PROC

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        if self._proc is None:
            return
        for state, count in self._count(self._proc).items():
            attributes = {"network.transport": "tcp", "network.connection.state": STATES[state]}
            yield Reading("system.network.connection.count", "gauge", "{connection}", count, attributes)

    def _count(self, proc: Path) -> dict[int, int]:
        if self._asks_kernel:
            try:
                listed = count_sockets(STATES.keys() - {ESTABLISHED, TIME_WAIT})
            except OSError:
                self._asks_kernel = False  # not this kernel, or not from this sandbox
            else:
                return derive_states(listed, _sockstat(proc, "sockstat") | _sockstat(proc, "sockstat6"))
        counts = dict.fromkeys(STATES, 0)
        for file in ("tcp", "tcp6"):
            path = proc / "net" / file
            if path.exists():  # a kernel without IPv6
                for state, count in parse_tcp(path.read_bytes()).items():
                    if state in counts:
                        counts[state] += count
        return counts


def derive_states(listed: Counter[tuple[int, bool]], sockstat: dict[tuple[str, str], int]) -> dict[int, int]:
    """All states, from the sockets listed by (state, whether it only waits) and the totals of /proc/net/sockstat*.

    `inuse` counts every socket but those that only wait to be forgotten (which `tw` counts, in TIME_WAIT or in
    FIN_WAIT_2) and connections not yet accepted (SYN_RECEIVED). Sockets that come and go meanwhile may put a figure out
    by as many.
    """
    counts = dict.fromkeys(STATES, 0)
    in_use = sockstat.get(("TCP", "inuse"), 0) + sockstat.get(("TCP6", "inuse"), 0)
    waiting = sockstat.get(("TCP", "tw"), 0)
    for (state, waits), count in listed.items():
        if state in counts:
            counts[state] += count
        if waits:
            waiting -= count
        elif state not in (SYN_RECEIVED, CLOSE):
            in_use -= count
    return counts | {ESTABLISHED: max(0, in_use), TIME_WAIT: max(0, waiting)}


def parse_tcp(data: bytes) -> Counter[int]:
    """Reads /proc/net/tcp or tcp6: sockets by state.

    Raises:
        ValueError, IndexError: lines with fewer words, or words where numbers belong.
    """
    return Counter(int(line.split(None, 4)[3], 16) for line in data.splitlines()[1:])


def _sockstat(proc: Path, file: str) -> dict[tuple[str, str], int]:
    path = proc / "net" / file
    return parse_sockstat(path.read_text()) if path.exists() else {}
