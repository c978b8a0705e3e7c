"""`Telemetry` against a broker that speaks Kafka's protocol, against none, and in the hands of a careless host."""

import asyncio
import logging
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import KafkaException
from tailrace_producers import Telemetry, instruments, registry, sender
from tailrace_producers.buffer import CHUNK_SAMPLES
from tailrace_producers.sender import DROPPED
from tailrace_schemas.clock import now_us
from tailrace_schemas.samples import Series
from tailrace_schemas.topics import Topics

from tests.infra.waiting import eventually
from tests.producers.reading import Read, read_topic, samples_of

NOWHERE = "127.0.0.1:1"
T0 = 1_700_000_000_000_000


def all_samples(reads: list[Read]) -> Counter[tuple[Series, int, float]]:
    return Counter(tuple(sample) for read in reads for sample in samples_of(read.batch))


def reported(samples: Counter[tuple[Series, int, float]]) -> dict[str, float]:
    """What a producer said that it dropped, by reason."""
    total: Counter[str] = Counter()
    for (series, _, value), times in samples.items():
        if series.metric == DROPPED:
            assert (series.kind, series.unit) == ("counter", "{sample}")
            total[dict(series.attributes)["tailrace.reason"]] += times * int(value)
    return dict(total)


def test_every_instrument_arrives_as_it_was_recorded(embedded_broker: str) -> None:
    resource = {"host.name": "a", "replicas": 3}
    with Telemetry("shop", resource, bootstrap_servers=embedded_broker, topics=Topics("mine")) as shop:
        orders = shop.counter("shop.orders", "{order}")
        orders.add(2, {"payment": "card"}, time_us=T0)
        orders.add(payment="card", time_us=T0)
        orders.add(1, {"payment": "card"}, express=True, time_us=T0)
        orders.bind({"payment": "cash"}).add(time_us=T0)
        shop.gauge("shop.stock").set(-4.5, time_us=T0)
        shop.gauge("shop.stock").bind(shelf=None).set(5, T0)
        shop.distribution("shop.basket.size", "{item}").record(7, {"country": "é\ud800"}, T0)
        shop.distribution("shop.basket.size", "{item}").bind().record(8, T0)
        shop.cumulative("shop.visits").set(1e6, time_us=T0)
        shop.cumulative("shop.visits").bind().set(2e6, T0 + 5)
        shop.event("deploy", {"version": "1.2"}, time_us=T0)
        assert shop.flush(10)
        assert (shop.stats.recorded, shop.stats.delivered, shop.stats.dropped) == (11, 11, {})

    reads = read_topic(embedded_broker, "mine.samples")
    base = {"host.name": "a", "replicas": "3"}

    def series(metric: str, kind: str, unit: str, **attributes: str) -> Series:
        return Series(metric, kind, unit, tuple(sorted((base | attributes).items())))

    card = series("shop.orders", "counter", "{order}", payment="card")
    stock = series("shop.stock", "gauge", "1")
    assert all_samples(reads) == Counter(
        [
            (card, T0, 2.0),
            (card, T0, 1.0),
            (series("shop.orders", "counter", "{order}", payment="card", express="true"), T0, 1.0),
            (series("shop.orders", "counter", "{order}", payment="cash"), T0, 1.0),
            (stock, T0, -4.5),
            (stock, T0, 5.0),
            (series("shop.basket.size", "distribution", "{item}", country="é?"), T0, 7.0),
            (series("shop.basket.size", "distribution", "{item}"), T0, 8.0),
            (series("shop.visits", "cumulative", "1"), T0, 1e6),
            (series("shop.visits", "cumulative", "1"), T0 + 5, 2e6),
            (series("deploy", "event", "", version="1.2"), T0, 1.0),
        ]
    )
    assert {read.key for read in reads} == {b"shop"}
    assert sorted(read.batch.sequence for read in reads) == list(range(len(reads)))
    assert {len(read.batch.producer_id) for read in reads} == {16}


def test_samples_leave_by_themselves_at_the_time_they_were_recorded(embedded_broker: str) -> None:
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        before_us = now_us()
        shop.counter("a").add()
        shop.gauge("b").bind().set(2)
        shop.event("c")
        after_us = now_us()
        eventually(lambda: shop.stats.delivered == 3)
    times = [sample.time_us for read in read_topic(embedded_broker) for sample in samples_of(read.batch)]
    assert len(times) == 3
    assert all(before_us <= time_us <= after_us for time_us in times)


def test_partitions_are_those_that_java_clients_pick(embedded_broker: str) -> None:
    services = ("a", "shop", "kafka", "checkout", "inventory")
    for service in services:
        with Telemetry(service, bootstrap_servers=embedded_broker) as one:
            one.counter("c").add()
    found = {read.batch.service: read.partition for read in read_topic(embedded_broker)}
    assert found == {service: _murmur2(service.encode()) % 4 for service in services}  # the broker has 4


def _murmur2(data: bytes) -> int:
    """MurmurHash2 (Austin Appleby) with Kafka's seed, its sign bit cleared: Java's default partitioner."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for start in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[start : start + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    tail = data[len(data) & ~3 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


def test_threads_share_instruments_without_mixing_samples_up(embedded_broker: str) -> None:
    each, threads = 4000, 8
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        latency = shop.distribution("latency")
        start = threading.Barrier(threads)

        def work(number: int) -> None:
            record = latency.bind(thread=number).record
            start.wait()
            for i in range(each):
                if i % 2:
                    record(number * each + i, T0 + number * each + i)
                else:
                    latency.record(number * each + i, {"thread": number}, T0 + number * each + i)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert shop.flush(20)
        assert shop.stats == (each * threads, each * threads, 0, {})
    found = all_samples(read_topic(embedded_broker))
    assert found == Counter(
        (Series("latency", "distribution", "1", (("thread", str(number)),)), T0 + value, float(value))
        for number in range(threads)
        for value in range(number * each, (number + 1) * each)
    )


def test_full_chunks_leave_before_their_time(embedded_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "SEND_INTERVAL_S", 3600.0)
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        add = shop.counter("c").bind().add
        for _ in range(CHUNK_SAMPLES):
            add()
        for number in range(CHUNK_SAMPLES):
            shop.event("e", number=number % 3)
        for number in range(CHUNK_SAMPLES + 1):
            shop.gauge("g").set(number)
        eventually(lambda: shop.stats.delivered == 3 * CHUNK_SAMPLES)
        assert shop.stats.held == 1


class Careless:
    """An attribute whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_recording_never_raises_and_counts_what_it_cannot_send(embedded_broker: str) -> None:
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        gauge, counter = shop.gauge("g"), shop.counter("c")
        bad: list[Any] = [float("nan"), float("inf"), "1", None, object(), 10**400, 1j]
        for value in bad:
            gauge.set(value)
            gauge.bind().set(value)
        counter.add(-1)
        gauge.set(1, time_us=-5)
        gauge.set(1, time_us="now")  # type: ignore[arg-type]
        gauge.bind().set(1, object())  # type: ignore[arg-type]
        many = {f"k{number}": "v" for number in range(129)}
        long = {f"k{number}": "é" * 2000 for number in range(5)}
        for attributes in ([1], {"": "x"}, {1: "x"}, {"k" * 1025: "x"}, {"k": Careless()}, many, long):
            gauge.set(1, attributes)  # type: ignore[arg-type]
            gauge.bind(attributes).set(1)  # type: ignore[arg-type]
            gauge.set(1, attributes, more="m")  # type: ignore[arg-type]
            shop.event("e", attributes)  # type: ignore[arg-type]
        shop.event("")
        shop.event(None)  # type: ignore[arg-type]
        invalid = 2 * len(bad) + 4 + 4 * 7 + 2
        gauge.set(1, {"list": [1, 2], "text": "x" * 5000}, T0)
        gauge.set(2, {"list": [1, 2], "text": "x" * 5000}, T0)
        assert shop.flush(10)
        assert shop.stats == (invalid + 2, 2, 0, {"invalid": invalid})
    found = all_samples(read_topic(embedded_broker))
    assert reported(found) == {"invalid": invalid}
    attributes = (("list", "[1, 2]"), ("text", "x" * 4096))
    assert {series for series, _, _ in found if series.metric != DROPPED} == {Series("g", "gauge", "1", attributes)}


def test_the_number_of_series_is_bounded(embedded_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_SERIES", 10)
    monkeypatch.setattr(instruments, "MAX_SERIES", 10)
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        counter = shop.counter("c")
        for number in range(100):
            counter.add(1, user=number)
        counter.add(1, user=3)
        assert len(counter._shape[2]) <= 10
        for number in range(20):  # events are no series of the producer's
            shop.event("e", user=number)
        assert shop.flush(10)
        assert shop.stats == (121, 31, 0, {"too_many_series": 90})


@pytest.mark.parametrize("name", ["", "x" * 1025, None, 5])
def test_names_that_cannot_be_sent_are_refused_when_they_are_made(name: Any) -> None:
    with pytest.raises(ValueError, match=r"service must be text of 1 to 1024 characters|no service name"):
        Telemetry(name, bootstrap_servers=NOWHERE)
    one = Telemetry("shop", bootstrap_servers=NOWHERE)
    with pytest.raises(ValueError, match="a metric's name must be"):
        one.counter(name)
    with pytest.raises(ValueError, match="a unit must be"):
        one.gauge("g", "x" * 1025)
    one.close(0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="an attribute's key"):
        Telemetry("shop", {"": "x"}, bootstrap_servers=NOWHERE)
    with pytest.raises(ValueError, match="max_samples is 10"):
        Telemetry("shop", bootstrap_servers=NOWHERE, max_samples=10)
    with pytest.raises(KafkaException, match="No such configuration property"):
        Telemetry("shop", bootstrap_servers=NOWHERE, properties={"bogus": "1"})
    for servers in ([NOWHERE], None, " "):
        with pytest.raises(ValueError, match=r"bootstrap_servers is .*; give host:port"):
            Telemetry("shop", bootstrap_servers=servers)  # type: ignore[arg-type]


def test_without_a_broker_memory_is_bounded_and_losses_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    shop = Telemetry("shop", bootstrap_servers=NOWHERE, max_samples=10_000)
    record = shop.distribution("d").bind().record
    for value in range(50_000):
        record(value)
    assert not shop.flush(0.1)
    stats = shop.stats
    assert stats.recorded == 50_000 == stats.held + stats.dropped["queue_full"]
    assert stats.held <= 10_000 + 4096
    eventually(lambda: caplog.records)
    shop.close(0.1)
    shop.close()
    assert shop.stats.dropped["shutdown"] == stats.held
    record(1)
    shop.counter("c").add()
    assert shop.stats == (50_002, 0, 0, {**stats.dropped, "shutdown": stats.held, "closed": 2})
    assert [record.name for record in caplog.records] == ["tailrace.producer"], "once, not at each attempt"
    assert "samples wait or are dropped" in caplog.text


def test_events_take_no_more_memory_than_samples(embedded_broker: str) -> None:
    """80 MB of them while there is no broker; with one, 16 MB at once, of which no message is too large."""
    with Telemetry("shop", bootstrap_servers=NOWHERE) as nobody:
        tracemalloc.start()
        try:
            for number in range(20_000):
                nobody.event("failed", text=f"{number}" + "x" * 4000)
            memory = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert memory < 30_000_000
        assert nobody.stats.dropped["queue_full"] > 10_000
        nobody.close(0)
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        for number in range(4000):
            shop.event("failed", text=f"{number}" + "x" * 4000)
        assert shop.flush(20)
        assert shop.stats == (4000, 4000, 0, {})


def test_what_the_broker_never_confirms_is_counted() -> None:
    properties = {"delivery.timeout.ms": 100, "linger.ms": 0}
    with Telemetry("shop", bootstrap_servers=NOWHERE, properties=properties) as shop:
        shop.counter("c").add()
        assert shop.flush(10)
        assert shop.stats == (1, 0, 0, {"undelivered": 1})


def test_messages_that_librdkafka_refuses_are_counted(embedded_broker: str) -> None:
    with Telemetry("shop", bootstrap_servers=embedded_broker, properties={"message.max.bytes": 1000}) as shop:
        shop.counter("c").add()
        shop.counter("c").add(1, {"text": "x" * 4000})
        assert shop.flush(10)
        assert shop.stats == (2, 0, 0, {"undelivered": 2})


def test_a_small_queue_of_librdkafka_only_slows_sending_down(embedded_broker: str) -> None:
    properties = {"queue.buffering.max.messages": 1, "linger.ms": 0}
    with Telemetry("shop", bootstrap_servers=embedded_broker, properties=properties) as shop:
        for hour in range(10):  # a message each: their times are far apart
            shop.gauge("g").set(hour, time_us=T0 + hour * 3_600_000_000)
        assert shop.flush(20)
        assert shop.stats == (10, 10, 0, {})
    reads = read_topic(embedded_broker)
    assert [read.batch.sequence for read in reads] == list(range(10))


def test_a_small_queue_and_no_broker_do_not_hold_up_close() -> None:
    properties = {"queue.buffering.max.messages": 1, "linger.ms": 0}
    shop = Telemetry("shop", bootstrap_servers=NOWHERE, properties=properties)
    for hour in range(10):
        shop.gauge("g").set(hour, time_us=T0 + hour * 3_600_000_000)
    shop.close(0.2)
    assert shop.stats == (10, 0, 0, {"shutdown": 10})


def test_a_defect_or_a_failing_callback_does_not_end_sending(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_statistics: str) -> None:
        raise RuntimeError("the host's callback")

    properties = {"stats_cb": failing, "statistics.interval.ms": 10}
    with Telemetry("shop", bootstrap_servers=embedded_broker, properties=properties) as shop:
        counter = shop.counter("c")
        pack = shop._sender._packer.pack
        monkeypatch.setattr(shop._sender._packer, "pack", lambda rows: 1 / 0)
        counter.add()
        assert shop.flush(10)
        assert shop.stats.dropped == {"error": 1}
        monkeypatch.setattr(shop._sender._packer, "pack", pack)
        for _ in range(3):
            counter.add()
            assert shop.flush(10)
        assert shop.stats.delivered == 3
    assert "ZeroDivisionError" in caplog.text
    assert len(caplog.records) == 1


def test_a_host_s_logging_that_fails_does_not_end_sending(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outside_of_a_request(_record: logging.LogRecord) -> bool:
        raise LookupError("a filter that tells the URL of the request, where there is none")

    log = logging.getLogger("tailrace.producer")
    log.addFilter(outside_of_a_request)
    try:
        with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
            with monkeypatch.context() as patched:
                patched.setattr(shop._sender._packer, "pack", lambda rows: 1 / 0)
                shop.counter("c").add()
                assert shop.flush(10)
            shop.counter("c").add()
            assert shop.flush(10)
            assert shop.stats == (2, 1, 0, {"error": 1})
    finally:
        log.removeFilter(outside_of_a_request)


def test_a_timer_times_blocks_functions_and_coroutines(embedded_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**12, 3 * 10**9))
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        timer = shop.timer("job.duration")

        @timer.time(job="function")
        def function(value: int) -> int:
            """Doc."""
            return value + 1

        @timer.bind(job="coroutine").time()
        async def coroutine(value: int) -> int:
            await asyncio.sleep(0)
            return value + 2

        async def awaited() -> None:
            async with timer.time(job="async block"):
                await asyncio.sleep(0)

        monkeypatch.setattr(instruments, "monotonic_ns", lambda: next(ticks))
        with timer.time({"job": "block"}):
            pass
        asyncio.run(awaited())
        with pytest.raises(ZeroDivisionError), timer.time(job="failed"):
            1 / 0  # noqa: B018
        assert function(1) == 2
        assert function.__doc__ == "Doc."
        assert asyncio.run(coroutine(1)) == 3
        monkeypatch.undo()
        timer.record(9, job="by hand")
    found = Counter(
        (s.series.attributes[0][1], s.value) for r in read_topic(embedded_broker) for s in samples_of(r.batch)
    )
    assert found == Counter(
        {
            ("block", 3.0): 1,
            ("failed", 3.0): 1,
            ("function", 3.0): 1,
            ("coroutine", 3.0): 1,
            ("by hand", 9.0): 1,
            ("async block", 3.0): 1,
        }
    )


def run_python(code: str, *arguments: str) -> str:
    """Standard output of a Python process, which must not complain."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_held_is_sent_when_the_interpreter_ends(embedded_broker: str) -> None:
    run_python(
        """
import sys
from tailrace_producers import Telemetry
Telemetry("shop", bootstrap_servers=sys.argv[1]).counter("c").add(5)
""",
        embedded_broker,
    )
    (read,) = read_topic(embedded_broker)
    assert [sample.value for sample in samples_of(read.batch)] == [5.0]


def test_a_forked_child_is_a_producer_of_its_own(embedded_broker: str) -> None:
    run_python(
        """
import os, sys, warnings
from tailrace_producers import Telemetry
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forking with threads, which is the point
shop = Telemetry("shop", bootstrap_servers=sys.argv[1])
idle = Telemetry("idle", bootstrap_servers=sys.argv[1])
closed = Telemetry("closed", bootstrap_servers=sys.argv[1])
closed.close()
add = shop.counter("c").bind(who="parent and child").add
add(1)
shop.flush(10)
add(2)  # held at the fork: the parent's to send
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        add(10 + number)
        shop.counter("c").add(1, who="child")
        ok = shop.flush(10) and shop.stats.delivered == 2 and closed.stats.recorded == 0
        shop.close()
        idle.close()
        os._exit(0 if ok else 1)
    children.append(pid)
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
shop.close()
""",
        embedded_broker,
    )
    reads = read_topic(embedded_broker)
    values: dict[str, list[float]] = {}
    for read in reads:
        values.setdefault(read.batch.producer_id, []).extend(sample.value for sample in samples_of(read.batch))
    assert sorted(values.values()) == [[1.0, 2.0], [10.0, 1.0], [11.0, 1.0], [12.0, 1.0]]
    sequences = Counter((read.batch.producer_id, read.batch.sequence) for read in reads)
    assert set(sequences.values()) == {1}


def test_what_is_observed_is_observed_in_a_forked_child_too(embedded_broker: str) -> None:
    parent, child = run_python(
        """
import os, sys, warnings
from tailrace_producers import Telemetry
warnings.simplefilter("ignore", DeprecationWarning)
shop = Telemetry("shop", bootstrap_servers=sys.argv[1])
shop.gauge("pid").observe(os.getpid)
pid = os.fork()
shop.close()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
sys.stdout.write(f"{os.getpid()} {pid}")
""",
        embedded_broker,
    ).split()
    found = {one.value for read in read_topic(embedded_broker) for one in samples_of(read.batch)}
    assert found == {float(parent), float(child)}


def test_a_signal_handler_may_close_it_in_the_middle_of_a_step_of_the_buffer() -> None:
    shop = Telemetry("shop", bootstrap_servers=NOWHERE)
    shop.counter("c").add()

    def interrupted() -> None:
        with shop._buffer._lock:  # as in the call that found the buffer full
            shop.close(0)  # the handler, in the same thread

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    eventually(lambda: shop.stats == (1, 0, 0, {"shutdown": 1}))


def test_the_import_is_light() -> None:
    heavy, cpu_ms = run_python(
        """
import sys, time
before = time.process_time()
import tailrace_producers
cpu_ms = 1000 * (time.process_time() - before)
heavy = {"numpy", "pydantic", "pyarrow", "bytewax", "chdb", "confluent_kafka", "psutil"} & sys.modules.keys()
sys.stdout.write(f"{sorted(heavy)}|{cpu_ms}")
"""
    ).split("|")
    assert heavy == "[]"
    assert float(cpu_ms) < 150


def test_nothing_is_kept_alive_by_a_closed_telemetry(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    threads = threading.active_count()
    shop = Telemetry("shop", bootstrap_servers=NOWHERE)
    assert threading.active_count() == threads + 1
    shop.close(0)
    assert threading.active_count() == threads
