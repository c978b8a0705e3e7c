"""Latency of TCP connections to given targets. A pass never waits for one: it takes what the round before has found."""

import errno
import ipaddress
import selectors
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final, Self

from tailrace_schemas.clock import monotonic_s

from tailrace_producers.collectors.reading import Failure, Reading

__all__ = ["ERRORS", "MAX_TARGETS", "Probes", "Target"]

MAX_TARGETS: Final = 64
RESOLVE_EVERY_S: Final = 60.0
ERRORS: Final = ("timeout", "connection_refused", "unreachable", "name_resolution", "other")
"""Values of `error.type`."""
_ERROR_OF: Final = {
    errno.ECONNREFUSED: "connection_refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}
_TCP_INFO: Final = struct.Struct("=68xI28xI")
"""tcpi_rtt (us) and tcpi_total_retrans of struct tcp_info (include/uapi/linux/tcp.h)."""

_Address = tuple[int, Any]
"""Family and what `connect` takes."""


@dataclass(frozen=True)
class Target:
    """Where to connect to."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `host:port`, `192.0.2.1:80` or `[2001:db8::1]:80`.

        Raises:
            ValueError: it is none of these.
        """
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or (":" in bare and bare == host) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{text!r} is no target: write host:port, or [address]:port for IPv6")
        return cls(bare, int(port))


class Probes:
    """Connects to each target once a pass, all at once, in a thread of that round; names are resolved in another.

    What is measured is the handshake: on Linux as the kernel saw it, so that a busy agent does not show as a slow
    network; where the kernel had to repeat a packet, and elsewhere than on Linux, as the agent saw it. A target whose
    name is not resolved yet waits for it. Of several addresses the first is taken. Cost of a pass: 0.2 ms, 0.1 ms a
    target.
    """

    name = "probes"

    def __init__(self, targets: Sequence[Target], timeout_s: float = 2.0) -> None:
        """Raises ValueError on more than `MAX_TARGETS`, or a timeout that is not positive."""
        if len(targets) > MAX_TARGETS:
            raise ValueError(f"{len(targets)} probe targets; at most {MAX_TARGETS} are possible")
        if timeout_s <= 0:
            raise ValueError(f"the probes' timeout is {timeout_s}; it must be positive")
        self._targets = list(dict.fromkeys(targets))
        self._timeout_s = timeout_s
        self._results: deque[tuple[Target, float | str]] = deque(maxlen=2 * MAX_TARGETS)
        """Seconds, or what went wrong."""
        self._errors: Counter[tuple[Target, str]] = Counter()
        self._addresses: dict[Target, _Address | None] = {}
        """None: its name cannot be resolved."""
        for target in self._targets:
            if _is_address(target.host):
                self._addresses[target] = _resolve(target, socket.AI_NUMERICHOST)
        self._named = [target for target in self._targets if target not in self._addresses]
        self._resolved_s: float | None = None
        self._unresolved = False
        self._round: Thread | None = None
        self._resolver: Thread | None = None

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md. Gives what the last round has found, and begins another unless that still runs."""
        while self._results:
            target, result = self._results.popleft()
            if isinstance(result, float):
                yield Reading("network.probe.duration", "distribution", "s", result, _attributes(target))
            else:
                self._errors[target, result] += 1
        for target in self._targets:
            for error in ERRORS:  # 0 as well, or the first would not show as an increase
                attributes = {**_attributes(target), "error.type": error}
                yield Reading("network.probe.errors", "cumulative", "{error}", self._errors[target, error], attributes)
        due = self._resolved_s is None or self._unresolved or now_s - self._resolved_s >= RESOLVE_EVERY_S
        if self._named and due and not _runs(self._resolver):
            self._resolved_s = now_s
            self._resolver = _start(self._resolve_names)
        if not _runs(self._round):
            self._round = _start(self._probe)

    def _resolve_names(self) -> None:
        for target in self._named:
            address = _resolve(target)
            if address is not None or not self._addresses.get(target):
                self._addresses[target] = address  # a name server that is away does not unsettle what it said before
        self._unresolved = any(self._addresses[target] is None for target in self._named)

    def _probe(self) -> None:
        """One round; at most the timeout."""
        pending: dict[socket.socket, tuple[Target, float]] = {}
        with selectors.DefaultSelector() as selector:
            try:
                for target in self._targets:
                    if target in self._addresses:
                        self._connect(target, self._addresses[target], selector, pending)
                deadline_s = monotonic_s() + self._timeout_s
                while pending and (left_s := deadline_s - monotonic_s()) > 0:
                    for key, _ in selector.select(left_s):
                        connection = key.fileobj
                        assert isinstance(connection, socket.socket)
                        selector.unregister(connection)
                        target, began_s = pending.pop(connection)
                        self._results.append((target, _outcome(connection, monotonic_s() - began_s)))
                        connection.close()
                self._results.extend((target, "timeout") for target, _ in pending.values())
            finally:
                for connection in pending:
                    connection.close()

    def _connect(
        self,
        target: Target,
        address: _Address | None,
        selector: selectors.BaseSelector,
        pending: dict[socket.socket, tuple[Target, float]],
    ) -> None:
        if address is None:
            self._results.append((target, "name_resolution"))
            return
        try:
            connection = socket.socket(address[0], socket.SOCK_STREAM)
        except OSError:  # no more files, or no IPv6 in this kernel
            self._results.append((target, "other"))
            return
        connection.setblocking(False)
        began_s = monotonic_s()
        code = connection.connect_ex(address[1])
        if code in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            pending[connection] = target, began_s
            selector.register(connection, selectors.EVENT_WRITE)
        else:
            connection.close()
            self._results.append((target, _ERROR_OF.get(code, "other")))


def _outcome(connection: socket.socket, seen_s: float) -> float | str:
    """Of a connection that the selector has told of: seconds, or what went wrong."""
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return _ERROR_OF.get(code, "other")
    if hasattr(socket, "TCP_INFO"):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if len(info) == _TCP_INFO.size:
            round_trip_us, repeated = _TCP_INFO.unpack(info)
            if round_trip_us and not repeated:
                return float(round_trip_us / 1e6)
    return seen_s


def _resolve(target: Target, flags: int = 0) -> _Address | None:
    """The first address; waits as long as the system's resolver does."""
    try:
        family, _, _, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, flags=flags)[0]
    except (OSError, UnicodeError):
        return None
    return family, address


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _attributes(target: Target) -> dict[str, str]:
    return {"network.transport": "tcp", "server.address": target.host, "server.port": str(target.port)}


def _runs(thread: Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def _start(function: Any) -> Thread:
    thread = Thread(target=function, name="tailrace-probes", daemon=True)
    thread.start()
    return thread
