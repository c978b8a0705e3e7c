"""`Telemetry`: records samples inside a service and sends them to Kafka in the background.

    telemetry = Telemetry(service="checkout", attributes={"deployment.environment.name": "production"})
    orders = telemetry.counter("shop.orders", unit="{order}")
    orders.add(1, {"payment": "card"})

Guarantee: a call that records never blocks, raises or does I/O. What is recorded is delivered at least once, or
counted as dropped in `telemetry.stats`. By its sequence number the flow removes a message that arrives twice, and
counts one that never arrives as missing.
"""

import atexit
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial, wraps
from inspect import iscoroutinefunction
from queue import Empty, SimpleQueue
from threading import Condition, RLock, Thread
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakMethod

from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.samples import MAX_ATTRIBUTES, MAX_NAME_CHARS, MAX_VALUE_CHARS, Series
from tailrace_schemas.topics import Topics

from tailrace_producers.buffer import Buffer, Chunk, Drop, SeriesRef, Stats
from tailrace_producers.packing import Message, Packer

__all__ = [
    "BoundCounter", "BoundCumulative", "BoundDistribution", "BoundGauge", "BoundTimer", "Counter", "Cumulative",
    "Distribution", "Gauge", "Stats", "Telemetry", "Timer",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
Attributes = Mapping[str, object]

MAX_SERIES: Final = 50_000
"""Series of one `Telemetry`, about 1 kB each; samples of further ones are counted as dropped."""
SEND_INTERVAL_S: Final = 0.5
"""Samples leave at the latest after this time, sooner when a chunk is full."""
POLL_S: Final = 0.02
MAX_IN_FLIGHT_BYTES: Final = 8 * 1024 * 1024
"""Given to librdkafka and not yet confirmed; the rest waits in the buffer, where the oldest can be dropped."""
WARN_EVERY_S: Final = 60.0

_log = logging.getLogger("tailrace.producer")
_TOPICS = Topics()


class _Record(Protocol):
    def __call__(self, value: float, time_us: int | None = None) -> None: ...


class _Add(Protocol):
    def __call__(self, value: float = 1, time_us: int | None = None) -> None: ...


class BoundCounter:
    """A counter with its attributes fixed."""

    __slots__ = ("add",)

    def __init__(self, add: _Add) -> None:
        self.add: Final = add
        """Count `value` more; `time_us`, microseconds since the Unix epoch, is now unless given."""


class BoundGauge:
    """A gauge with its attributes fixed."""

    __slots__ = ("set",)

    def __init__(self, record: _Record) -> None:
        self.set: Final = record
        """Record the value as it is at `time_us`, now unless given."""


class BoundCumulative:
    """A cumulative counter with its attributes fixed."""

    __slots__ = ("set",)

    def __init__(self, record: _Record) -> None:
        self.set: Final = record
        """Record the total as it is at `time_us`, now unless given."""


class BoundDistribution:
    """A distribution with its attributes fixed."""

    __slots__ = ("record",)

    def __init__(self, record: _Record) -> None:
        self.record: Final = record
        """Record one value, measured at `time_us`, now unless given."""


class BoundTimer(BoundDistribution):
    """A timer with its attributes fixed."""

    __slots__ = ()

    def time(self) -> "_Timing":
        """As `Timer.time`."""
        return _Timing(self.record)


class _Timing:
    """Times a block or, as a decorator, each call of a function or coroutine function."""

    __slots__ = ("_record", "_start_s")

    def __init__(self, record: _Record) -> None:
        self._record = record
        self._start_s = 0.0

    def __enter__(self) -> Self:
        self._start_s = monotonic_s()
        return self

    def __exit__(self, *_error: object) -> None:
        self._record(monotonic_s() - self._start_s)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        record = self._record
        if iscoroutinefunction(function):

            @wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with _Timing(record):
                    return await function(*args, **kwargs)

            return timed_coroutine  # type: ignore[return-value]  # R is the coroutine that this returns

        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with _Timing(record):
                return function(*args, **kwargs)

        return timed


class _Instrument:
    """A metric of one kind and unit. Get it from a `Telemetry`; use it from any thread.

    Attributes are given as a mapping, as keywords, or both. A value of any type becomes text; None leaves it out.
    `time_us`, microseconds since the Unix epoch, is now unless given.
    """

    kind = ""

    def __init__(self, telemetry: "Telemetry", name: str, unit: str) -> None:
        self._telemetry = telemetry
        self._name = _name(name, "a metric's name")
        self._unit = _name(unit, "a unit", required=False)
        buffer = telemetry._buffer
        self._rows = buffer.rows
        self._row_limit = buffer.row_limit
        self._extend = buffer.rows.extend
        self._cut = buffer.cut_if_full
        self._refs: dict[tuple[tuple[str, object], ...], SeriesRef] = {}
        """Attributes as callers spell them -> their series. 1, 1.0 and True are one key: keep to one type."""

    def _put(self, value: float, attributes: Attributes | None, time_us: int | None, more: Attributes) -> None:
        try:
            if more:
                attributes = {**attributes, **more} if attributes else more
            ref = self._refs[tuple(attributes.items()) if attributes else ()]
        except Exception:  # noqa: BLE001 - new attributes, or a host's odd objects, which _resolve sorts out
            ref = self._resolve(attributes, more)
        self._extend((value, now_us() if time_us is None else time_us, ref))
        if len(self._rows) >= self._row_limit:
            self._cut()

    def _resolve(self, attributes: Attributes | None, more: Attributes) -> SeriesRef:
        """The series of these attributes, remembered. Raises nothing: what cannot be a series is `INVALID`."""
        try:
            merged = {**(attributes or {}), **more}
            ref = self._telemetry._ref(self.kind, self._name, self._unit, merged)
        except Exception:  # noqa: BLE001 - not a mapping, or a value whose str() raises whatever it likes
            return self._telemetry._invalid
        if len(self._refs) < MAX_SERIES:
            with suppress(TypeError):  # a value that cannot be hashed: resolved anew each time
                self._refs[tuple(merged.items())] = ref
        return ref

    def _bind(self, attributes: Attributes | None, more: Attributes) -> _Record:
        """A function that records for these attributes: the cheapest way there is."""
        ref = self._resolve(attributes, more)
        rows, row_limit, extend, cut = self._rows, self._row_limit, self._extend, self._cut

        def record(value: float, time_us: int | None = None) -> None:
            extend((value, now_us() if time_us is None else time_us, ref))
            if len(rows) >= row_limit:
                cut()

        return record


class Counter(_Instrument):
    """Counts occurrences or amounts; never negative."""

    kind = "counter"

    def add(
        self, value: float = 1, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Count `value` more."""
        self._put(value, attributes, time_us, more)

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundCounter:
        """This counter with its attributes fixed: a third of the cost of a call."""
        ref = self._resolve(attributes, more)
        rows, row_limit, extend, cut = self._rows, self._row_limit, self._extend, self._cut

        def add(value: float = 1, time_us: int | None = None) -> None:  # as in _bind, but for the default
            extend((value, now_us() if time_us is None else time_us, ref))
            if len(rows) >= row_limit:
                cut()

        return BoundCounter(add)


class Gauge(_Instrument):
    """A value that goes up and down, such as a queue's length."""

    kind = "gauge"

    def set(
        self, value: float, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Record the value as it is."""
        self._put(value, attributes, time_us, more)

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundGauge:
        """This gauge with its attributes fixed: a third of the cost of a call."""
        return BoundGauge(self._bind(attributes, more))


class Cumulative(_Instrument):
    """A total that somebody else counts, such as the kernel. The flow computes increases, and sees resets."""

    kind = "cumulative"

    def set(
        self, value: float, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Record the total as it is."""
        self._put(value, attributes, time_us, more)

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundCumulative:
        """This total with its attributes fixed: a third of the cost of a call."""
        return BoundCumulative(self._bind(attributes, more))


class Distribution(_Instrument):
    """Values whose quantiles matter, such as latencies and sizes."""

    kind = "distribution"

    def record(
        self, value: float, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Record one value."""
        self._put(value, attributes, time_us, more)

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundDistribution:
        """This distribution with its attributes fixed: a third of the cost of a call."""
        return BoundDistribution(self._bind(attributes, more))


class Timer(Distribution):
    """A distribution of durations in seconds."""

    def time(self, attributes: Attributes | None = None, **more: object) -> _Timing:
        """Times a `with` block, or each call of the function it decorates, `async` ones too; failed ones as well.

        with timer.time(route="/x"): ...

        @timer.time(job="mail")
        def send(): ...
        """
        return self.bind(attributes, **more).time()

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundTimer:
        """This timer with its attributes fixed: a third of the cost of a call."""
        return BoundTimer(self._bind(attributes, more))


class Telemetry:
    """What a service records. One a process will do; threads may share it.

    A daemon thread sends samples at the latest 0.5 s after they were recorded. While the broker is away up to
    `max_samples` are kept (at most 20 MB at the default), then the oldest are dropped. Trouble is logged to
    `tailrace.producer`, at most once a minute. `close` runs at interpreter exit by itself. After a fork the child
    goes on as a producer of its own; what was held then is the parent's to send.
    """

    def __init__(
        self,
        service: str,
        attributes: Attributes | None = None,
        *,
        bootstrap_servers: str = "localhost:9092",
        properties: Mapping[str, object] | None = None,
        topics: Topics = _TOPICS,
        max_samples: int = 200_000,
    ) -> None:
        """`attributes` are those of every series (the resource). `properties` are librdkafka's, and win over ours.

        Does not wait for the broker.

        Raises:
            ValueError: no service name, an attribute that cannot be sent, or `max_samples` under 4,096.
            confluent_kafka.KafkaException: librdkafka does not accept the properties.
        """
        service = _name(service, "service")
        resource = dict(_canonical(attributes or {}, MAX_ATTRIBUTES))
        self._max_attributes = MAX_ATTRIBUTES - len(resource)
        self._key = service.encode()
        self._topic = topics.samples
        self._properties = {"bootstrap.servers": bootstrap_servers, "error_cb": self._on_error} | dict(properties or {})
        self._buffer = Buffer(max_samples, on_cut=lambda: self._wake.put(None))
        self._packer = Packer(service, resource, "")
        self._refs: dict[Series, SeriesRef] = {}
        nothing = Series("", "gauge")
        self._invalid = SeriesRef(nothing, Drop.INVALID)
        self._too_many = SeriesRef(nothing, Drop.TOO_MANY_SERIES)
        self._start(_producer(self._properties))  # here, so that bad properties are told at once
        os.register_at_fork(after_in_child=partial(_after_fork, WeakMethod(self._start_in_child)))
        atexit.register(self.close)

    def _start(self, producer: Any) -> None:
        """All that belongs to one process."""
        self._producer = producer
        # Unique for each start, so that sequences of two runs are never taken for one another's duplicates.
        self._packer.start_over(os.urandom(8).hex())
        self._in_flight_bytes = 0
        self._in_flight_samples = 0
        self._warned_s: float | None = None
        self._deadline_s: float | None = None
        """Set by `close`: when to stop sending."""
        self._closing = RLock()  # a signal handler may call close() in the middle of close()
        self._progress = Condition()
        self._wake: SimpleQueue[None] = SimpleQueue()  # its put never waits, not even in a signal handler
        self._thread = Thread(target=self._run, name="tailrace-producer", daemon=True)
        self._thread.start()

    def _start_in_child(self) -> None:
        if self._deadline_s is None:
            _abandoned.append(self._producer)
            self._buffer.reset()
            self._start(None)  # connects with its first sample: most children record nothing

    def counter(self, name: str, unit: str = "1") -> Counter:
        """Raises ValueError on a name or unit that cannot be sent, as the other instruments do."""
        return Counter(self, name, unit)

    def cumulative(self, name: str, unit: str = "1") -> Cumulative:
        """For totals that are observed rather than counted here."""
        return Cumulative(self, name, unit)

    def gauge(self, name: str, unit: str = "1") -> Gauge:
        """For values that go up and down."""
        return Gauge(self, name, unit)

    def distribution(self, name: str, unit: str = "1") -> Distribution:
        """For values whose quantiles matter."""
        return Distribution(self, name, unit)

    def timer(self, name: str) -> Timer:
        """A distribution of seconds."""
        return Timer(self, name, "s")

    def event(
        self,
        name: str,
        attributes: Attributes | None = None,
        value: float = 1,
        time_us: int | None = None,
        **more: object,
    ) -> None:
        """Record an occurrence, such as a deploy. It is counted, and kept as a row with its attributes."""
        try:
            ref = self._ref("event", _name(name, "an event's name"), "", {**(attributes or {}), **more})
        except Exception:  # noqa: BLE001 - a host's odd objects; recording never raises
            ref = self._invalid
        self._buffer.rows.extend((value, now_us() if time_us is None else time_us, ref))
        if len(self._buffer.rows) >= self._buffer.row_limit:
            self._buffer.cut_if_full()

    @property
    def stats(self) -> Stats:
        """What became of everything recorded so far."""
        return self._buffer.stats()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all recorded before this call is delivered, or counted as dropped. False: not in time."""
        mark = self._buffer.cut()
        self._wake.put(None)
        with self._progress:
            return self._progress.wait_for(lambda: self._buffer.settled(mark), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is held, within `timeout_s`; count the rest, and all recorded later, as dropped. Repeatable."""
        with self._closing:
            if self._deadline_s is not None:
                return
            atexit.unregister(self.close)
            self._deadline_s = monotonic_s() + timeout_s
            self._wake.put(None)
            self._thread.join(timeout_s + 1.0)
            self._buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ref(self, kind: str, name: str, unit: str, attributes: Attributes) -> SeriesRef:
        """The series' one ref. Raises ValueError, and whatever a value's str() raises."""
        series = Series(name, kind, unit, _canonical(attributes, self._max_attributes))
        if kind == "event":
            return SeriesRef(series)
        ref = self._refs.get(series)
        if ref is None:
            if len(self._refs) >= MAX_SERIES:
                return self._too_many
            ref = self._refs.setdefault(series, SeriesRef(series))  # of two threads at once, one wins
        return ref

    # In the background thread. Delivery reports and errors are called back there too, from poll().

    def _run(self) -> None:
        due_s = monotonic_s() + SEND_INTERVAL_S
        while self._deadline_s is None:
            self._wait(due_s)
            if monotonic_s() >= due_s:
                self._buffer.cut()
                due_s = monotonic_s() + SEND_INTERVAL_S
            self._send_waiting()
        self._finish(self._deadline_s)

    def _wait(self, due_s: float) -> None:
        """Until there is something to do: a chunk is cut, flush or close want attention, messages are confirmed."""
        left_s = max(0.0, due_s - monotonic_s())
        try:
            if self._in_flight_samples:
                self._poll(min(POLL_S, left_s))
            else:
                self._wake.get(timeout=left_s)
            while True:
                self._wake.get_nowait()
        except Empty:
            pass

    def _finish(self, deadline_s: float) -> None:
        self._buffer.cut()
        while self._buffer.stats().held and monotonic_s() < deadline_s:
            self._send_waiting()
            self._poll(POLL_S)
        self._buffer.close()
        if self._producer is not None:
            # Otherwise its destructor would wait for the broker.
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._poll(0)

    def _poll(self, timeout_s: float) -> None:
        if self._producer is not None:
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
                messages, dropped = self._packer.pack(chunk.rows)
                for drop, samples in dropped.items():
                    self._buffer.settle(chunk.number, samples, drop)
                for message in messages:
                    self._send(chunk, message)
            except Exception as error:  # noqa: BLE001 - a defect here must not end sending for good
                self._buffer.abandon(chunk.number)
                self._warn("samples dropped: %r", error)
        with self._progress:
            self._progress.notify_all()

    def _send(self, chunk: Chunk, message: Message) -> None:
        from confluent_kafka import KafkaException

        if self._producer is None:
            self._producer = _producer(self._properties)
        report = partial(self._on_delivery, chunk.number, message.samples, len(message.payload))
        self._in_flight_bytes += len(message.payload)
        self._in_flight_samples += message.samples
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

    def _on_delivery(self, number: int, samples: int, size: int, error: Any, _message: Any) -> None:
        self._in_flight_bytes -= size
        self._in_flight_samples -= samples
        self._buffer.settle(number, samples, Drop.UNDELIVERED if error else None)
        if error:
            self._on_error(error)

    def _on_error(self, error: Any) -> None:
        self._warn("samples wait or are dropped, see Telemetry.stats: %s", error)

    def _warn(self, message: str, detail: object) -> None:
        if self._warned_s is None or monotonic_s() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = monotonic_s()
            _log.warning(message, detail)


_abandoned: list[Any] = []
"""A forked child's copies of its parent's producers: their destructors would wait for threads it does not have."""


def _after_fork(start: "WeakMethod[Callable[[], None]]") -> None:
    """Fork handlers cannot be taken back, so this one must not keep a `Telemetry` alive."""
    method = start()
    if method is not None:
        method()


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


def _canonical(attributes: Attributes, most: int) -> tuple[tuple[str, str], ...]:
    """Attributes as a series has them: text, sorted by key. Long values are cut, None is left out.

    Raises:
        ValueError: a key that cannot be sent, or too many attributes; also whatever a value's str() raises.
    """
    pairs = sorted(
        (_name(key, "an attribute's key"), _text(value)) for key, value in attributes.items() if value is not None
    )
    if len(pairs) > most:
        raise ValueError(f"{len(pairs)} attributes; at most {most} fit beside the resource's")
    return tuple(pairs)


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.isascii():  # half a surrogate pair cannot be encoded
        text = text.encode("utf-8", "replace").decode()
    return text[:MAX_VALUE_CHARS]


def _name(text: str, what: str, *, required: bool = True) -> str:
    if not isinstance(text, str) or (required and not text) or len(text) > MAX_NAME_CHARS:
        raise ValueError(f"{what} must be text of {1 if required else 0} to {MAX_NAME_CHARS} characters")
    return _text(text)
