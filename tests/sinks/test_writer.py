"""The writer, against the real server and whatever can happen on the way to it: nothing lost, nothing doubled."""

import logging
import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.ports import free_port
from tailrace_schemas.rows import COUNTERS, EVENTS, WINDOW_ROWS
from tailrace_sinks.clickhouse import ClickHouseWriter, StoppedError, WriteRejectedError, connect
from tailrace_sinks.migrate import migrate

from tests.sinks.conftest import start_clickhouse
from tests.sinks.faults import Answer, CutAfter, CutBefore, CutDuring, Hang, proxy_to
from tests.sinks.storage import START_S, Row, Storage, batch, distribution, row

TOO_MANY_PARTS = Answer(500, 252, "Code: 252. DB::Exception: Too many parts (3000). (TOO_MANY_PARTS)")
OUT_OF_MEMORY = Answer(500, 241, "Code: 241. DB::Exception: (total) memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)")
BAD_GATEWAY = Answer(502, text="Bad Gateway")
A_PAGE = Answer(200, text="<html>We will be back soon</html>")
NOTHING = Answer(204)
NOWHERE = Answer(302, headers=(("Location", "http://[::1"),))
NO_SUMMARY = Answer(200, headers=(("X-ClickHouse-Summary", "[]"),))
TRANSIENT = [
    Hang(), CutBefore(), CutDuring(), CutAfter(), TOO_MANY_PARTS, OUT_OF_MEMORY, BAD_GATEWAY, A_PAGE, NOTHING,
    NOWHERE, NO_SUMMARY,
]  # fmt: skip


def gauges(count: int, **more: Any) -> list[Row]:
    return [row("gauge", START_S + 10 * number, sum=1.0, last=float(number), **more) for number in range(count)]


def proxied(storage: Storage, url: str, **options: Any) -> ClickHouseWriter:
    return ClickHouseWriter(url, database=storage.settings.database, timeout_s=1, jitter=lambda: 1.0, **options)


def stored(storage: Storage) -> tuple[int, int]:
    """How many rows there are in the view, and how many in the table, before the server merges them."""
    return storage.one("SELECT count() FROM windows"), storage.one("SELECT count() FROM rows_10s")


def test_writes_every_table(storage: Storage) -> None:
    event = {
        "event_id": 1, "time": 1_767_225_600_000_001, "service": "shop", "name": "deploy",
        "attributes": [("version", "1.2")], "value": 1.0, "unit": "", "stream": "",
    }  # fmt: skip
    counter = {"scope": "shard 07", "service": "shop", "stream": "", "name": "samples", "value": 5, "time": 0}
    writer = storage.writer()
    writer.write("rows_10s", [batch(gauges(3)), batch([distribution([0.1, 0.2])])])
    writer.write("rows_1m", [batch(gauges(2))])
    writer.write("event_rows", [pa.RecordBatch.from_pylist([event], schema=EVENTS)])
    writer.write("counter_rows", [pa.RecordBatch.from_pylist([counter], schema=COUNTERS)])
    writer.close()
    assert (writer.stats.rows, writer.stats.inserts, writer.stats.retries) == (8, 4, 0)
    assert stored(storage) == (4, 4)
    assert storage.ask("SELECT name, attributes, toUnixTimestamp64Micro(time) FROM events") == [
        ("deploy", {"version": "1.2"}, 1_767_225_600_000_001)
    ]
    assert storage.ask("SELECT service, name, value FROM counters") == [("shop", "samples", 5)]


def test_nothing_to_write_does_not_connect() -> None:
    writer = ClickHouseWriter(f"http://127.0.0.1:{free_port()}")
    writer.write("rows_10s", [])
    writer.write("rows_10s", [batch([])])
    assert writer.stats.inserts == 0


@pytest.mark.parametrize("fault", TRANSIENT, ids=str)
def test_a_failed_insert_is_repeated(storage: Storage, fault: Any) -> None:
    with proxy_to(storage.settings.url) as proxy:
        proxy.faults = [fault]
        slept: list[float] = []
        writer = proxied(storage, proxy.url, sleep=slept.append)
        writer.write("rows_10s", [batch(gauges(100))])
        writer.close()
        assert proxy.inserts >= 2
    assert stored(storage)[0] == 100
    assert storage.one("SELECT sum(last) FROM windows") == sum(range(100))
    if fault not in (CutBefore(), CutDuring(), CutAfter()):  # after these, the driver may have repeated it by itself
        assert (writer.stats.retries, slept) == (1, [pytest.approx(0.1)])
        assert writer.stats.last_error


def test_an_insert_whose_answer_is_lost_is_in_the_table_twice_and_in_the_view_once(storage: Storage) -> None:
    storage.client.command("SYSTEM STOP MERGES rows_10s")
    with proxy_to(storage.settings.url) as proxy:
        proxy.faults = [CutAfter(), CutAfter(), CutAfter()]
        writer = proxied(storage, proxy.url, sleep=lambda _: None)
        writer.write("rows_10s", [batch(gauges(10))])
        writer.close()
    assert stored(storage) == (10, 40)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_or_doubled_whatever_happens(storage: Storage, seed: int) -> None:
    chance = random.Random(seed)
    faults = [fault for fault in TRANSIENT if fault != Hang()]
    with proxy_to(storage.settings.url) as proxy:
        proxy.faults = [chance.choice([*faults, None]) for _ in range(40)]
        writer = proxied(storage, proxy.url, sleep=lambda _: None)
        for number in range(20):
            writer.write("rows_10s", [batch(gauges(5, attributes={"host": str(number)}))])
        writer.close()
    assert writer.stats.rows == 100
    assert storage.ask("SELECT count(), sum(last), uniq(attributes['host']) FROM windows") == [(100, 200.0, 20)]


def test_waits_for_a_server_that_is_not_there_yet(storage: Storage) -> None:
    port = free_port()
    with ExitStack() as stack:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 20:
                stack.enter_context(proxy_to(storage.settings.url, port))

        writer = proxied(storage, f"http://127.0.0.1:{port}", sleep=sleep)
        writer.write("rows_10s", [batch(gauges(5))])
        writer.close()
    assert stored(storage) == (5, 5)
    assert "Connection refused" in writer.stats.last_error


def test_survives_a_kill_of_the_server(tmp_path: Path) -> None:
    servers = [start_clickhouse(tmp_path)]
    port = servers[0].ready["port"]
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{port}", database="killed")
    try:
        with connect(settings) as client:
            migrate(client, settings)
        writer = ClickHouseWriter(
            settings.url, database="killed", sleep=lambda _: servers.append(start_clickhouse(tmp_path, port))
        )
        writer.write("rows_10s", [batch(gauges(10))])
        servers[0].process.kill()
        servers[0].stop()
        writer.write("rows_10s", [batch(gauges(10, attributes={"host": "b"}))])
        writer.close()
        with connect(settings) as client:
            assert Storage(client, settings).one("SELECT count() FROM windows") == 20
    finally:
        for server in servers:
            server.stop()
    assert len(servers) == 2


def test_backs_off_exponentially_with_jitter_and_stops() -> None:
    slept: list[float] = []
    delays: list[float] = []
    jitters = iter([0.0, 0.5, 1.0, *[1.0] * 20])

    class Bounds(logging.Handler):
        """A new delay begins with each warning."""

        def emit(self, record: logging.LogRecord) -> None:
            delays.append(0.0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        delays[-1] += seconds

    logger = logging.getLogger("tailrace_sinks.clickhouse")
    handler = Bounds()
    logger.addHandler(handler)
    try:
        writer = ClickHouseWriter(
            f"http://127.0.0.1:{free_port()}",
            sleep=sleep,
            stop=lambda: len(delays) > 12,
            jitter=lambda: next(jitters),
        )
        with pytest.raises(StoppedError, match=r"has not confirmed the rows of rows_10s: .*refused"):
            writer.write("rows_10s", [batch(gauges(1))])
    finally:
        logger.removeHandler(handler)
    doubled = [0.1 * 2**attempt for attempt in range(12)]
    expected = [min(10.0, delay) for delay in doubled]
    expected[0] *= 0.5
    expected[1] *= 0.75
    assert delays == pytest.approx([*expected, 0.0])
    assert max(slept) <= 0.2  # so that stop() is seen at once


def test_an_unknown_table_says_what_to_do(bare: Storage, storage: Storage) -> None:
    with pytest.raises(WriteRejectedError, match=r"tailrace migrate.*rows_2s.*UNKNOWN_TABLE"):
        storage.write("rows_2s", gauges(1))
    elsewhere = ClickHouseWriter(storage.settings.url, database="never_made")
    with pytest.raises(WriteRejectedError, match=r"tailrace migrate.*never_made.*UNKNOWN_DATABASE"):
        elsewhere.write("rows_10s", [batch(gauges(1))])


def _text_count() -> Any:
    at = WINDOW_ROWS.names.index("count")
    return batch(gauges(1)).set_column(at, "count", pa.array(["many"]))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_text_count, "many"),
        (lambda: batch(gauges(1)).rename_columns(["metrics", *WINDOW_ROWS.names[1:]]), "metrics"),
        (lambda: batch(gauges(1)).drop_columns(["version"]).append_column("versions", pa.array([1])), "versions"),
    ],
)
def test_rows_that_do_not_fit_are_rejected(storage: Storage, make: Callable[[], Any], error: str) -> None:
    with pytest.raises(WriteRejectedError, match=rf"(?s)rows_10s does not take the rows\. .*{error}"):
        storage.writer().write("rows_10s", [make()])
    assert stored(storage) == (0, 0)


def test_a_refused_user_is_rejected(storage: Storage) -> None:
    with proxy_to(storage.settings.url) as proxy:
        proxy.faults = [
            Answer(403, 516, "Code: 516. DB::Exception: shop: Authentication failed. (AUTHENTICATION_FAILED)")
        ]
        with pytest.raises(WriteRejectedError, match="Authentication failed"):
            proxied(storage, proxy.url).write("rows_10s", [batch(gauges(1))])


def test_large_writes_are_split_by_rows_and_bytes(storage: Storage) -> None:
    writer = storage.writer()
    small = batch(gauges(1)).take(pa.array([0] * 250_001))
    writer.write("rows_10s", [small])
    assert writer.stats.inserts == 3
    big = batch([distribution([1.5**power for power in range(-800, 800)])]).take(pa.array([0] * 10_000))
    writer.write("rows_10s", [big])
    writer.close()
    assert writer.stats.inserts == 3 + math.ceil(big.nbytes / 2**26)
    assert writer.stats.rows == 260_001
    assert stored(storage) == (2, 260_001)


def test_the_password_is_nowhere_to_be_seen(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    writer = ClickHouseWriter(
        f"http://alice@127.0.0.1:{free_port()}/shop", password="s3cret", stop=lambda: True, sleep=lambda _: None
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(StoppedError) as error:
        writer.write("rows_10s", [batch(gauges(1))])
    assert "s3cret" not in f"{writer!r}{vars(writer)['_address']}{error.value}{writer.stats}{caplog.text}"
    assert "alice" in str(vars(writer)["_address"])


@pytest.mark.parametrize(
    "url", ["clickhouse:8123", "ftp://clickhouse", "http://", "http://user:pw@clickhouse", "http://clickhouse:port"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"ClickHouse URL|[Pp]ort"):
        ClickHouseWriter(url)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://clickhouse", (False, "clickhouse", 8123, "default", "tailrace")),
        ("https://bob@db.example:9443/prod/", (True, "db.example", 9443, "bob", "prod")),
        ("https://db.example", (True, "db.example", 8443, "default", "tailrace")),
        ("http://[::1]:81", (False, "::1", 81, "default", "tailrace")),
    ],
)
def test_a_url_names_what_it_names(url: str, address: tuple[Any, ...]) -> None:
    assert vars(ClickHouseWriter(url))["_address"] == address


def test_a_url_wins_over_the_settings(storage: Storage) -> None:
    storage.write("rows_10s", gauges(1))
    url = f"{storage.settings.url}/{storage.settings.database}"
    with connect(ClickHouseSettings(url=url, database="another")) as client:
        assert client.query("SELECT count() FROM windows").result_rows == [(1,)]
