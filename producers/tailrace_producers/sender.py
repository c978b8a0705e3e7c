"""From the buffer to Kafka: one daemon thread, one librdkafka producer."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any, Final

from tailrace_schemas.clock import monotonic_s, now_ns
from tailrace_schemas.samples import Series

from tailrace_producers.buffer import Buffer, Chunk, Drop, SeriesRef
from tailrace_producers.packing import Message, Packer

__all__ = ["DROPPED", "Sender", "check_properties"]

SEND_INTERVAL_S: Final = 0.5
"""Samples leave at the latest after this time, sooner when a chunk is full."""
POLL_S: Final = 0.02
MAX_IN_FLIGHT_BYTES: Final = 8 * 1024 * 1024
"""Given to librdkafka and not yet confirmed; the rest waits in the buffer, where the oldest can be dropped."""
WARN_EVERY_S: Final = 60.0
REPORT_EVERY_S: Final = 5.0
DROPPED: Final = "tailrace.producer.dropped"
"""The counter of dropped samples, by `tailrace.reason`, that the sender adds to what it sends."""

_log = logging.getLogger("tailrace.producer")


class Sender:
    """Packs the chunks of a buffer, gives them to librdkafka, and tells the buffer what became of them.

    The producer is made for the first message, so that a process that records nothing, such as the master of a
    pre-fork server, has no connection and none of librdkafka's threads. Dropped samples are reported as samples of
    `DROPPED`, sent until the broker confirms them; those are not in the buffer's counts.
    """

    def __init__(
        self, buffer: Buffer, packer: Packer, topic: str, key: bytes, properties: Mapping[str, object]
    ) -> None:
        self._buffer = buffer
        self._packer = packer
        self._topic = topic
        self._key = key
        self._properties: dict[str, object] = {"error_cb": self._on_error, **properties}
        self._drop_refs: dict[str, SeriesRef] = {}
        self._producer: Any = None
        self.start()

    def start(self) -> None:
        """Begin, or go on in a forked child as a producer of its own: the buffer is empty then, or was emptied."""
        if self._producer is not None:
            _abandoned.append(self._producer)
            self._producer = None
        # Unique for each start, so that sequences of two runs are never taken for one another's duplicates.
        self._packer.start_over(os.urandom(8).hex())
        self._failed = False
        """The producer had an error after which it takes nothing more."""
        self._in_flight_bytes = 0
        self._in_flight_samples = 0
        self._reported: Counter[str] = Counter()
        """Of the buffer's drops, those in a report that the broker has confirmed."""
        self._reports_in_flight = 0
        self._report_due_s = 0.0
        self._warned_s: float | None = None
        self._deadline_s: float | None = None
        """Set by `close`: when to stop sending."""
        self._progress = Condition()
        self._wake: SimpleQueue[None] = SimpleQueue()  # its put never waits, not even in a signal handler
        self._thread = Thread(target=self._run, name="tailrace-producer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to send. Never blocks."""
        self._wake.put(None)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until the condition holds, looked at whenever samples were sent or settled. False: not in time."""
        with self._progress:
            return self._progress.wait_for(condition, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what is held within `timeout_s`, then stop. A broker that hangs takes it a second more at most."""
        self._deadline_s = monotonic_s() + timeout_s
        self.wake()
        self._thread.join(timeout_s + 1.0)

    # In the background thread. Delivery reports and errors are called back there too, from poll().

    def _run(self) -> None:
        due_s = monotonic_s() + SEND_INTERVAL_S
        while self._deadline_s is None:
            self._wait(due_s)
            if monotonic_s() >= due_s:
                self._buffer.cut()
                due_s = monotonic_s() + SEND_INTERVAL_S
            self._send_waiting()
            if monotonic_s() >= self._report_due_s:
                self._report_drops()
        self._finish(self._deadline_s)

    def _wait(self, due_s: float) -> None:
        """Until there is something to do: a chunk is cut, flush or close want attention, messages are confirmed."""
        left_s = max(0.0, due_s - monotonic_s())
        try:
            if self._in_flight_samples or self._reports_in_flight:
                self._poll(min(POLL_S, left_s))
            else:
                self._wake.get(timeout=left_s)
            while True:
                self._wake.get_nowait()
        except Empty:
            pass

    def _finish(self, deadline_s: float) -> None:
        self._buffer.cut()
        self._send_waiting()
        self._report_drops()
        while (self._buffer.stats().held or self._reports_in_flight) and monotonic_s() < deadline_s:
            self._poll(POLL_S)
            self._send_waiting()
            self._report_drops()  # what was dropped while the last report was under way
        self._buffer.close()
        if self._producer is not None:
            self._purge()

    def _purge(self) -> None:
        """Give up what the producer has: its destructor would wait for the broker."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._poll(0)

    def _poll(self, timeout_s: float) -> None:
        if self._producer is not None:
            if timeout_s and time.sleep.__module__.partition(".")[0] in ("gevent", "eventlet"):
                # This is no thread, but a greenlet of the host's only one, which librdkafka's waiting would hold up.
                time.sleep(timeout_s)
                timeout_s = 0
            try:
                self._producer.poll(timeout_s)
            except Exception as error:  # noqa: BLE001 - a callback that the host gave in its properties
                self._warn("a callback of librdkafka's properties failed: %r", error)
        with self._progress:
            self._progress.notify_all()

    def _send_waiting(self) -> None:
        while (
            self._in_flight_bytes < MAX_IN_FLIGHT_BYTES
            and 2 * self._in_flight_samples < self._buffer.max_samples
            and (chunk := self._buffer.take()) is not None
        ):
            self._packer.skip(chunk.lost_before)
            try:
                self._send_chunk(chunk)
            except Exception as error:  # noqa: BLE001 - a defect here must not end sending for good
                self._buffer.abandon(chunk.number)
                self._packer.skip(1)
                self._warn("samples dropped: %r", error)
        with self._progress:
            self._progress.notify_all()

    def _send_chunk(self, chunk: Chunk) -> None:
        """Raises only where there is a defect."""
        self._connect()
        messages, dropped = self._packer.pack(chunk.rows)
        for drop, samples in dropped.items():
            self._buffer.settle(chunk.number, samples, drop)
        for message in messages:
            self._in_flight_samples += message.samples
            self._send(message, partial(self._on_delivery, chunk.number, message.samples))

    def _connect(self) -> None:
        if self._failed:
            self._purge()  # its delivery reports tell what it still had
            self._producer, self._failed = None, False
        if self._producer is None:
            self._producer = _producer(self._properties)

    def _on_delivery(self, number: int, samples: int, error: Any) -> None:
        self._in_flight_samples -= samples
        self._buffer.settle(number, samples, Drop.UNDELIVERED if error else None)

    def _send(self, message: Message, settled: Callable[[Any], None]) -> None:
        """Give a message to librdkafka. `settled` is told the error, or None, once that is known."""
        from confluent_kafka import KafkaException

        size = len(message.payload)

        def report(error: Any, _message: Any) -> None:
            self._in_flight_bytes -= size
            settled(error)
            if error:
                self._on_error(error)

        self._in_flight_bytes += size
        while True:
            try:
                self._producer.produce(self._topic, message.payload, self._key, on_delivery=report)
                return
            except BufferError:  # librdkafka's own queue, made small by the host's properties
                if self._deadline_s is not None and monotonic_s() >= self._deadline_s:
                    return  # left open: counted by Buffer.close
                self._poll(POLL_S)
            except KafkaException as error:
                report(error.args[0], None)
                return

    def _report_drops(self) -> None:
        """Sends what was dropped since the last reports that arrived; the next ones wait for the fate of these."""
        if self._reports_in_flight:
            return
        self._report_due_s = monotonic_s() + REPORT_EVERY_S
        new = Counter(self._buffer.stats().dropped)
        new.subtract(self._reported)
        for reason, samples in new.items():
            if not samples:
                continue
            try:
                self._connect()
                # One series: those of several reasons may be in different tables, so in several messages.
                (message,), _ = self._packer.pack([samples, now_ns(), self._drop_ref(reason)])
            except Exception as error:  # noqa: BLE001 - as for samples
                self._warn("dropped samples cannot be reported: %r", error)
                return
            self._reports_in_flight += 1
            self._send(message, partial(self._on_report, reason, samples))

    def _drop_ref(self, reason: str) -> SeriesRef:
        if reason not in self._drop_refs:
            self._drop_refs[reason] = SeriesRef(Series(DROPPED, "counter", "{sample}", (("tailrace.reason", reason),)))
        return self._drop_refs[reason]

    def _on_report(self, reason: str, samples: int, error: Any) -> None:
        self._reports_in_flight -= 1
        if not error:
            self._reported[reason] += samples

    def _on_error(self, error: Any) -> None:
        if error.fatal():
            self._failed = True
        self._warn("samples wait or are dropped, see Telemetry.stats: %s", error)

    def _warn(self, message: str, detail: object) -> None:
        if self._warned_s is None or monotonic_s() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = monotonic_s()
            with suppress(Exception):  # a host's logging may raise, and would end this thread
                _log.warning(message, detail)


_abandoned: list[Any] = []
"""A forked child's copies of its parent's producers: their destructors would wait for threads it does not have."""


def check_properties(properties: Mapping[str, object]) -> None:
    """Raises KafkaException where librdkafka does not accept them. Makes no connection."""
    _producer({name: value for name, value in properties.items() if name != "bootstrap.servers"})


def _producer(properties: Mapping[str, object]) -> Any:
    """A librdkafka producer."""
    from confluent_kafka import Producer  # 30 ms that `import tailrace_producers` does not cost

    ours = {
        "partitioner": "murmur2_random",  # Java's: whoever else writes a service's samples picks its partition
        "enable.idempotence": True,
        "compression.type": "zstd",
        "linger.ms": 5,
        "message.max.bytes": 10 * 1024 * 1024 + 1024,  # before compression; the broker's limit holds after it
        "log_level": 0,  # it would write to the host's stderr at each attempt to connect
    }
    return Producer({**ours, **properties})
