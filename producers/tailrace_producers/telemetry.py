"""`Telemetry`: records samples inside a service and sends them to Kafka in the background.

    telemetry = Telemetry(service="checkout", attributes={"deployment.environment.name": "production"})
    orders = telemetry.counter("shop.orders", unit="{order}")
    orders.add(1, {"payment": "card"})

Guarantee: a call that records never blocks, raises or does I/O. What is recorded is delivered at least once, or
counted as dropped in `telemetry.stats`. By its sequence number the flow removes a message that arrives twice, and
counts one that never arrives as missing.
"""

import atexit
import os
import sys
from collections.abc import Mapping
from sys import getsizeof
from threading import RLock
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

from tailrace_schemas.clock import monotonic_s, now_ns
from tailrace_schemas.samples import Series
from tailrace_schemas.topics import Topics

from tailrace_producers.buffer import Buffer, Stats
from tailrace_producers.instruments import (
    BoundCounter,
    BoundCumulative,
    BoundDistribution,
    BoundGauge,
    BoundTimer,
    Counter,
    Cumulative,
    Distribution,
    Gauge,
    Timer,
    nanoseconds,
)
from tailrace_producers.observers import Observers
from tailrace_producers.packing import Packer
from tailrace_producers.registry import Attributes, Registry, canonical, checked_name
from tailrace_producers.resource import from_environment
from tailrace_producers.sender import Sender, check_properties

__all__ = [
    "BoundCounter", "BoundCumulative", "BoundDistribution", "BoundGauge", "BoundTimer", "Counter", "Cumulative",
    "Distribution", "Gauge", "Stats", "Telemetry", "Timer",
]  # fmt: skip

_TOPICS = Topics()
BUFFER_TIMEOUT_S: Final = 1.0
"""Far more than any step of the buffer's takes."""


class Telemetry:
    """What a service records. One a process will do; threads may share it.

    A daemon thread sends samples at the latest 0.5 s after they were recorded; it connects with the first of them.
    While the broker is away up to `max_samples` are kept (at most 20 MB at the default), then the oldest are dropped;
    of events, which have attributes of their own, as many as take as much.
    Trouble is logged to `tailrace.producer`, at most once a minute. `close` runs at interpreter exit by itself, and at
    the end of a process of multiprocessing's. After a fork the child goes on as a producer of its own; what was held
    then is the parent's to send.
    """

    def __init__(
        self,
        service: str | None = None,
        attributes: Attributes | None = None,
        *,
        bootstrap_servers: str = "localhost:9092",
        properties: Mapping[str, object] | None = None,
        topics: Topics = _TOPICS,
        max_samples: int = 200_000,
    ) -> None:
        """`attributes` are those of every series (the resource). `properties` are librdkafka's, and win over ours.

        The environment's `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` give what the arguments leave out.

        Raises:
            ValueError: no service name, an attribute that cannot be sent, no text for the brokers, or `max_samples`
                under 4,096.
            confluent_kafka.KafkaException: librdkafka does not accept the properties.
        """
        named, given = from_environment(os.environ)
        if service is None and not named:
            raise ValueError("no service name: give Telemetry(service=...), or set OTEL_SERVICE_NAME")
        service = checked_name(named if service is None else service, "service")
        resource = dict(canonical({**given, **(attributes or {})}))
        kafka = {"bootstrap.servers": bootstrap_servers} | dict(properties or {})
        servers = kafka["bootstrap.servers"]
        if not isinstance(servers, str) or not servers.strip():  # librdkafka takes it, and then never connects
            raise ValueError(f"bootstrap_servers is {servers!r}; give host:port, or several with commas in one text")
        check_properties(kafka)
        self._buffer = Buffer(max_samples, on_cut=lambda: self._sender.wake())
        self._observers = Observers(self._count_failed_observation)
        self._registry = Registry(self._buffer, self._observers, resource)
        self._sender = Sender(self._buffer, Packer(service, resource, ""), topics.samples, service.encode(), kafka)
        self._closed = False
        self._closing = RLock()  # a signal handler may call close() in the middle of close()
        _live.add(self)
        atexit.register(self.close)
        _close_with_multiprocessing(self)

    def _start_in_child(self) -> None:
        self._closing = RLock()
        if not self._closed:
            self._buffer.reset()
            self._sender.start()
            self._observers.start_over()
            _close_with_multiprocessing(self)

    def counter(self, name: str, unit: str = "1") -> Counter:
        """Raises ValueError on a name or unit that cannot be sent, as the other instruments do."""
        return Counter(self._registry, name, unit)

    def cumulative(self, name: str, unit: str = "1") -> Cumulative:
        """For totals that are observed rather than counted here."""
        return Cumulative(self._registry, name, unit)

    def gauge(self, name: str, unit: str = "1") -> Gauge:
        """For values that go up and down."""
        return Gauge(self._registry, name, unit)

    def distribution(self, name: str, unit: str = "1") -> Distribution:
        """For values whose quantiles matter."""
        return Distribution(self._registry, name, unit)

    def timer(self, name: str) -> Timer:
        """A distribution of seconds."""
        return Timer(self._registry, name, "s")

    def event(
        self,
        name: str,
        attributes: Attributes | None = None,
        value: float = 1,
        time_us: int | None = None,
        **more: object,
    ) -> None:
        """Record an occurrence, such as a deploy. It is counted, and kept as a row with its attributes."""
        registry, buffer = self._registry, self._buffer
        try:
            ref = registry.ref("event", checked_name(name, "an event's name"), "", {**(attributes or {}), **more})
        except Exception:  # noqa: BLE001 - a host's odd objects; recording never raises
            ref = registry.invalid
        buffer.rows.extend((value, now_ns() if time_us is None else nanoseconds(time_us), ref))
        buffer.event_bytes += _event_bytes(ref.series)
        if len(buffer.rows) >= buffer.row_limit or buffer.event_bytes >= buffer.event_limit:
            buffer.cut_if_full()

    def collect(self) -> None:
        """Call everything that is observed (`Gauge.observe`) now, in this thread, besides its regular passes."""
        self._observers.collect()

    @property
    def stats(self) -> Stats:
        """What became of everything recorded so far."""
        return self._buffer.stats()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all recorded before this call is delivered, or counted as dropped. False: not in time."""
        mark = self._buffer.cut()
        self._sender.wake()
        return self._sender.wait(lambda: self._buffer.settled(mark), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is held, within `timeout_s`; count the rest, and all recorded later, as dropped. Repeatable."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            deadline_s = monotonic_s() + timeout_s
            self._observers.close(timeout_s / 2)  # a callback that hangs leaves time to send
            self._sender.close(max(0.0, deadline_s - monotonic_s()))
            # By a signal handler that came in the middle of a step of the buffer's: the sender's thread does it then.
            self._buffer.close(BUFFER_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _count_failed_observation(self, metric: str) -> None:
        self.counter("tailrace.producer.observe.errors", "{error}").add(1, {"tailrace.metric": metric})


def _event_bytes(event: Series) -> int:
    """What an event takes in memory beside its sample, about."""
    return 200 + sum(72 + getsizeof(key) + getsizeof(text) for key, text in event.attributes)


_live: WeakSet[Telemetry] = WeakSet()


def _after_fork() -> None:
    for telemetry in list(_live):
        telemetry._start_in_child()


os.register_at_fork(after_in_child=_after_fork)


def _close_with_multiprocessing(telemetry: Telemetry) -> None:
    """Have a child of multiprocessing's close it when its work is done: such a child does not run `atexit`.

    It forgets the finalizers that it inherited, calls the functions of `register_after_fork`, does its work, and calls
    its own finalizers. Does nothing where multiprocessing is not used.
    """
    if "multiprocessing.util" in sys.modules:
        from multiprocessing import parent_process
        from multiprocessing.util import register_after_fork

        register_after_fork(telemetry, _close_at_end_of_child)
        if parent_process() is not None:  # made in the middle of its work
            _close_at_end_of_child(telemetry)


def _close_at_end_of_child(telemetry: Telemetry) -> None:
    from multiprocessing.util import Finalize

    Finalize(telemetry, telemetry.close, exitpriority=0)
