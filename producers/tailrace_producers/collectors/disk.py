"""Block devices: operations, bytes and times as counters; utilization and queue since the pass before."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from tailrace_producers.collectors.proc import DiskStats, parse_diskstats
from tailrace_producers.collectors.reading import PROC, Failure, Reading

__all__ = ["Disk", "DiskRates", "Transfers", "rates"]

SECTOR_BYTES: Final = 512
"""Whatever the device's own sectors are."""
_WRAP_MS: Final = 1 << 32
_NOT_DISKS: Final = re.compile(r"(?:loop|ram|zram|fd|sr)\d+")
_TOTALS: Final = (0, 1, 2, 4, 5, 6, 11, 12, 13, 15)
"""Fields of DiskStats that neither wrap nor go down while the device is the same one."""


class Transfers(NamedTuple):
    """One direction of a device between two readings; 0 where nothing was done."""

    operations_per_s: float
    bytes_per_s: float
    merged_per_s: float
    merged_share: float
    """Of the requests, those that were merged into others before they reached the device."""
    wait_s: float
    """Mean time an operation took, its time in the queue included (iostat: await)."""
    bytes_per_operation: float


class DiskRates(NamedTuple):
    """What iostat -x shows of a device."""

    read: Transfers
    write: Transfers
    discard: Transfers
    flushes_per_s: float
    flush_wait_s: float
    queue: float
    """Mean number of operations waiting or under way (iostat: aqu-sz)."""
    utilization: float
    """0..1: share of the time in which at least one operation was under way."""


def rates(prev: DiskStats, curr: DiskStats, interval_s: float) -> DiskRates:
    """What a device did between two readings.

    A device one of whose counts went down was replaced: all its counts are then new. Times wrap after 50 days and are
    taken modulo 2^32 ms. An interval that is not positive gives no rates (0), but the means a request still hold.
    Source: sysstat, iostat.c and rd_stats.c; `delta` there ends in the same figures.
    """
    if any(curr[field] < prev[field] for field in _TOTALS):
        prev = DiskStats()
    delta = DiskStats(*((now - before) % _WRAP_MS for before, now in zip(prev, curr, strict=True)))
    per_s = 1.0 / interval_s if interval_s > 0 else 0.0

    def transfers(operations: int, merged: int, sectors: int, time_ms: int) -> Transfers:
        size = sectors * SECTOR_BYTES
        return Transfers(
            operations * per_s,
            size * per_s,
            merged * per_s,
            merged / (operations + merged) if merged else 0.0,
            time_ms / 1000 / operations if operations else 0.0,
            size / operations if operations else 0.0,
        )

    return DiskRates(
        transfers(delta.reads, delta.reads_merged, delta.sectors_read, delta.read_ms),
        transfers(delta.writes, delta.writes_merged, delta.sectors_written, delta.write_ms),
        transfers(delta.discards, delta.discards_merged, delta.sectors_discarded, delta.discard_ms),
        delta.flushes * per_s,
        delta.flush_ms / 1000 / delta.flushes if delta.flushes else 0.0,
        delta.weighted_ms / 1000 * per_s,
        min(1.0, delta.busy_ms / 1000 * per_s),
    )


class Disk:
    """Whole devices that were used since boot; no partitions, loop devices or RAM disks.

    LVM and RAID devices are told beside those they consist of: do not add them up. Cost: 0.2 ms, 30 us a device.
    """

    name = "disk"

    def __init__(self, proc: Path | None = PROC, blocks: Path = Path("/sys/block")) -> None:
        self._proc = proc
        self._blocks = blocks
        self._previous: Mapping[str, DiskStats] = {}
        self._previous_s = 0.0

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md. Utilization and queue appear with a device's second pass."""
        devices, has_busy = self._read()
        for device, stats in devices.items():
            yield from _counters(device, stats, has_busy)
            if has_busy and device in self._previous:
                found = rates(self._previous[device], stats, now_s - self._previous_s)
                attributes = {"system.device": device}
                yield Reading("system.disk.utilization", "gauge", "1", found.utilization, attributes)
                yield Reading("system.disk.queue.length", "gauge", "{operation}", found.queue, attributes)
        self._previous, self._previous_s = devices, now_s

    def _read(self) -> tuple[dict[str, DiskStats], bool]:
        """Devices, and whether it is known how long they were busy."""
        if self._proc is None:
            return _from_psutil()
        devices = parse_diskstats((self._proc / "diskstats").read_text())
        # A partition has no entry of its own there. Names with a slash, such as cciss/c0d0, have a "!" for it.
        whole = {entry.name.replace("!", "/") for entry in self._blocks.iterdir()} if self._blocks.is_dir() else None
        return {
            device: stats
            for device, stats in devices.items()
            if stats.reads + stats.writes + stats.discards and not _NOT_DISKS.fullmatch(device)
            if whole is None or device in whole
        }, True


def _counters(device: str, stats: DiskStats, has_busy: bool) -> Iterator[Reading]:
    for direction, operations, sectors, merged, time_ms in (
        ("read", stats.reads, stats.sectors_read, stats.reads_merged, stats.read_ms),
        ("write", stats.writes, stats.sectors_written, stats.writes_merged, stats.write_ms),
    ):
        attributes = {"system.device": device, "disk.io.direction": direction}
        yield Reading("system.disk.operations", "cumulative", "{operation}", operations, attributes)
        yield Reading("system.disk.io", "cumulative", "By", sectors * SECTOR_BYTES, attributes)
        yield Reading("system.disk.merged", "cumulative", "{operation}", merged, attributes)
        yield Reading("system.disk.operation_time", "cumulative", "s", time_ms / 1000, attributes)
    if has_busy:
        attributes = {"system.device": device}
        yield Reading("system.disk.io_time", "cumulative", "s", stats.busy_ms / 1000, attributes)


def _from_psutil() -> tuple[dict[str, DiskStats], bool]:
    devices, has_busy = {}, False
    for device, io in (psutil.disk_io_counters(perdisk=True) or {}).items():
        has_busy = hasattr(io, "busy_time")
        devices[device] = DiskStats(
            reads=io.read_count,
            reads_merged=getattr(io, "read_merged_count", 0),
            sectors_read=io.read_bytes // SECTOR_BYTES,
            read_ms=getattr(io, "read_time", 0),
            writes=io.write_count,
            writes_merged=getattr(io, "write_merged_count", 0),
            sectors_written=io.write_bytes // SECTOR_BYTES,
            write_ms=getattr(io, "write_time", 0),
            busy_ms=getattr(io, "busy_time", 0),
        )
    return devices, has_busy
