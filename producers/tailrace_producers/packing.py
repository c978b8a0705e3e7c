"""From samples in memory to `SampleBatch` messages: series tables, sequence numbers, columns. Pure."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import compress
from math import isfinite
from typing import Any, Final, NamedTuple

from tailrace_schemas.samples import MAX_TIME_US, MIN_TIME_US, Series, encode_batch, encode_series_table

from tailrace_producers.buffer import Drop, SeriesRef

__all__ = ["Message", "Packer", "check_sample"]

PAGE: Final = 1000
"""Series of one series table. A table travels with every message, and again whole when it grows."""
SPAN_NS: Final = 1000 << 31
"""Times of one message: offsets are int32 microseconds."""
MIN_TIME_NS: Final = 1000 * MIN_TIME_US
MAX_TIME_NS: Final = 1000 * MAX_TIME_US
EVENTS: Final = -1
"""The page of events."""


class Message(NamedTuple):
    """One `SampleBatch`."""

    payload: bytes
    samples: int


class Packer:
    """Packs the samples of one producer. Numbers series and messages; not for two threads at once.

    Cost: about 150 ns a sample, and 2 us a series when its table grows.
    """

    def __init__(self, service: str, resource: Mapping[str, str], producer_id: str) -> None:
        self._service = service
        self._resource = resource
        self.start_over(producer_id)
        self._series: list[Series] = []
        self._tables: dict[int, tuple[int, bytes]] = {}
        """Page -> how many series its table has, and the table's bytes."""

    def start_over(self, producer_id: str) -> None:
        """Number messages from 0 again, as another producer. Series keep their numbers."""
        self._producer_id = producer_id
        self._sequence = 0

    def skip(self, messages: int) -> None:
        """Leave out sequence numbers for what was dropped unsent, so that the flow counts it as missing."""
        self._sequence += messages

    def pack(self, rows: list[Any]) -> tuple[list[Message], Counter[Drop]]:
        """Messages of a chunk's rows, and how many samples were left out, by reason.

        `rows` is not empty. One message, unless they have series of several pages, or events, or times more
        than 35 minutes apart.
        """
        values, times, refs = rows[0::3], rows[1::3], rows[2::3]
        dropped: Counter[Drop] = Counter()
        columns = _columns(values, times, refs)
        if columns is None:
            drops = [check_sample(*row) for row in zip(values, times, refs, strict=True)]
            dropped.update(drop for drop in drops if drop)
            good = [drop is None for drop in drops]
            refs = list(compress(refs, good))
            columns = array("d", compress(values, good)), array("q", compress(times, good))
        messages = []
        for page, value, time_ns, of_page in self._split(*columns, refs):
            try:
                messages.append(self._message(page, value, time_ns, of_page))
            except ValueError:
                dropped[Drop.TOO_LARGE] += len(value)
        return messages, dropped

    def _split(
        self, value: "array[float]", time_ns: "array[int]", refs: list[SeriesRef]
    ) -> Iterable[tuple[int, "array[float]", "array[int]", list[SeriesRef]]]:
        """By page and span of time; within each in order."""
        pages = {self._page(ref) for ref in dict.fromkeys(refs)}  # new series in order of appearance
        if not refs or (len(pages) == 1 and max(time_ns) - min(time_ns) < SPAN_NS):
            return [(page, value, time_ns, refs) for page in pages]
        groups: dict[tuple[int, int], tuple[int, array[float], array[int], list[SeriesRef]]] = {}
        for one_value, one_time, ref in zip(value, time_ns, refs, strict=True):
            page = self._page(ref)
            group = groups.get((page, one_time // SPAN_NS))
            if group is None:
                group = groups[page, one_time // SPAN_NS] = (page, array("d"), array("q"), [])
            group[1].append(one_value)
            group[2].append(one_time)
            group[3].append(ref)
        return groups.values()

    def _page(self, ref: SeriesRef) -> int:
        if ref.series.kind == "event":
            return EVENTS
        if ref.index < 0:
            self._series.append(ref.series)  # first: a fork in between then repeats a row, which does no harm
            ref.index = len(self._series) - 1
        return ref.index // PAGE

    def _message(self, page: int, value: "array[float]", time_ns: "array[int]", refs: list[SeriesRef]) -> Message:
        if page == EVENTS:
            # Hardly two events are alike: they get a table of their own, or the producer's would grow for ever.
            rows = {series: row for row, series in enumerate(dict.fromkeys(ref.series for ref in refs))}
            table = encode_series_table(rows, self._resource)
            index = array("I", [rows[ref.series] for ref in refs])
        else:
            table = self._table(page)
            first = page * PAGE
            index = array("I", [ref.index - first for ref in refs])
        base_us = min(time_ns) // 1000
        payload = encode_batch(
            service=self._service,
            producer_id=self._producer_id,
            sequence=self._sequence,
            base_time_us=base_us,
            series_table=table,
            series_index=index.tobytes(),
            time_offset_us=array("i", [one // 1000 - base_us for one in time_ns]).tobytes(),
            value=value.tobytes(),
        )
        self._sequence += 1
        return Message(payload, len(value))

    def _table(self, page: int) -> bytes:
        series = self._series[page * PAGE : (page + 1) * PAGE]
        size, encoded = self._tables.get(page, (0, b""))
        if size < len(series):
            encoded = encode_series_table(series, self._resource)
            self._tables[page] = len(series), encoded
        return encoded


def _columns(values: list[Any], times: list[Any], refs: list[SeriesRef]) -> tuple["array[float]", "array[int]"] | None:
    """The columns if every sample is fine, checked all at once; None: look at them one by one."""
    try:
        value, time_ns = array("d", values), array("q", times)
    except Exception:  # noqa: BLE001 - a host's objects may raise anything when they are turned into numbers
        return None
    fine = (
        isfinite(sum(value))  # an infinity or NaN anywhere shows in the sum
        and min(time_ns) >= MIN_TIME_NS
        and max(time_ns) <= MAX_TIME_NS
        and min(value) >= 0  # below zero it depends on the kind
        and not any(ref.drop for ref in set(refs))
    )
    return (value, time_ns) if fine else None


def check_sample(value: Any, time_ns: Any, ref: SeriesRef) -> Drop | None:
    """Why a sample cannot be sent. What passes fits the columns."""
    if ref.drop:
        return ref.drop
    try:
        number, time = array("d", [value])[0], array("q", [time_ns])[0]
    except Exception:  # noqa: BLE001 - as in _columns
        return Drop.INVALID
    countable = number >= 0 or ref.series.kind not in ("counter", "cumulative")
    return None if isfinite(number) and countable and MIN_TIME_NS <= time <= MAX_TIME_NS else Drop.INVALID
