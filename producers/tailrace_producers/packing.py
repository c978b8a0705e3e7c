"""From samples in memory to `SampleBatch` messages: series tables, sequence numbers, columns. Pure."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

from tailrace_schemas.samples import MAX_TIME_US, MIN_TIME_US, Series, encode_batch, encode_series_table

from tailrace_producers.buffer import Drop, SeriesRef

__all__ = ["Message", "Packer", "check_sample"]

PAGE: Final = 1000
"""Series of one series table. A table travels with every message, and again whole when it grows."""
SPAN_US: Final = 1 << 31
"""Times of one message: offsets are int32."""
MIN_TIME_NS: Final = 1000 * MIN_TIME_US
MAX_TIME_NS: Final = 1000 * MAX_TIME_US
EVENTS: Final = -1
"""The page of events."""


class Message(NamedTuple):
    """One `SampleBatch`."""

    payload: bytes
    samples: int


class Columns(NamedTuple):
    """Samples that can be sent, of times less than SPAN_US apart."""

    base_us: int
    offset_us: "array[int]"
    value: "array[float]"
    refs: list[SeriesRef]


class Packer:
    """Packs the samples of one producer. Numbers series and messages; not for two threads at once.

    Cost: about 200 ns a sample, a third of it for the times; 2 us a series when its table grows.
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
        values, times_ns, refs = rows[0::3], rows[1::3], rows[2::3]
        dropped: Counter[Drop] = Counter()
        columns = None if any(ref.drop for ref in set(refs)) else _columns(values, times_ns, refs)
        parts = _sorted_out(values, times_ns, refs, dropped) if columns is None else [columns]
        messages = []
        for part in parts:
            for page, of_page in self._by_page(part):
                try:
                    messages.append(self._message(page, of_page))
                except ValueError:
                    dropped[Drop.TOO_LARGE] += len(of_page.value)
        return messages, dropped

    def _by_page(self, columns: Columns) -> Iterable[tuple[int, Columns]]:
        """Within each in order."""
        pages = {self._page(ref) for ref in dict.fromkeys(columns.refs)}  # new series in order of appearance
        if len(pages) == 1:
            return [(pages.pop(), columns)]
        parts = {page: Columns(columns.base_us, array("i"), array("d"), []) for page in pages}
        for offset_us, value, ref in zip(*columns[1:], strict=True):
            part = parts[self._page(ref)]
            part.offset_us.append(offset_us)
            part.value.append(value)
            part.refs.append(ref)
        return parts.items()

    def _page(self, ref: SeriesRef) -> int:
        if ref.series.kind == "event":
            return EVENTS
        if ref.index < 0:
            self._series.append(ref.series)  # first: a fork in between then repeats a row, which does no harm
            ref.index = len(self._series) - 1
        return ref.index // PAGE

    def _message(self, page: int, columns: Columns) -> Message:
        if page == EVENTS:
            # Hardly two events are alike: they get a table of their own, or the producer's would grow for ever.
            rows = {series: row for row, series in enumerate(dict.fromkeys(ref.series for ref in columns.refs))}
            table = encode_series_table(rows, self._resource)
            index = array("I", [rows[ref.series] for ref in columns.refs])
        else:
            table = self._table(page)
            first = page * PAGE
            index = array("I", [ref.index - first for ref in columns.refs])
        payload = encode_batch(
            service=self._service,
            producer_id=self._producer_id,
            sequence=self._sequence,
            base_time_us=columns.base_us,
            series_table=table,
            series_index=index.tobytes(),
            time_offset_us=columns.offset_us.tobytes(),
            value=columns.value.tobytes(),
        )
        self._sequence += 1
        return Message(payload, len(columns.value))

    def _table(self, page: int) -> bytes:
        series = self._series[page * PAGE : (page + 1) * PAGE]
        size, encoded = self._tables.get(page, (0, b""))
        if size < len(series):
            encoded = encode_series_table(series, self._resource)
            self._tables[page] = len(series), encoded
        return encoded


def _columns(values: list[Any], times_ns: list[Any], refs: list[SeriesRef]) -> Columns | None:
    """The columns if every sample is fine, checked all at once; None: look at them one by one."""
    try:
        first_ns = min(times_ns)
        base_us = first_ns // 1000
        base_ns = 1000 * base_us
        fine = (
            first_ns >= MIN_TIME_NS
            and max(times_ns) <= MAX_TIME_NS
            and isfinite(sum(values))  # an infinity or NaN anywhere shows in the sum
            and min(values) >= 0  # below zero it depends on the kind
        )
        if not fine:
            return None
        # The difference first: numbers below 2**30 are divided at half the cost. A time that is no integer, or too far
        # from the first one, does not fit the array.
        offset_us = array("i", [(time_ns - base_ns) // 1000 for time_ns in times_ns])
        return Columns(base_us, offset_us, array("d", values), refs)
    except Exception:  # noqa: BLE001 - a host's objects may raise anything when they are turned into numbers
        return None


def _sorted_out(
    values: list[Any], times_ns: list[Any], refs: list[SeriesRef], dropped: Counter[Drop]
) -> Iterable[Columns]:
    """The samples that can be sent, by spans of time; the others are counted."""
    spans: dict[int, Columns] = {}
    for value, time_ns, ref in zip(values, times_ns, refs, strict=True):
        drop = check_sample(value, time_ns, ref)
        if drop:
            dropped[drop] += 1
            continue
        time_us = array("q", [time_ns])[0] // 1000  # as an int, whatever type of integer it was
        span = time_us // SPAN_US
        if span not in spans:
            spans[span] = Columns(span * SPAN_US, array("i"), array("d"), [])
        spans[span].offset_us.append(time_us - span * SPAN_US)
        spans[span].value.append(value)
        spans[span].refs.append(ref)
    return spans.values()


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
