"""The series of one window table: slots, and the columns of their rows that never change."""

from hashlib import blake2b
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailrace_schemas.rows import ATTRIBUTES
from tailrace_schemas.samples import KINDS, Series, SeriesTable

__all__ = ["COUNTER", "CUMULATIVE", "DISTRIBUTION", "EVENT", "GAUGE", "SeriesIndex", "chars_of", "series_id"]

DISTRIBUTION: Final = KINDS.index("distribution")
COUNTER: Final = KINDS.index("counter")
CUMULATIVE: Final = KINDS.index("cumulative")
GAUGE: Final = KINDS.index("gauge")
EVENT: Final = KINDS.index("event")

SERIES_CHARS: Final = 1024
"""Of a series that counts as one towards a limit. They are in each of its rows: those of 200,000 have 800 MB at most.
No array of Arrow's has more than 2 GB of text."""
MAPS: Final = 1024
MAP_BYTES: Final = 64 * 1024 * 1024
"""Of tables that are remembered, by service and stream: those of some producers change with each message."""


def series_id(service: str, series: Series) -> int:
    """64 bits that name a series in rows and snapshots, equal in every run and process: a hash of compact JSON."""
    attributes = ",".join([f"[{quote(key)},{quote(value)}]" for key, value in series.attributes])
    names = f"{quote(service)},{quote(series.metric)},{quote(series.kind)},{quote(series.unit)}"
    return int.from_bytes(blake2b(f"[{names},[{attributes}]]".encode(), digest_size=8).digest(), "little")


def chars_of(one: Series) -> int:
    """Of its names and attributes."""
    return len(one.metric) + len(one.unit) + sum([len(key) + len(value) for key, value in one.attributes])


def _extra(one: Series) -> int:
    return chars_of(one) // SERIES_CHARS


class SeriesIndex:
    """Numbers the series of one (service, stream): slot i is the i-th one met."""

    def __init__(
        self,
        service: str,
        max_series: int,
        series: list[Series] | None = None,
        admitted: NDArray[np.uint64] | None = None,
    ) -> None:
        """Anew, or from a snapshot: with the `series` that it has, and others that it knows to be `admitted`."""
        self.service = service
        self.max_series = max_series
        self.series: list[Series] = series or []
        self._extra = sum(map(_extra, self.series))
        self._slots = {one: slot for slot, one in enumerate(self.series)}
        self._maps: dict[bytes, NDArray[np.int32]] = {}
        self._map_bytes = 0
        self._columns: dict[str, Any] = {}
        self._kinds = np.array([KINDS.index(one.kind) for one in self.series], np.int8)
        self.refused = admitted is not None
        """Whether there were series beyond the limit since `keep`."""
        self._reserved: set[int] = set()
        """Ids of series that had a slot before a restart, and have not been met since."""
        if admitted is not None:
            self._reserved = set(admitted.tolist()) - set(self.ids.tolist())

    def __len__(self) -> int:
        """How many series there are, with those that have not been met since a restart."""
        return len(self.series) + len(self._reserved)

    @property
    def size(self) -> int:
        """What counts towards the limit: each series as one, and as one more for each SERIES_CHARS of its texts."""
        return len(self) + self._extra

    def slots_of(self, table: SeriesTable) -> NDArray[np.int32]:
        """The slot of each row of a series table, remembered by its bytes; -1 for new series beyond the limit."""
        known = self._maps.get(table.encoded)
        if known is not None:
            return known
        found = np.full(len(table.series), -1, np.int32)
        for row, one in enumerate(table.series):
            slot = self._slots.get(one)
            if slot is None and self._admits(one):
                slot = self._slots[one] = len(self.series)
                self.series.append(one)
            if slot is not None:
                found[row] = slot
        size = len(table.encoded) + found.nbytes
        if len(self._maps) >= MAPS or self._map_bytes + size > MAP_BYTES:
            self._forget_maps()
        self._maps[table.encoded] = found
        self._map_bytes += size
        return found

    def limit(self, most: int) -> None:
        """Takes another limit; a higher one admits series that were refused."""
        if most > self.max_series and self.refused:
            self._forget_maps()
        self.max_series = most

    def _forget_maps(self) -> None:
        self._maps.clear()
        self._map_bytes = 0

    def _admits(self, one: Series) -> bool:
        extra = _extra(one)
        if self._reserved:
            key = series_id(self.service, one)
            if key in self._reserved:
                self._reserved.remove(key)
                self._extra += extra
                return True
        if self.size + 1 + extra <= self.max_series:
            self._extra += extra
            return True
        self.refused = True
        return False

    @property
    def admitted(self) -> NDArray[np.uint64] | None:
        """The ids of all series if others were refused, so that a replay refuses the same ones; else None."""
        if not self.refused:
            return None
        return np.concatenate([self.ids, np.array(sorted(self._reserved), np.uint64)])

    @property
    def kinds(self) -> NDArray[np.int8]:
        """The kind of each slot, an index into KINDS."""
        if len(self._kinds) < len(self.series):
            new = [KINDS.index(one.kind) for one in self.series[len(self._kinds) :]]
            self._kinds = np.concatenate([self._kinds, np.array(new, np.int8)])
        return self._kinds

    @property
    def ids(self) -> NDArray[np.uint64]:
        """The series id of each slot."""
        if not self.series:
            return np.empty(0, np.uint64)
        ids: NDArray[np.uint64] = self.columns()["series_id"].to_numpy()
        return ids

    def columns(self) -> dict[str, Any]:
        """Arrow arrays by slot: metric, series_id, attributes, kind, unit. Built once for each series."""
        known = len(self._columns["metric"]) if self._columns else 0
        if known < len(self.series):
            new = self.series[known:]
            built = {
                "metric": pa.array([one.metric for one in new], pa.string()),
                "series_id": pa.array([series_id(self.service, one) for one in new], pa.uint64()),
                "attributes": pa.array([one.attributes for one in new], ATTRIBUTES),
                "kind": pa.array([one.kind for one in new], pa.string()),
                "unit": pa.array([one.unit for one in new], pa.string()),
            }
            if known:
                built = {name: pa.concat_arrays([self._columns[name], built[name]]) for name in built}
            self._columns = built
        return self._columns

    def keep(self, used: NDArray[np.bool_]) -> None:
        """Forgets the slots that are not `used`, and what has not been met again; the others close ranks."""
        self._reserved.clear()
        self.refused = False
        self.series = [one for one, stays in zip(self.series, used, strict=True) if stays]
        self._extra = sum(map(_extra, self.series))
        self._slots = {one: slot for slot, one in enumerate(self.series)}
        self._forget_maps()
        self._columns = {}
        self._kinds = np.array([KINDS.index(one.kind) for one in self.series], np.int8)
