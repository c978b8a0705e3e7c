"""What belongs to the host as a whole: uptime, and its sockets."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from tailrace_schemas.clock import now_us

from tailrace_producers.collectors.proc import parse_sockstat
from tailrace_producers.collectors.reading import PROC, Failure, Reading

__all__ = ["Sockets", "Uptime"]


class Uptime:
    """Cost: 20 us."""

    name = "uptime"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        if self._proc is not None:
            uptime_s = float((self._proc / "uptime").read_text().split()[0])
        else:
            uptime_s = now_us() / 1e6 - psutil.boot_time()
        yield Reading("system.uptime", "gauge", "s", uptime_s)


class Sockets:
    """Linux only; elsewhere it gives nothing. Cost: 60 us."""

    name = "sockets"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        if self._proc is None:
            return
        for file, version in (("sockstat", "ipv4"), ("sockstat6", "ipv6")):
            path = self._proc / "net" / file
            if not path.exists():  # a kernel without IPv6
                continue
            found = parse_sockstat(path.read_text())
            for transport in ("tcp", "udp"):
                protocol = transport.upper() + ("6" if version == "ipv6" else "")
                attributes = {"network.transport": transport, "network.type": version}
                in_use = found.get((protocol, "inuse"), 0)
                yield Reading("system.linux.network.sockets", "gauge", "{socket}", in_use, attributes)
                if (protocol, "mem") in found:  # counted for both versions together
                    size = found[protocol, "mem"] * os.sysconf("SC_PAGE_SIZE")
                    attributes = {"network.transport": transport}
                    yield Reading("system.linux.network.socket.memory", "gauge", "By", size, attributes)
