"""What hosts have read for them, what the environment says, and the helper for hosts' own tests."""

import gc
import logging
import sys
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from tailrace_producers import Telemetry, observers
from tailrace_producers.resource import from_environment
from tailrace_producers.testing import CapturedSample, capture

from tests.infra.waiting import eventually
from tests.producers.reading import read_topic, samples_of

NOWHERE = "127.0.0.1:1"
T0 = 1_700_000_000_000_000


@pytest.fixture
def shop() -> Iterator[Telemetry]:
    """Of which nothing is sent anywhere."""
    telemetry = Telemetry("shop", bootstrap_servers=NOWHERE)
    yield telemetry
    telemetry.close(0)


# The environment


@pytest.mark.parametrize(
    ("environment", "service", "attributes"),
    [
        ({}, "", {}),
        ({"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": ""}, "", {}),
        ({"OTEL_SERVICE_NAME": " shop "}, "shop", {}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,a=1"}, "shop", {"a": "1"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=x", "OTEL_SERVICE_NAME": "shop"}, "shop", {}),
        ({"OTEL_RESOURCE_ATTRIBUTES": " a = b%2Cc%3D%C3%A9 , k8s.pod=x=y,,empty=,"}, "",
         {"a": "b,c=é", "k8s.pod": "x=y", "empty": ""}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team%20name=a%20b+c"}, "", {"team name": "a b+c"}),
    ],
)  # fmt: skip
def test_what_the_environment_says(environment: dict[str, str], service: str, attributes: dict[str, str]) -> None:
    assert from_environment(environment) == (service, attributes)


@pytest.mark.parametrize("text", ["a", "a=1,b", "=1", "a=1,b=%", "a=%zz", "a=%FF"])
def test_variables_that_cannot_be_read_are_left_out_whole(text: str, caplog: pytest.LogCaptureFixture) -> None:
    environment = {"OTEL_RESOURCE_ATTRIBUTES": f"service.name=x,{text}", "OTEL_SERVICE_NAME": "shop"}
    assert from_environment(environment) == ("shop", {})
    assert "OTEL_RESOURCE_ATTRIBUTES is left out" in caplog.text


def test_the_environment_gives_what_the_arguments_leave_out(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,host.name=a")
    with Telemetry(attributes={"host.name": "b"}, bootstrap_servers=embedded_broker) as one:
        one.counter("c").add()
    with Telemetry("other", bootstrap_servers=embedded_broker) as other:
        other.counter("c").add()
    found = {read.batch.service: samples_of(read.batch)[0].series.attributes for read in read_topic(embedded_broker)}
    staging = ("deployment.environment.name", "staging")
    assert found == {"shop": (staging, ("host.name", "b")), "other": (staging, ("host.name", "a"))}


# Observed values


def test_observed_values_are_recorded(shop: Telemetry) -> None:
    queue = [1, 2, 3]

    @shop.gauge("queue.length", "{order}").observe
    def queue_length() -> int:
        return len(queue)

    shop.gauge("temperature", "Cel").observe(lambda: None)
    shop.gauge("pool.size").observe(lambda: [(1, {"pool": "a"}), (2, {"pool": "b"})], {"pool": "?"}, kind="db")
    shop.cumulative("cpu.time", "s").observe(lambda: 1.5, state="user")
    with capture(shop) as captured:
        shop.collect()
        queue.pop()
        shop.collect()
    assert captured.values("queue.length") == [3, 2]
    assert queue_length() == 2
    assert captured.values("temperature") == []
    assert captured.values("pool.size", pool="b", kind="db") == [2, 2]
    assert captured.values("cpu.time", state="user") == [1.5, 1.5]
    assert {one.kind for one in captured.samples} == {"gauge", "cumulative"}


def test_callbacks_that_fail_are_counted_and_asked_again(shop: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[Any] = iter([ZeroDivisionError(), 5, [(1, None)], ["ab"], 7])

    def read() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shop.gauge("g").observe(read)
    shop.gauge("h").observe(lambda: 1)
    with capture(shop) as captured:
        for _ in range(5):
            shop.collect()
    assert captured.values("g") == [5, 7]
    assert captured.values("h") == [1] * 5
    assert captured.values("tailrace.producer.observe.errors", {"tailrace.metric": "g"}) == [1, 1, 1]
    assert len(caplog.records) == 1
    assert "g could not be observed: ZeroDivisionError()" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, RuntimeError])
def test_neither_exits_nor_a_failing_logger_end_the_passes(
    shop: Telemetry, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(observers, "OBSERVE_INTERVAL_S", 0.01)
    calls = []

    def outside_of_a_request(_record: logging.LogRecord) -> bool:
        raise LookupError("a filter that tells the URL of the request, where there is none")

    def read() -> None:
        calls.append(1)
        raise error

    log = logging.getLogger("tailrace.producer")
    log.addFilter(outside_of_a_request)
    try:
        shop.gauge("g").observe(read)
        eventually(lambda: len(calls) > 2)
    finally:
        log.removeFilter(outside_of_a_request)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_a_signal_handler_raises_during_collect_is_the_host_s(shop: Telemetry, error: type[BaseException]) -> None:
    def read() -> None:
        raise error

    shop.gauge("g").observe(read)
    with pytest.raises(error):
        shop.collect()


def test_passes_come_by_themselves_and_once_more_at_close(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "OBSERVE_INTERVAL_S", 0.01)
    calls = []
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        shop.gauge("g").observe(lambda: calls.append(1))
        eventually(lambda: len(calls) > 2)
        monkeypatch.setattr(observers, "OBSERVE_INTERVAL_S", 3600.0)
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        shop.gauge("last").observe(lambda: 3)
    found = [(one.series.metric, one.value) for read in read_topic(embedded_broker) for one in samples_of(read.batch)]
    assert found == [("last", 3.0)]
    shop.gauge("late").observe(lambda: 4)
    assert shop.stats.recorded == 1


def test_a_callback_that_hangs_holds_up_nothing_else(embedded_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "OBSERVE_INTERVAL_S", 0.01)
    asked, release = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        release.wait()

    shop = Telemetry("shop", bootstrap_servers=embedded_broker)
    shop.gauge("g").observe(hang)
    assert asked.wait(10)
    shop.counter("c").add()
    assert shop.flush(10)
    shop.counter("c").add()
    shop.close(4)  # half of it for the callback
    assert shop.stats == (2, 2, 0, {})
    release.set()


# Attributes, and the helper for tests


class CaseInsensitive(OrderedDict[str, object]):
    """A host's own mapping."""


def test_attributes_are_the_same_however_they_are_spelled(shop: Telemetry) -> None:
    for instrument in (shop.distribution("d").record, shop.counter("d").add, shop.gauge("d").set):
        spellings: list[tuple[Any, dict[str, object]]] = [
            ({"a": 1, "b": "x"}, {}), ({"b": "x", "a": 1}, {}), ({"a": 1}, {"b": "x"}), (None, {"a": 1, "b": "x"}),
            ({"a": 2}, {"a": 1, "b": "x"}), ({"a": 1, "b": "x", "c": None}, {}), ({}, {"b": "x", "a": 1}),
            (CaseInsensitive(a=1, b="x"), {}), (defaultdict(str, a=1, b="x"), {}),
        ]  # fmt: skip
        with capture(shop) as captured:
            for _ in range(2):  # as new ones, and as known ones
                for mapping, more in spellings:
                    instrument(1, mapping, **more)
        assert {tuple(sorted(one.attributes.items())) for one in captured.samples} == {(("a", "1"), ("b", "x"))}
        assert len(captured.samples) == 2 * len(spellings)


def test_other_keys_are_other_series(shop: Telemetry) -> None:
    counter = shop.counter("c")
    every: list[Any] = [{"a": 1}, {"b": 1}, {}, {"a": 1, "b": 1}, {"a": 2}, None, {"c": [1]}, {"a": [1]}]
    with capture(shop) as captured:
        for value, attributes in enumerate(every * 3):
            counter.add(value, attributes)
            counter.bind(attributes).add(value)
        asked = defaultdict(str, {"z": "1"})
        counter.add(99, asked)
    assert [(one.value, dict(one.attributes)) for one in captured.samples] == [
        *(
            (value, {key: str(text) for key, text in (attributes or {}).items()})
            for value, attributes in enumerate(every * 3)
            for _ in range(2)
        ),
        (99, {"z": "1"}),
    ]
    assert dict(asked) == {"z": "1"}, "a host's mapping stays as it was"


def test_what_a_host_gives_as_attributes_is_not_kept_alive(shop: Telemetry) -> None:
    class FailureError(Exception):
        """As a host's: with a traceback that holds all that was local where it was raised."""

    counter, gauge = shop.counter("c"), shop.gauge("g")
    text, failures = "x" * 5000, []
    references = sys.getrefcount(text)
    for attributes in ({"error": 1}, {"text": 1}, {"both": 1, "error": 1}):  # one set of keys is looked up otherwise
        counter.add(1, attributes)
        for _ in range(2):
            failure = FailureError()
            counter.add(1, {"error": failure})
            counter.bind(error=failure)
            gauge.set(1, {"text": text, "error": failure})
            shop.event("failed", error=failure)
            counter.add(1, {"text": text})
            failures.append(weakref.ref(failure))
            del failure
    assert sys.getrefcount(text) == references
    gc.collect()
    assert [one() for one in failures] == [None] * 6


def test_an_object_that_changes_its_text_is_another_series(shop: Telemetry) -> None:
    class State:
        text = "open"

        def __str__(self) -> str:
            return self.text

    state, changes = State(), shop.counter("changes")
    with capture(shop) as captured:
        changes.add(1, state=state)
        state.text = "closed"
        changes.add(2, state=state)
    assert captured.values("changes", state="open") == [1]
    assert captured.values("changes", state="closed") == [2]


def test_a_time_that_is_a_text_takes_no_more_memory_than_one(shop: Telemetry) -> None:
    gauge = shop.gauge("g")
    with capture(shop) as captured:
        gauge.set(1, time_us="2026-11-28T23:00:00Z")  # type: ignore[arg-type]
        gauge.set(2, time_us=float(T0))  # type: ignore[arg-type]
        assert not any(isinstance(one, str) for one in shop._buffer.rows)
        gauge.set(3, time_us=T0)
    assert captured.dropped == {"invalid": 2}
    assert captured.values("g") == [3]


def test_a_host_sees_in_its_tests_what_it_recorded(shop: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    orders = shop.counter("shop.orders", "{order}")
    record = shop.timer("shop.duration").bind(step="pay").record
    with capture(shop) as captured:
        orders.add(2, {"payment": "card", "express": True}, time_us=T0)
        record(0.5)
        shop.event("deploy", version=3)
        assert captured.values("shop.duration") == [0.5]
        orders.add(float("nan"))
        with capture(shop) as inner:
            orders.add(7)
        orders.add(1, payment="cash")
    orders_of = captured.values("shop.orders"), captured.values("shop.orders", payment="card", express=True)
    assert orders_of == ([2, 1], [2])
    assert captured.samples[0] == CapturedSample(
        "shop.orders", 2.0, {"payment": "card", "express": "true"}, "counter", "{order}", T0
    )
    assert [one.metric for one in captured.samples] == ["shop.orders", "shop.duration", "deploy", "shop.orders"]
    assert captured.dropped == {"invalid": 1}
    assert inner.values("shop.orders") == [7]
    assert shop.stats.held == 0
    assert not caplog.records, "no broker was asked for"


def test_what_is_recorded_outside_the_block_is_sent(embedded_broker: str) -> None:
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        counter = shop.counter("c")
        counter.add(1)
        with capture(shop) as captured:
            counter.add(2)
        counter.add(3)
    assert captured.values("c") == [2]
    found = [one.value for read in read_topic(embedded_broker) for one in samples_of(read.batch)]
    assert found == [1, 3]
    with capture(shop) as late:
        counter.add(4)
    assert late.samples == []
    assert shop.stats.dropped == {"closed": 1}
