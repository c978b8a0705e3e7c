"""What a host records with: counters, gauges, distributions, timers. A `Telemetry` makes them.

Recording costs 150 ns bound and 200 to 350 ns with attributes at each call, as `python -m benchmarks producer` has it.
Of a bound call's 150 ns the clock is 55, the call of a Python function 35, the three references that are put into the
list 40, and the check whether it is full 15; so what is left to gain is to be had from the interpreter. Attributes are
found by their values alone while an instrument is used with one set of keys, as most are: half the cost of a
key made of all pairs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from enum import Enum
from functools import partial, wraps
from inspect import iscoroutinefunction
from operator import index, itemgetter
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar

from tailrace_schemas.clock import monotonic_ns, now_ns
from tailrace_schemas.samples import MAX_VALUE_CHARS

from tailrace_producers.buffer import SeriesRef
from tailrace_producers.observers import Read
from tailrace_producers.registry import MAX_SERIES, Attributes, Registry, checked_name

__all__ = [
    "BoundCounter", "BoundCumulative", "BoundDistribution", "BoundGauge", "BoundTimer", "Counter", "Cumulative",
    "Distribution", "Gauge", "Timer", "each_call", "nanoseconds", "rounded",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


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


_ROUND_S: Final = 1.5 * 2**22
"""The float64 numbers near it lie 2**-30 apart."""


def rounded(seconds: float) -> float:
    """A duration as a multiple of 2**-30 s (0.93 ns): as fine as the clock, but half of its bits are zero, so that it
    takes a third less once compressed. What `Timer.time` measures is rounded so; what a host records is not.
    """
    return seconds + _ROUND_S - _ROUND_S


class _Timing:
    """Times a block or, as a decorator, each call of a function or coroutine function."""

    __slots__ = ("_record", "_start_ns")

    def __init__(self, record: Callable[[float], None]) -> None:
        self._record = record
        self._start_ns = 0

    def __enter__(self) -> Self:
        self._start_ns = monotonic_ns()
        return self

    def __exit__(self, *_error: object) -> None:
        self._record(rounded((monotonic_ns() - self._start_ns) / 1e9))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_error: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        return each_call(function, partial(_Timing, self._record))


def each_call(function: Callable[P, R], context: Callable[[], AbstractContextManager[object]]) -> Callable[P, R]:
    """The function, or coroutine function, with each call in a context of its own."""
    if iscoroutinefunction(function):

        @wraps(function)
        async def coroutine_in_context(*args: P.args, **kwargs: P.kwargs) -> Any:
            with context():
                return await function(*args, **kwargs)

        return coroutine_in_context  # type: ignore[return-value]  # R is the coroutine that this returns

    @wraps(function)
    def in_context(*args: P.args, **kwargs: P.kwargs) -> R:
        with context():
            return function(*args, **kwargs)

    return in_context


class _Instrument:
    """A metric of one kind and unit. Get it from a `Telemetry`; use it from any thread.

    Attributes are given as a mapping, as keywords, or both. A value of any type becomes text; None leaves it out.
    `time_us`, microseconds since the Unix epoch, is now unless given.
    """

    kind = ""

    def __init__(self, registry: Registry, name: str, unit: str) -> None:
        self._registry = registry
        self._name = checked_name(name, "a metric's name")
        self._unit = checked_name(unit, "a unit", required=False)
        buffer = registry.buffer
        self._rows = buffer.rows
        self._row_limit = buffer.row_limit
        self._extend = buffer.rows.extend
        self._cut = buffer.cut_if_full
        # 1, 1.0 and True are one key in what follows: an attribute should keep to one type.
        self._plain: SeriesRef | None = None
        """The series without attributes."""
        self._shape: tuple[Callable[[Attributes], object], int, dict[object, SeriesRef]] = (len, 0, {})
        """Of the first attributes seen: what gives the values of their keys, how many keys, values -> series."""
        self._refs: dict[tuple[tuple[str, object], ...], SeriesRef] = {}
        """Attributes with other keys, as callers spell them -> their series."""

    def _record(
        self, value: float, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Record one value."""
        try:
            if more:
                attributes = {**attributes, **more} if attributes else more
            if not attributes:
                ref = self._plain or self._resolve({})
            else:
                values, size, refs = self._shape
                if len(attributes) == size and attributes.__class__ is dict:
                    ref = refs[values(attributes)]
                else:  # to ask another mapping, such as a defaultdict, for a key may make it
                    ref = self._refs[tuple(attributes.items())]
        except Exception:  # noqa: BLE001 - new attributes, or a host's odd objects, which _resolve sorts out
            ref = self._resolve(attributes, more)
        self._extend((value, now_ns() if time_us is None else nanoseconds(time_us), ref))
        if len(self._rows) >= self._row_limit:
            self._cut()

    def _resolve(self, attributes: Attributes | None, more: Attributes | None = None) -> SeriesRef:
        """The series of these attributes, remembered. Raises nothing: what cannot be a series is `invalid`."""
        try:
            merged = {**(attributes or {}), **(more or {})}
            key = tuple(merged.items())
            if ref := self._known(merged, key):
                return ref
            ref = self._registry.ref(self.kind, self._name, self._unit, merged)
        except Exception:  # noqa: BLE001 - not a mapping, or a value whose str() raises whatever it likes
            return self._registry.invalid
        if not merged:
            self._plain = ref
        else:
            with suppress(TypeError):
                self._remember(merged, key, ref)
        return ref

    def _known(self, attributes: Attributes, key: tuple[tuple[str, object], ...]) -> SeriesRef | None:
        values, size, refs = self._shape
        with suppress(KeyError, TypeError):  # other keys; a value that cannot be hashed: resolved anew each time
            if len(attributes) == size:
                return refs[values(attributes)]
        with suppress(TypeError):
            return self._refs.get(key)
        return None

    def _remember(self, attributes: Attributes, key: tuple[tuple[str, object], ...], ref: SeriesRef) -> None:
        """Raises TypeError on a value that cannot be hashed."""
        if not all(map(_can_be_kept, attributes.values())):
            return
        if not self._shape[1]:
            self._shape = itemgetter(*attributes), len(attributes), {}
        values, size, refs = self._shape
        if len(refs) + len(self._refs) >= MAX_SERIES:
            return
        if len(attributes) == size:
            with suppress(KeyError):
                refs[values(attributes)] = ref
                return
        self._refs[key] = ref

    def _lookup(self, attributes: Attributes | None, more: Attributes) -> SeriesRef:
        """The series of these attributes, as _record finds it."""
        try:
            if more:
                attributes = {**attributes, **more} if attributes else more
            if not attributes:
                return self._plain or self._resolve({})
            values, size, refs = self._shape
            if len(attributes) == size and attributes.__class__ is dict:
                return refs[values(attributes)]
            return self._refs[tuple(attributes.items())]
        except Exception:  # noqa: BLE001 - as in _record
            return self._resolve(attributes, more)

    def _put(self, ref: SeriesRef, value: float) -> None:
        self._extend((value, now_ns(), ref))
        if len(self._rows) >= self._row_limit:
            self._cut()

    def _bind(self, attributes: Attributes | None, more: Attributes) -> _Record:
        """A function that records for these attributes: the cheapest way there is."""
        ref = self._lookup(attributes, more)
        rows, row_limit, extend, cut = self._rows, self._row_limit, self._extend, self._cut

        def record(value: float, time_us: int | None = None) -> None:
            extend((value, now_ns() if time_us is None else nanoseconds(time_us), ref))
            if len(rows) >= row_limit:
                cut()

        return record

    def _observe(self, read: Read, attributes: Attributes | None, more: Attributes) -> Read:
        self._registry.observers.add(self._name, read, {**(attributes or {}), **more}, self._record)
        return read


class Counter(_Instrument):
    """Counts occurrences or amounts; never negative."""

    kind = "counter"

    def add(
        self, value: float = 1, attributes: Attributes | None = None, time_us: int | None = None, **more: object
    ) -> None:
        """Count `value` more."""
        try:  # as in _record, but for the default: a call of it would cost 80 ns
            if more:
                attributes = {**attributes, **more} if attributes else more
            if not attributes:
                ref = self._plain or self._resolve({})
            else:
                values, size, refs = self._shape
                if len(attributes) == size and attributes.__class__ is dict:
                    ref = refs[values(attributes)]
                else:
                    ref = self._refs[tuple(attributes.items())]
        except Exception:  # noqa: BLE001 - as in _record
            ref = self._resolve(attributes, more)
        self._extend((value, now_ns() if time_us is None else nanoseconds(time_us), ref))
        if len(self._rows) >= self._row_limit:
            self._cut()

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundCounter:
        """This counter with its attributes fixed: less than half the cost of a call."""
        ref = self._lookup(attributes, more)
        rows, row_limit, extend, cut = self._rows, self._row_limit, self._extend, self._cut

        def add(value: float = 1, time_us: int | None = None) -> None:  # as in _bind, but for the default
            extend((value, now_ns() if time_us is None else nanoseconds(time_us), ref))
            if len(rows) >= row_limit:
                cut()

        return BoundCounter(add)


class Gauge(_Instrument):
    """A value that goes up and down, such as a queue's length."""

    kind = "gauge"
    set = _Instrument._record

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundGauge:
        """This gauge with its attributes fixed: less than half the cost of a call."""
        return BoundGauge(self._bind(attributes, more))

    def observe(self, read: Read, attributes: Attributes | None = None, **more: object) -> Read:
        """Record what `read()` returns, every 5 s (`OBSERVE_INTERVAL_S`) and at `close`, from a thread of its own.

        It returns a number, or None for no value now, or an iterable of (number, attributes). One that raises is
        counted in `tailrace.producer.observe.errors`, and called again the next time. Returns `read`, so it decorates:

            @telemetry.gauge("shop.queue.length", "{order}").observe
            def queue_length() -> int: return len(queue)
        """
        return self._observe(read, attributes, more)


class Cumulative(_Instrument):
    """A total that somebody else counts, such as the kernel. The flow computes increases, and sees resets."""

    kind = "cumulative"
    set = _Instrument._record

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundCumulative:
        """This total with its attributes fixed: less than half the cost of a call."""
        return BoundCumulative(self._bind(attributes, more))

    def observe(self, read: Read, attributes: Attributes | None = None, **more: object) -> Read:
        """Record the totals that `read()` returns, as `Gauge.observe` does. Processes that count each for themselves
        need an attribute that tells them apart, such as `process.pid`, or one's total is taken for another's reset.
        """
        return self._observe(read, attributes, more)


class Distribution(_Instrument):
    """Values whose quantiles matter, such as latencies and sizes."""

    kind = "distribution"
    record = _Instrument._record

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundDistribution:
        """This distribution with its attributes fixed: less than half the cost of a call."""
        return BoundDistribution(self._bind(attributes, more))


class Timer(Distribution):
    """A distribution of durations in seconds."""

    def time(self, attributes: Attributes | None = None, **more: object) -> _Timing:
        """Times a `with` or `async with` block, or each call of the function it decorates, `async` ones too; failed
        ones as well.

        with timer.time(route="/x"): ...

        @timer.time(job="mail")
        def send(): ...
        """
        return _Timing(partial(self._put, self._lookup(attributes, more)))  # half the cost of a bound record

    def bind(self, attributes: Attributes | None = None, **more: object) -> BoundTimer:
        """This timer with its attributes fixed: less than half the cost of a call."""
        return BoundTimer(self._bind(attributes, more))


def _can_be_kept(value: object) -> bool:
    """Whether an attribute's value may stay in memory for as long as its instrument.

    An object of the host's may be an exception with all that its traceback holds, and have another text tomorrow.
    """
    if type(value) is str:
        return len(value) <= MAX_VALUE_CHARS  # the series has only so much of it
    return value is None or type(value) in (int, float, bool) or isinstance(value, Enum)


def nanoseconds(time_us: Any) -> Any:
    """What the packer is to make of a time that a host gave; it finds out whether that is one. Raises nothing."""
    try:
        return 1000 * index(time_us)  # an integer of whatever type: a text would be repeated a thousand times
    except Exception:  # noqa: BLE001 - whatever the host took for a time
        return None
