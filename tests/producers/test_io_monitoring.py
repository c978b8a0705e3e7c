"""I/O monitoring as a host uses it."""

import asyncio
import gc
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from tailrace_producers import io_monitoring
from tailrace_producers.io_monitoring import (
    generate_io_report,
    monitor_cache,
    start_io_monitoring,
    stop_io_monitoring,
    track_io_operation,
)

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Monitoring by a clock that the test sets; all is stopped and forgotten afterwards."""
    one = Clock()
    monkeypatch.setattr(io_monitoring, "monotonic_s", one)
    monkeypatch.setattr(io_monitoring, "_caches", {})
    yield one
    stop_io_monitoring()


def fail_after(clock: Clock, seconds: float) -> None:
    clock.now_s += seconds
    os.stat("/nowhere/at/all")


def report() -> Any:
    return json.loads(generate_io_report("json"))


def test_blocks_functions_and_coroutines_are_tracked(clock: Clock, recorder: Recorder) -> None:
    @track_io_operation("read", "config")
    def read(seconds: float) -> str:
        """Reads."""
        clock.now_s += seconds
        return "done"

    @track_io_operation("send", "mail")
    async def send() -> str:
        await asyncio.sleep(0)
        clock.now_s += 4
        return "sent"

    read(9)  # before the start: not tracked
    start_io_monitoring(recorder.telemetry)
    assert [read(1), read(3)] == ["done", "done"]
    assert (read.__name__, read.__doc__) == ("read", "Reads.")
    assert asyncio.run(send()) == "sent"
    with pytest.raises(FileNotFoundError), track_io_operation("write"):
        fail_after(clock, 2)
    stop_io_monitoring()
    read(9)
    found = [(one.value, tuple(one.attributes.values())) for one in recorder.samples("io.operation.duration")]
    assert found == [
        (1, ("read", "config")),
        (3, ("read", "config")),
        (4, ("send", "mail")),
        (2, ("FileNotFoundError", "write", "")),
    ]


def test_nested_and_concurrent_operations_do_not_mix(clock: Clock) -> None:
    start_io_monitoring()

    @track_io_operation("walk", "tree")
    def walk(depth: int) -> None:
        clock.now_s += 1
        if depth:
            walk(depth - 1)

    walk(2)
    (line,) = report()["operations"]
    assert (line["count"], line["total_s"], line["max_s"]) == (3, 1 + 2 + 3, 3)


def test_the_report_has_what_took_longest_first(clock: Clock) -> None:
    start_io_monitoring(slow_s={"read": 0.5, "read ids": 5})
    for kind, target, seconds in (("read", "ids", 2), ("read", "config", 1), ("command", "build", 90)):
        with track_io_operation(kind, target):
            clock.now_s += seconds
    cache = monitor_cache("regex", lambda: 2048)
    cache.hit(3)
    cache.miss()
    assert monitor_cache("regex") is cache
    text = generate_io_report()
    assert text.splitlines() == [
        f"I/O of process {os.getpid()}, last 93 s",
        "",
        "operation      count  errors  total  mean   p50   p95   max",
        "command build      1       0   90 s  90 s  90 s  90 s  90 s",
        "read ids           1       0    2 s   2 s   2 s   2 s   2 s",
        "read config        1       0    1 s   1 s   1 s   1 s   1 s  over 500 ms",
        "",
        "cache  lookups  hit ratio  memory",
        "regex        4      75.0%   2 KiB",
    ]
    markdown = generate_io_report("markdown").splitlines()
    assert markdown[0].startswith("## I/O of process")
    assert "| regex | 4 | 75.0% | 2 KiB |" in markdown
    assert [one["target"] for one in report()["operations"]] == ["build", "ids", "config"]
    with pytest.raises(ValueError, match="'pdf' is no format of a report; there are: text, markdown, json"):
        generate_io_report("pdf")  # type: ignore[arg-type]


def test_an_idle_and_an_unmonitored_process_have_a_report(clock: Clock) -> None:
    assert "Nothing was tracked." in generate_io_report()
    start_io_monitoring()
    assert "Nothing was tracked." in generate_io_report()
    clock.now_s += 5
    with track_io_operation("read"):
        clock.now_s += 1
    clock.now_s += 3 * 3600
    assert report()["operations"] == []  # forgotten


def test_slow_operations_are_told_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    start_io_monitoring(slow_s={"read": 0.1})
    with caplog.at_level(logging.WARNING, "tailrace.io"):
        for seconds in (0.05, 0.2, 0.2, 0.3, 60, 0.2):
            with track_io_operation("read", "config"):
                clock.now_s += seconds
        with track_io_operation("write", "config"):
            clock.now_s += 9
    assert caplog.messages == [
        "slow I/O: read config took 0.2 s, over its threshold of 0.1 s",
        "slow I/O: read config took 60 s, over its threshold of 0.1 s; 2 more since the last warning",
    ]


def test_caches_have_thresholds_for_hits_and_memory(
    clock: Clock, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    start_io_monitoring(recorder.telemetry, min_hit_ratio={"ids": 0.8}, max_memory_bytes={"batch": 1000})
    ids = monitor_cache("ids")
    size = [500]
    monitor_cache("batch", lambda: size[0])
    with caplog.at_level(logging.WARNING, "tailrace.io"):
        ids.hit(79)
        for _ in range(22):
            ids.miss()
        recorder.telemetry.collect()
        size[0] = 1001
        recorder.telemetry.collect()
        recorder.telemetry.collect()
    assert caplog.messages == [
        "cache ids: 79% of 100 lookups hit, below its threshold of 80%",
        "cache batch: 1,001 bytes, over its threshold of 1,000",
    ]
    lookups = recorder.samples("cache.lookups")
    assert sum(one.value for one in lookups if one.attributes == {"cache.name": "ids", "cache.result": "hit"}) == 79
    assert sum(one.value for one in lookups if one.attributes["cache.result"] == "miss") == 22
    memory = [(one.value, one.attributes["cache.name"]) for one in recorder.samples("cache.memory.usage")]
    assert memory == [(500, "batch"), (1001, "batch"), (1001, "batch")]


def test_a_cache_whose_size_cannot_be_told_hinders_nothing(clock: Clock) -> None:
    start_io_monitoring()
    monitor_cache("broken", lambda: 1 / 0).hit()
    assert report()["caches"] == [
        {"name": "broken", "hits": 1, "misses": 0, "memory_bytes": None, "hit_ratio": 1.0}
    ]  # fmt: skip


def test_targets_are_bounded_in_memory_and_in_series(clock: Clock, recorder: Recorder) -> None:
    start_io_monitoring(recorder.telemetry)
    for number in range(io_monitoring.MAX_OPERATIONS + 50):
        with track_io_operation("read", f"/path/{number}"):
            pass
    targets = [one.attributes["io.operation.target"] for one in recorder.samples("io.operation.duration")]
    assert len(set(targets)) == io_monitoring.MAX_OPERATIONS + 1
    assert targets.count("_OTHER") == 50
    for number in range(io_monitoring.MAX_CACHES):
        monitor_cache(str(number))
    with pytest.raises(ValueError, match="more than 100 caches"):
        monitor_cache("one more")


@pytest.mark.parametrize(
    ("thresholds", "told"),
    [
        ({"slow_s": {"read": 0}}, r"slow_s\['read'\] is 0; it must be a positive number"),
        ({"slow_s": {"read": float("nan")}}, r"slow_s\['read'\] is nan"),
        ({"min_hit_ratio": {"ids": 80}}, r"min_hit_ratio\['ids'\] is 80"),
        ({"max_memory_bytes": {"ids": -1}}, r"max_memory_bytes\['ids'\] is -1"),
        ({"max_memory_bytes": {"ids": float("inf")}}, r"max_memory_bytes\['ids'\] is inf"),
        ({"slow_s": {"read": "1"}}, r"slow_s\['read'\] is '1'; it must be a positive number"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(clock: Clock, thresholds: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        start_io_monitoring(**thresholds)


def test_a_monitoring_that_was_replaced_is_forgotten(clock: Clock, recorder: Recorder) -> None:
    """A host that starts anew at each change of its thresholds keeps one summary, and tells memory once."""
    monitor_cache("batch", lambda: 500)
    start_io_monitoring(recorder.telemetry)
    first = weakref.ref(io_monitoring._monitor)
    start_io_monitoring(recorder.telemetry)
    gc.collect()
    assert first() is None
    recorder.telemetry.collect()
    assert len(recorder.samples("cache.memory.usage")) == 1
    stop_io_monitoring()
    recorder.telemetry.collect()
    assert len(recorder.samples("cache.memory.usage")) == 1


def test_a_log_that_hangs_holds_up_no_other_thread(clock: Clock) -> None:
    start_io_monitoring(slow_s={"read": 0.1})
    entered, go_on = threading.Event(), threading.Event()

    class Hanging(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            go_on.wait(30)

    def slow() -> None:
        with track_io_operation("read"):
            clock.now_s += 1

    handler = Hanging()
    logging.getLogger("tailrace.io").addHandler(handler)
    thread = threading.Thread(target=slow)
    other = threading.Thread(target=monitor_cache("ids").hit, daemon=True)
    try:
        thread.start()
        assert entered.wait(30)
        other.start()
        other.join(10)
        assert not other.is_alive()
    finally:
        go_on.set()
        thread.join()
        logging.getLogger("tailrace.io").removeHandler(handler)


def test_a_log_that_raises_does_not_reach_the_host(clock: Clock) -> None:
    def outside_of_a_request(_record: logging.LogRecord) -> bool:
        raise LookupError("a filter that tells the URL of the request, where there is none")

    log = logging.getLogger("tailrace.io")
    log.addFilter(outside_of_a_request)
    try:
        start_io_monitoring(slow_s={"read": 1}, max_memory_bytes={"ids": 1})
        with track_io_operation("read"):
            clock.now_s += 2
        monitor_cache("ids", lambda: 2).hit()
        assert report()["caches"][0]["memory_bytes"] == 2
    finally:
        log.removeFilter(outside_of_a_request)


def test_a_forked_child_has_a_report_of_its_own(clock: Clock) -> None:
    start_io_monitoring()
    with track_io_operation("read", "parent"):
        clock.now_s += 1
    pid = os.fork()
    if pid == 0:
        with track_io_operation("read", "child"):
            pass
        found = [one["target"] for one in report()["operations"]]
        os._exit(0 if found == ["child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
