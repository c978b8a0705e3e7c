"""10 s rows of some metrics from the aggregates topic, in the order of time: as `stored_windows`, without ClickHouse.

Only reads: no group is joined and nothing is committed.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, KafkaError, TopicPartition
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.rows import WindowRows, decode_window_rows
from tailrace_sinks.kafka import about, is_hopeless

from tailrace_infra.broker import is_embedded

__all__ = ["TopicWindows", "TopicWindowsError"]

METADATA_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 30.0
"""So long a broker may give nothing before its end is reached."""
WINDOW_S: Final = 10
STRETCH_S: Final = 3600
"""So much time is handed on at once."""
MAX_BYTES: Final = 2 << 30
"""Of rows of the metrics, which are all held in memory: some ten days of 100 series with sketches."""
MERGED: Final = 64
"""So many record batches become one: a message may have a single row, and a batch has some forty buffers."""
MAX_BAD_RATIO: Final = 0.1
EXAMPLES: Final = 3


class TopicWindowsError(Exception):
    """The topic does not have what is asked for; for people."""


class TopicWindows:
    """What `topic` holds when this is made, of the windows that start in [first_s, end_s) and of one stream.

    `client` is librdkafka's configuration. Where the broker knows the times of records, those from `early_s` before
    `first_s` on are read: a row is written after its window began, or by so much before, where a producer's clock is
    ahead. All up to the end is read, since a row may come late, or again and fuller. The embedded broker knows no
    times, and is read from its start.

    Raises:
        KafkaException: there is no such topic, or the broker does not answer.
    """

    def __init__(
        self,
        client: dict[str, Any],
        topic: str,
        metrics: Collection[str],
        first_s: int,
        end_s: int,
        *,
        stream: str = "",
        early_s: float = 60.0,
    ) -> None:
        self._topic = topic
        self._metrics = pa.array(sorted(metrics), pa.string())
        self._first_s, self._end_s = first_s, end_s
        self._stream = stream
        self.records = 0
        """Read so far."""
        self.unreadable = 0
        self.examples: list[str] = []
        """Where and why some of the unreadable ones are."""
        self.clipped = False
        """The first record that the broker still has may already be one of this time: older ones are deleted."""
        self._bytes = 0
        self._stretches: dict[int, list[Any]] = {}
        self._fresh: dict[int, list[Any]] = {}
        """As `_stretches`, not merged yet."""
        self._consumer = Consumer(
            {
                "group.id": "tailrace-backtest",  # asked for by librdkafka; no group is joined
                "auto.offset.reset": "error",
                "log_level": 0,
                "queued.max.messages.kbytes": 64 * 1024,
                **client,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
            }
        )
        try:
            self._spans = dict(self._find(max(0, round((first_s - early_s) * 1000))))
        except BaseException:
            self._consumer.close()
            raise
        self.total = sum(high - start for start, high in self._spans.values())
        """So many offsets will be read; some may be holes."""

    def _find(self, since_ms: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """(partition, (first offset, offset after the last))."""
        metadata = self._consumer.list_topics(self._topic, METADATA_TIMEOUT_S)
        found = metadata.topics[self._topic]
        if found.error is not None:
            raise about(self._topic, found.error)
        for number in found.partitions:
            place = TopicPartition(self._topic, number)
            low, high = self._consumer.get_watermark_offsets(place, METADATA_TIMEOUT_S)
            start = low
            if not is_embedded(metadata.cluster_id) and low < high:
                wanted = TopicPartition(self._topic, number, since_ms)
                (one,) = self._consumer.offsets_for_times([wanted], METADATA_TIMEOUT_S)
                if one.error is not None:
                    raise about(self._topic, one.error)
                start = high if one.offset < 0 else max(low, one.offset)  # below zero: nothing is so new
            if start < high:
                self.clipped |= 0 < low == start
                yield number, (start, high)

    def read(self, advance: Callable[[int], None]) -> None:
        """Reads it all; `advance` is told how many offsets are behind.

        Raises:
            KafkaException: a partition cannot be read to its end.
            TopicWindowsError: too many records are no window rows, or there are too many rows.
        """
        try:
            self._read(advance)
        finally:
            self._consumer.close()
        if self.unreadable > MAX_BAD_RATIO * self.records:
            raise TopicWindowsError(
                f"{self.unreadable:,} of {self.records:,} records are no window rows; {self.examples[0]}"
            )

    def _read(self, advance: Callable[[int], None]) -> None:
        left = dict(self._spans)
        self._consumer.assign([TopicPartition(self._topic, number, start) for number, (start, _) in left.items()])
        until_s = monotonic_s() + SILENCE_S
        while left:
            if monotonic_s() >= until_s:
                raise about(self._topic, KafkaError(KafkaError._TIMED_OUT, f"nothing came for {SILENCE_S:.0f} s"))
            for message in self._consumer.consume(500, 0.1):
                number, error = message.partition(), message.error()
                if error is not None:
                    self._meet(error)
                    if error.code() == KafkaError._PARTITION_EOF:
                        left.pop(number, None)
                    continue
                if number not in left:
                    continue  # what was written since
                until_s = monotonic_s() + SILENCE_S
                high = left[number][1]
                offset = message.offset()
                if offset < high:
                    self._take(message)
                if offset >= high - 1:
                    del left[number]
                else:
                    left[number] = offset + 1, high
            advance(self.total - sum(high - start for start, high in left.values()))

    def _meet(self, error: KafkaError) -> None:
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise TopicWindowsError("the broker deleted records before they were read: start it again")
        if code != KafkaError._PARTITION_EOF and is_hopeless(error):
            raise about(self._topic, error)
        # Else librdkafka goes on by itself, and SILENCE_S is the limit.

    def _take(self, message: Any) -> None:
        self.records += 1
        try:
            block = decode_window_rows(message.value() or b"")
        except ValueError as wrong:
            self.unreadable += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{self._topic}[{message.partition()}] at {message.offset()}: {wrong}")
            return
        self._keep(block)

    def _keep(self, block: WindowRows) -> None:
        if block.stream != self._stream or block.window_seconds != WINDOW_S or not block.rows.num_rows:
            return
        start_s = block.rows.column("window_start").cast(pa.int64()).to_numpy()
        wanted = pc.is_in(block.rows.column("metric"), self._metrics).to_numpy(zero_copy_only=False)
        wanted &= (start_s >= self._first_s) & (start_s < self._end_s)
        for stretch in np.unique(start_s[wanted] // STRETCH_S).tolist():
            rows = block.rows.filter(pa.array(wanted & (start_s // STRETCH_S == stretch)))
            self._bytes += rows.nbytes
            fresh = self._fresh.setdefault(stretch, [])
            fresh.append(rows)
            if len(fresh) == MERGED:
                self._stretches.setdefault(stretch, []).append(_merged(self._fresh.pop(stretch)))
        if self._bytes > MAX_BYTES:
            raise TopicWindowsError(
                f"more than {MAX_BYTES >> 30} GiB of rows of the metrics of the rules, which are all held in memory: "
                "give a shorter time by --from and --to, or read them from ClickHouse, without --topic"
            )

    def batches(self) -> Iterator[Any]:
        """The rows as record batches of WINDOW_ROWS, ascending by time, of each the last version; once."""
        for stretch in sorted(self._stretches.keys() | self._fresh.keys()):
            rows = _merged(self._stretches.pop(stretch, []) + self._fresh.pop(stretch, []))
            start_s, series, version = (
                rows.column(name).cast(kind).to_numpy()
                for name, kind in (("window_start", pa.int64()), ("series_id", pa.uint64()), ("version", pa.uint64()))
            )
            order = np.lexsort((version, series, start_s))
            last = np.ones(order.size, np.bool_)
            last[:-1] = (np.diff(start_s[order]) != 0) | (series[order][1:] != series[order][:-1])
            yield rows.take(pa.array(order[last]))


def _merged(batches: list[Any]) -> Any:
    (one,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return one
