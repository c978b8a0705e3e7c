"""The embedded ClickHouse, tested with the clients it is for: clickhouse-connect, curl, plain HTTP, other processes."""

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("chdb", reason="the embedded ClickHouse needs chDB: pip install 'tailrace[embedded]'")
clickhouse_connect = pytest.importorskip("clickhouse_connect")
pa = pytest.importorskip("pyarrow")

from tailrace_infra import chdb_engine, clickhouse  # noqa: E402 -- after the skip
from tailrace_infra.chdb_engine import ClickHouseError, StartError, Statement, split_insert  # noqa: E402
from tailrace_infra.child import Child, start_child  # noqa: E402
from tailrace_infra.clickhouse import ClickHouseServer, serve  # noqa: E402

from tests.infra.waiting import eventually, gone  # noqa: E402

# Hours on one core: whoever runs it must cancel it.
ENDLESS = "SELECT sum(sipHash64(number)) FROM numbers(1000000000000) SETTINGS max_threads = 1"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def code(self) -> int:
        return int(self.headers.get("X-ClickHouse-Exception-Code", "0"))


def send(
    port: int,
    body: Any = None,
    *,
    method: str = "POST",
    path: str = "/",
    headers: Any = None,
    **params: str,
) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        url = f"{path}?{urlencode(params)}" if params else path
        connection.request(method, url, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def running(port: int, mark: str) -> bool:
    sql = f"SELECT count() FROM system.processes WHERE query LIKE '%{mark}%' AND query NOT LIKE '%system.processes%'"
    return send(port, sql).text != "0\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    with serve(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture
def port(server: ClickHouseServer) -> int:
    return server.port


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=port)
    yield client
    client.close()


@pytest.fixture
def table(port: int) -> Iterator[str]:
    """An empty table `numbers_table (n UInt64, s String)`."""
    assert send(port, "CREATE TABLE numbers_table (n UInt64, s String) ENGINE = MergeTree ORDER BY n").status == 200
    yield "numbers_table"
    assert send(port, "DROP TABLE numbers_table SYNC").status == 200


# Clients


def test_clickhouse_connect_works_unchanged(client: Any, table: str) -> None:
    assert client.server_version.split(".")[0].isdigit()
    summary = client.insert(table, [[1, "a"], [2, "b"]], column_names=["n", "s"])
    assert summary.written_rows == 2
    assert client.query(f"SELECT n, s FROM {table} ORDER BY n").result_rows == [(1, "a"), (2, "b")]
    assert client.command(f"SELECT count() FROM {table}") == 2
    assert client.command(f"SELECT n FROM {table} WHERE n > 9") == ""
    assert client.query(f"SELECT * FROM {table} LIMIT 0").column_names == ("n", "s")
    result = client.query("SELECT 1", settings={"query_id": "the-id", "max_threads": 1})
    assert result.summary["read_rows"] == "1"
    assert client.raw_query("SELECT 7", fmt="JSONEachRow") == b'{"7":7}\n'
    with client.query_row_block_stream("SELECT number FROM numbers(200000)") as blocks:
        assert sum(row[0] for block in blocks for row in block) == 199999 * 100000


def test_arrow_in_and_out(client: Any, port: int) -> None:
    columns = {
        "service": pa.array(["a", None, "c"], pa.string()),
        "at": pa.array([0, 1_700_000_000_000_000, 1], pa.timestamp("us", "UTC")),
        "buckets": pa.array([[1, -2], [], [3]], pa.list_(pa.int32())),
        "labels": pa.array([[("k", "v")], [], []], pa.map_(pa.string(), pa.string())),
        "value": pa.array([0.5, float("inf"), -0.0], pa.float64()),
    }
    sent = pa.table(columns)
    client.command(
        "CREATE TABLE arrow_table (service Nullable(String), at DateTime64(6, 'UTC'), buckets Array(Int32), "
        "labels Map(String, String), value Float64) ENGINE = Memory"
    )
    client.insert_arrow("arrow_table", sent)
    got = client.query_arrow("SELECT * FROM arrow_table", use_strings=True)
    assert got.column("service").to_pylist() == ["a", None, "c"]
    assert got.column("at").cast(pa.timestamp("us", "UTC")).equals(sent.column("at"))
    assert got.column("buckets").to_pylist() == [[1, -2], [], [3]]
    assert got.column("labels").to_pylist() == [[("k", "v")], [], []]
    assert got.column("value").to_pylist() == [0.5, float("inf"), -0.0]
    many = pa.table({"n": pa.array(range(300_000), pa.uint64())})
    client.command("CREATE TABLE arrow_many (n UInt64) ENGINE = Memory")
    client.insert_arrow("arrow_many", many)
    assert client.query("SELECT count(), sum(n) FROM arrow_many").result_rows == [(300_000, 299_999 * 150_000)]
    assert client.query_arrow("SELECT n FROM arrow_many ORDER BY n").column("n").equals(many.column("n"))
    for name in ("arrow_table", "arrow_many"):
        assert send(port, f"DROP TABLE {name}").status == 200


SECOND_PROCESS = """
import sys, clickhouse_connect
client = clickhouse_connect.get_client(host="127.0.0.1", port=int(sys.argv[1]))
for n in range(20):
    client.insert("numbers_table", [[200 + n, "process"]], column_names=["n", "s"])
print(client.command("SELECT uniqExact(n) FROM numbers_table WHERE s = 'process'"))
"""


def test_three_clients_at_once(port: int, client: Any, table: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{port}/"
    with subprocess.Popen([sys.executable, "-c", SECOND_PROCESS, str(port)], stdout=subprocess.PIPE) as process:
        for n in range(10):
            client.insert(table, [[n, "client"]], column_names=["n", "s"])
            sql = f"INSERT INTO {table} VALUES ({100 + n}, 'curl')"
            subprocess.run([curl, "-sSf", url, "--data-binary", sql], check=True)
        out, _ = process.communicate(timeout=60)
    assert out == b"20\n"
    got = subprocess.run(
        [curl, "-sSfG", url, "--data-urlencode", f"query=SELECT s, count() FROM {table} GROUP BY s ORDER BY s"],
        check=True,
        capture_output=True,
    )
    assert got.stdout == b"client\t10\ncurl\t10\nprocess\t20\n"


def test_parallel_requests_are_all_answered_right(port: int, table: str) -> None:
    def one(n: int) -> str:
        assert send(port, f"INSERT INTO {table} VALUES ({n}, 'x')").status == 200
        return send(port, f"SELECT getSetting('max_threads'), {n}", max_threads=str(n % 7 + 1)).text

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(200)))
    assert answers == [f"{n % 7 + 1}\t{n}\n" for n in range(200)]
    assert send(port, f"SELECT count(), uniqExact(n) FROM {table}").text == "200\t200\n"


def test_a_long_query_does_not_block_a_short_one_and_ends_when_its_client_hangs_up(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        body = f"/* long */ {ENDLESS}".encode()
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        eventually(lambda: running(port, "/* long */"))
        for n in range(20):
            assert send(port, f"SELECT {n}").text == f"{n}\n"
        assert running(port, "/* long */")
    eventually(lambda: not running(port, "/* long */"))


def test_a_stream_ends_when_its_client_hangs_up(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", "/", "SELECT /* stream */ number FROM numbers(1000000000000)")
        with connection.getresponse() as response:
            assert len(response.read(1 << 20)) == 1 << 20
            assert running(port, "/* stream */")
    eventually(lambda: not running(port, "/* stream */"))


def test_when_all_sessions_are_busy_a_query_waits_then_fails(
    server: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.engine, "_queue_wait_s", 0.05)
    with ExitStack() as busy:
        for _ in range(clickhouse.QUERIES_MAX):
            busy.enter_context(server.engine.session("", {}, {}))
        answer = send(server.port, "SELECT 1")
        assert (answer.status, answer.code) == (503, 202)
        assert answer.text.startswith("Code: 202. DB::Exception: Too many simultaneous queries")
    assert send(server.port, "SELECT 1").status == 200


def test_old_parts_are_not_deleted_by_a_hundred_threads(server: ClickHouseServer) -> None:
    """ClickHouse starts up to 128 of them for more than 100 parts, and keeps them."""
    soon = "old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 0"
    soon += ", max_cleanup_delay_period = 1"
    create = f"CREATE TABLE parts (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS {soon}"
    count = "SELECT count() FROM system.parts WHERE table = 'parts'"
    assert send(server.port, create).status == 200
    assert send(server.port, "SYSTEM STOP CLEANUP parts").status == 200
    for n in range(150):
        assert send(server.port, f"INSERT INTO parts VALUES ({n})").status == 200
    assert send(server.port, "OPTIMIZE TABLE parts FINAL").status == 200
    assert int(send(server.port, count).text) > 150
    before = psutil.Process().num_threads()
    assert send(server.port, "SYSTEM START CLEANUP parts").status == 200
    eventually(lambda: send(server.port, count).text == "1\n")
    assert psutil.Process().num_threads() < before + 20
    assert send(server.port, "DROP TABLE parts SYNC").status == 200


# The interface


def test_health_checks_and_unknown_paths(port: int) -> None:
    for method in ("GET", "POST", "HEAD"):
        answer = send(port, method=method, path="/ping")
        assert (answer.status, answer.data) == (200, b"" if method == "HEAD" else b"Ok.\n")
    assert send(port, method="GET").data == b"Ok.\n"
    assert send(port, method="GET", path="/play").status == 404


@pytest.mark.parametrize(
    ("body", "params", "expected"),
    [
        ("SELECT 1", {}, "1\n"),
        (None, {"query": "SELECT 1"}, "1\n"),
        ("1 + 1", {"query": "SELECT"}, "2\n"),
        ("SELECT 1 AS x", {"default_format": "JSONEachRow"}, '{"x":1}\n'),
        ("SELECT 1 AS x FORMAT CSVWithNames", {"default_format": "JSONEachRow"}, '"x"\n1\n'),
        ("SELECT 1 AS format -- FORMAT JSON", {}, "1\n"),
        ("SELECT format('{}', 'x'), 1 AS format FROM system.one", {"default_format": "CSV"}, '"x",1\n'),
        ("SELECT 1 AS infile FROM (SELECT 2 AS outfile) AS infile", {}, "1\n"),
        ("DROP TABLE IF EXISTS temporary", {}, ""),
        ("SELECT 1 FORMAT TSV SETTINGS max_threads = 1;", {}, "1\n"),
        ("SELECT getSetting('max_block_size')", {"max_block_size": "77"}, "77\n"),
        ("SELECT currentDatabase()", {"database": "system"}, "system\n"),
        ("SELECT 1 WHERE 0", {"wait_end_of_query": "1"}, ""),
        ("SHOW DATABASES LIKE 'def%'", {}, "default\n"),
        ("EXISTS TABLE nope", {"default_format": "CSV"}, "0\n"),
        ("EXPLAIN SYNTAX SELECT 1 FORMAT TSVRaw", {}, "SELECT 1\nFROM system.one\n"),
        ("SET max_threads = 1", {}, ""),
    ],
)
def test_where_statement_settings_and_format_come_from(
    port: int, body: str | None, params: dict[str, str], expected: str
) -> None:
    answer = send(port, body, **params)
    assert (answer.status, answer.text) == (200, expected)


def test_headers(port: int) -> None:
    answer = send(port, "SELECT number FROM numbers(3)", query_id="my-id", headers={"X-ClickHouse-Format": "CSV"})
    assert answer.headers["X-ClickHouse-Query-Id"] == "my-id"
    assert answer.headers["X-ClickHouse-Format"] == "CSV"
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["X-ClickHouse-Timezone"]
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["read_rows"] == "3"
    assert "X-ClickHouse-Format" not in send(port, "SET max_threads = 1").headers
    database = {"X-ClickHouse-Database": "system"}
    assert send(port, "SELECT currentDatabase()", headers=database).text == "system\n"


def test_nothing_of_a_request_stays(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        for url in ("/?max_block_size=77&database=system", "/?session_id=s", "/?session_id=s"):
            connection.request("POST", url, "SELECT getSetting('max_block_size'), currentDatabase()")
            got = connection.getresponse().read()
        assert got != b"77\tsystem\n"


@pytest.mark.parametrize("fmt", sorted(chdb_engine.STREAMED_FORMATS - {"null"}))
@pytest.mark.parametrize("wait_end", ["0", "1"])
def test_a_streamed_result_is_the_whole_result(port: int, server: ClickHouseServer, fmt: str, wait_end: str) -> None:
    """Compared with the engine's one-piece result; 4 MB, so that it is sent in chunks unless it is waited for."""
    names = {"native": "Native", "rowbinary": "RowBinary", "csv": "CSV", "jsoneachrow": "JSONEachRow"}
    name = names.get(fmt, fmt.upper() if fmt == "tsv" else "TSVRaw" if fmt == "tsvraw" else "TabSeparated")
    sql = "SELECT number, toString(number) AS s, [number] AS a FROM numbers(150000) ORDER BY number"
    with server.engine.session("", {}, {}) as session:
        whole = b"".join(bytes(p) for p in session.run(Statement(sql.encode()), name, {}, reads=False))
    answer = send(port, f"{sql} FORMAT {name}", wait_end_of_query=wait_end)
    assert ("Content-Length" in answer.headers) is (wait_end == "1")
    assert len(whole) > clickhouse.HELD_BYTES
    if fmt == "native":  # its blocks may be cut elsewhere
        client = clickhouse_connect.get_client(host="127.0.0.1", port=port)
        assert [len(c) for c in client.query(sql, column_oriented=True).result_columns] == [150000] * 3
        client.close()
    else:
        assert answer.data == whole


def test_an_error_after_the_first_bytes_breaks_the_answer_off(port: int, client: Any) -> None:
    sql = "SELECT number, throwIf(number = 900000, 'far in') FROM numbers(1000000) SETTINGS max_threads = 1"
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", "/", sql)
        response = connection.getresponse()
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead) as broken:
            response.read()
        tag = response.headers["X-ClickHouse-Exception-Tag"]
    assert re.search(rf"__exception__\r\n{tag}\r\nCode: 395.*far in.*{tag}", broken.value.partial.decode(), re.DOTALL)
    for compress in (False, "lz4"):
        other = clickhouse_connect.get_client(host="127.0.0.1", port=port, compress=compress)
        failure = pytest.raises(clickhouse_connect.driver.exceptions.StreamFailureError, match="far in")
        with failure, other.query_row_block_stream(sql) as blocks:
            list(blocks)
        other.close()
    assert send(port, sql, wait_end_of_query="1").code == 395


def test_a_client_of_http_1_0_gets_a_plain_answer(port: int) -> None:
    for rows in (1, 300_000):
        with closing(socket.create_connection(("127.0.0.1", port))) as connection:
            sql = f"SELECT number FROM numbers({rows})".encode()
            connection.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(sql), sql))
            with connection.makefile("rb") as file:
                head, _, data = file.read().partition(b"\r\n\r\n")
        assert b"200 OK" in head
        assert data == b"".join(b"%d\n" % n for n in range(rows))


def test_parameters(port: int, client: Any, table: str) -> None:
    assert send(port, "SELECT {n:UInt8} + 1", param_n="4").text == "5\n"
    text = "tab\t line\n quote' back\\slash \U0001f30a"
    sql = "SELECT {s:String}, {a:Array(String)}, {d:Date}, {t:Identifier}.n FROM numbers_table"
    client.insert(table, [[1, "x"]], column_names=["n", "s"])
    values = {"s": text, "a": ["it's", "b"], "d": "2026-01-02", "t": table}
    row = client.query(sql, parameters=values).result_rows[0]
    assert (row[0], row[1], str(row[2]), row[3]) == (text, ["it's", "b"], "2026-01-02", 1)
    client.command(
        "INSERT INTO {t:Identifier} VALUES ({n:UInt64}, {s:String})", parameters={"t": table, "n": 2, "s": "y"}
    )
    assert client.query(f"SELECT s FROM {table} WHERE n = 2").result_rows == [("y",)]
    missing = send(port, "SELECT {n:UInt8}")
    assert (missing.code, missing.status) == (456, 500)


def test_long_parameters_come_as_a_form(client: Any) -> None:
    numbers = list(range(10_000))
    sql = "SELECT sum(arrayJoin({a:Array(UInt32)}))"
    assert client.query(sql, parameters={"a": numbers}).result_rows == [(sum(numbers),)]


# Inserts


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (None, b"INSERT INTO numbers_table VALUES (1, 'a'), (1 + 1, concat('b', ''))"),
        (None, b"INSERT INTO numbers_table (n, s) FORMAT CSV\n1,a\n2,b\n"),
        (None, b"insert into table default . numbers_table format TSV 1\ta\n2\tb\n"),
        (None, b"/* x */ INSERT INTO `numbers_table` -- FORMAT y\n (s, n) FORMAT JSONEachRow "
               b'{"s":"a","n":1}{"s":"b","n":2}'),
        (None, b"INSERT INTO numbers_table SETTINGS max_insert_block_size = 1 FORMAT CSV\r\n1,a\r\n2,b\r\n"),
        ("INSERT INTO numbers_table FORMAT CSV", b"1,a\n2,b\n"),
        ("INSERT INTO numbers_table(n, s) VALUES", b"(1, 'a'), (2, 'b')"),
        ("INSERT INTO numbers_table VALUES (1, 'a'), (2, 'b')", b""),
        ("INSERT INTO numbers_table SELECT number + 1, ['a', 'b'][number + 1] FROM numbers(2)", b""),
        ("INSERT INTO numbers_table WITH 1 AS one SELECT one + number, char(97 + number) FROM numbers(2)", b""),
    ],
)  # fmt: skip
def test_inserts(port: int, table: str, url: str | None, body: bytes) -> None:
    answer = send(port, body, **({"query": url} if url else {}))
    assert answer.status == 200, answer.text
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert send(port, f"SELECT * FROM {table} ORDER BY n").text == "1\ta\n2\tb\n"


def test_curl_uploads_a_file_in_one_part(port: int, table: str, tmp_path: Path) -> None:
    """A body above 1 MB: curl asks first whether it may go on (`Expect: 100-continue`), and waits for the answer."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    file = tmp_path / "rows.csv"
    file.write_text("".join(f"{n},row number {n}\n" for n in range(100_000)))
    url = f"http://127.0.0.1:{port}/?{urlencode({'query': f'INSERT INTO {table} FORMAT CSV'})}"
    command = [curl, "-sSfv", url, "--data-binary", f"@{file}", "--expect100-timeout", "60"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert b"100 Continue" in done.stderr
    parts = f"SELECT count(), sum(rows) FROM system.parts WHERE table = '{table}' AND active"
    assert send(port, parts).text == "1\t100000\n"


def test_an_insert_with_no_rows_is_fine(port: int, table: str) -> None:
    assert send(port, "INSERT INTO numbers_table FORMAT CSV").status == 200
    assert send(port, f"SELECT count() FROM {table}").text == "0\n"


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "br", "identity"])
def test_compressed_bodies(port: int, table: str, codec: str) -> None:
    def pack(data: bytes) -> bytes:
        if codec == "identity":
            return data
        packed: bytes = pa.Codec(clickhouse.CODECS[codec]).compress(data, asbytes=True)
        return packed

    rows = b"".join(b"%d,%d\n" % (n, n % 10) for n in range(100_000))
    encoding = {"Content-Encoding": codec}
    sql = f"INSERT INTO {table} FORMAT CSV"
    assert send(port, pack(sql.encode() + b"\n" + rows), headers=encoding).status == 200
    assert send(port, pack(rows), headers=encoding, query=sql).status == 200
    if codec != "identity":
        broken = send(port, pack(rows)[:-9], headers=encoding, query=sql)
        assert broken.code == 271
        assert send(port, b"not compressed at all", headers=encoding, query=sql).code == 271
        assert send(port, f"SELECT count(), sum(n) FROM {table}").text == f"200000\t{99_999 * 100_000}\n"
    accept = {"Accept-Encoding": f"{codec};q=1, other"}
    for limit in (1, 200_000):
        select = f"SELECT n FROM {table} ORDER BY n LIMIT {limit}"
        plain = send(port, select)
        answer = send(port, select, headers=accept, enable_http_compression="1")
        if codec == "identity":
            assert answer.data == plain.data
            continue
        assert answer.headers["Content-Encoding"] == codec
        with pa.CompressedInputStream(pa.BufferReader(answer.data), clickhouse.CODECS[codec]) as stream:
            assert stream.read() == plain.data
    assert "Content-Encoding" not in send(port, "SELECT 1", headers=accept).headers  # the setting was not given


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", "br", True, False])
def test_compression_as_clickhouse_connect_negotiates_it(port: int, table: str, compress: str | bool) -> None:
    try:
        client = clickhouse_connect.get_client(host="127.0.0.1", port=port, compress=compress)
    except clickhouse_connect.driver.exceptions.ProgrammingError as error:
        pytest.skip(str(error))
    rows = [[n, f"text {n}"] for n in range(20_000)]
    client.insert(table, rows, column_names=["n", "s"])
    assert client.query(f"SELECT * FROM {table} ORDER BY n").result_rows == [tuple(row) for row in rows]
    arrow = client.query_arrow(f"SELECT n FROM {table} ORDER BY n")
    assert arrow.column("n").to_pylist() == list(range(20_000))
    client.close()


def test_an_insert_s_data_must_start_early(port: int, table: str) -> None:
    answer = send(port, b"INSERT INTO numbers_table /*" + b"x" * clickhouse.HEAD_BYTES + b"*/ VALUES (1, 'a')")
    assert answer.code == 62
    assert "starts beyond" in answer.text
    assert send(port, f"SELECT count() FROM {table}").text == "0\n"


def test_unknown_compression_is_refused(port: int) -> None:
    answer = send(port, b"x", headers={"Content-Encoding": "snappy"})
    assert (answer.status, answer.code) == (500, 89)
    assert send(port, "SELECT 1", compress="1").code == 48


def test_connections_beyond_the_limit_are_closed_at_once(
    server: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = len(server._connections)  # which are kept for a while
    monkeypatch.setattr(server, "_connections_max", others + 2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
        eventually(lambda: len(server._connections) == others + 2)
        with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as refused, suppress(ConnectionError):
            assert refused.recv(1) == b""
    eventually(lambda: len(server._connections) <= others)
    assert send(server.port, "SELECT 1").text == "1\n"


def test_a_body_over_the_limit_is_refused(
    server: ClickHouseServer, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "body_bytes_max", 1 << 20)
    sql = f"INSERT INTO {table} FORMAT CSV"
    row = b"1,a\n"
    too_much = row * (1 << 18) + row
    for body in (too_much, iter([too_much] * 8)):
        answer = send(server.port, body, query=sql)
        assert (answer.status, answer.code) == (413, 229)
        assert "1048576 bytes" in answer.text
    bomb = gzip.compress(row * (1 << 20))
    assert send(server.port, bomb, query=sql, headers={"Content-Encoding": "gzip"}).status == 413
    assert send(server.port, f"SELECT count() FROM {table}").text == "0\n"
    assert send(server.port, too_much[:-4], query=sql).status == 200
    assert send(server.port, "SELECT 1" + " " * (17 << 20)).status == 413


def test_a_client_that_dies_halfway_inserts_nothing(port: int, table: str) -> None:
    head = b"POST /?query=INSERT+INTO+numbers_table+FORMAT+CSV HTTP/1.1\r\nHost: localhost\r\n"
    halves = [
        head + b"Content-Length: 1000\r\n\r\n1,a\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1,a\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1,a\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n1,a\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n-4\r\n1,a\n\r\n0\r\n\r\n",
    ]
    for half in halves:
        with closing(socket.create_connection(("127.0.0.1", port))) as connection:
            connection.sendall(half)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""  # the server has given up on it
    assert send(port, f"SELECT count() FROM {table}").text == "0\n"
    whole = head + b"Transfer-Encoding: chunked\r\n\r\n4;ext=1\r\n1,a\n\r\n0\r\nTrailer: x\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(whole)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert send(port, f"SELECT count() FROM {table}").text == "1\n"


@pytest.mark.parametrize("length", ["-1", "9" * 5000])
def test_a_wrong_content_length_is_refused(port: int, length: str) -> None:
    answer = send(port, headers={"Content-Length": length})
    assert (answer.status, answer.code) == (400, 36)


def test_an_address_that_is_none_is_refused(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_no_room_for_an_insert_is_clickhouse_s_error(
    server: ClickHouseServer, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        answer = send(server.port, b"1,a\n", query=f"INSERT INTO {table} FORMAT CSV")
    assert answer.code == 243
    assert str(server.engine.data_dir) in answer.text
    assert "No space left" in answer.text


# What is refused


@pytest.mark.parametrize(
    ("sql", "code", "status", "text"),
    [
        ("SELEC 1", 62, 400, "Syntax error"),
        ("", 62, 400, "Empty query"),
        ("-- nothing", 62, 400, "Empty query"),
        ("SELECT 'x", 62, 400, "not closed"),
        ("SELECT * FROM nope", 60, 404, "'nope'"),
        ("INSERT INTO nope VALUES (1)", 60, 404, "nope does not exist"),
        ("SELECT nope", 47, 404, "`nope`"),
        ("SELECT 1 FORMAT Nope", 73, 404, "Unknown format Nope"),
        ("INSERT INTO numbers_table FORMAT CSV\nx,y\n", 27, 400, "Cannot parse input"),
        ("INSERT INTO numbers_table (n, nope) VALUES (1, 2)", 16, 500, "No such column nope"),
        ("SELECT throwIf(1, 'thrown')", 395, 500, "thrown"),
        ("SELECT 1; SELECT 2", 62, 400, "Multi-statements are not allowed"),
        ("CREATE TABLE numbers_table (n Int8) ENGINE = Memory", 57, 500, "already exists"),
        ("CREATE TEMPORARY TABLE t (n Int8)", 48, 501, "Temporary tables are not supported"),
        ("CREATE OR REPLACE TEMPORARY TABLE t (n Int8) ENGINE = Memory", 48, 501, "ENGINE = Memory"),
        ("SELECT 1 INTO OUTFILE '/tmp/x' FORMAT CSV", 358, 500, "INTO OUTFILE is not allowed"),
        ("INSERT INTO numbers_table FROM INFILE '/etc/passwd' FORMAT CSV", 78, 404, "FROM INFILE"),
        ("INSERT INTO numbers_table SELECT * FROM input('n UInt64, s String') FORMAT CSV\n1,a", 48, 501, "input()"),
    ],
)
def test_errors_are_clickhouse_s_own(port: int, table: str, sql: str, code: int, status: int, text: str) -> None:
    answer = send(port, sql)
    assert (answer.code, answer.status) == (code, status), answer.text
    assert text in answer.text
    assert re.fullmatch(rf"Code: {code}\. DB::Exception: .* \([A-Z_]+\) \(version [\d.]+\)\n", answer.text, re.DOTALL)
    assert answer.text.count("Code: ") == 1
    assert "/dev/fd" not in answer.text


def test_errors_reach_clickhouse_connect_with_their_code(client: Any) -> None:
    with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="UNKNOWN_TABLE") as caught:
        client.query("SELECT * FROM nope")
    assert caught.value.code == 60


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"nope_nope": "1"}, 115),
        ({"max_threads = 1, x": "1"}, 115),
        ({"max_threads": "x"}, 27),
        ({"database": "no`pe"}, 81),
        ({"max_execution_time": "0.05"}, 159),
    ],
)
def test_wrong_settings_are_errors(port: int, params: dict[str, str], code: int) -> None:
    assert send(port, "SELECT count() FROM numbers(1000000000000)", **params).code == code


def test_only_one_statement_is_run(port: int, table: str) -> None:
    for sql in (
        f"INSERT INTO {table} VALUES (1, 'a'); DROP TABLE {table}",
        f"INSERT INTO {table} FORMAT CSV\n1,a\n; DROP TABLE {table}",
        f"INSERT INTO {table} SELECT 1, 'a'; DROP TABLE {table}",
        f"INSERT INTO {table}; DROP TABLE {table}",
        f"SELECT 1; DROP TABLE {table}; garbage here",
        f"DROP TABLE {table}; garbage here",
        f"DROP TABLE {table};; SELECT 1",
    ):
        send(port, sql)
        assert send(port, f"EXISTS TABLE {table}").text == "1\n", sql


@pytest.mark.parametrize(
    "how", [{"method": "GET"}, {"readonly": "1"}, {"readonly": "2"}, {"method": "GET", "readonly": "0"}]
)
def test_read_only(port: int, table: str, how: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "written.csv"
    for sql in (
        f"INSERT INTO {table} VALUES (1, 'a')",
        f"INSERT INTO {table} SETTINGS readonly = 0 VALUES (1, 'a')",
        f"INSERT INTO {table} SELECT 1, 'a'",
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} DELETE WHERE 1",
        "CREATE TABLE other (n Int8) ENGINE = Memory",
        f"INSERT INTO FUNCTION file('{file}', 'CSV', 'n Int8') SELECT 1",
        f"INSERT INTO FUNCTION file('{file}', 'CSV', 'n Int8') VALUES (1)",
        f"SELECT 1 INTO OUTFILE '{file}'",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SYSTEM STOP MERGES",
        "KILL QUERY WHERE 1",
    ):
        answer = send(port, query=sql, **how)
        assert answer.code in (164, 358), (sql, answer.text)
    assert not file.exists()
    assert send(port, query=f"SELECT count() FROM {table}", **how).text == "0\n"
    assert send(port, query="SHOW TABLES", **how).status == 200
    assert send(port, f"INSERT INTO {table} VALUES (1, 'a')").status == 200  # the next request is not


def test_external_data_is_refused(client: Any) -> None:
    data = clickhouse_connect.driver.external.ExternalData(
        file_name="x.csv", data=b"1\n", fmt="CSV", structure=["n UInt8"]
    )
    with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="External data is not supported"):
        client.query("SELECT * FROM x", external_data=data)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8123"},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_names_other_than_loopback_are_refused(port: int, headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        answer = send(port, method=method, headers=headers, query="SELECT 1")
        assert (answer.status, answer.code) == (403, 195)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:1"},
        {"Host": "[::1]:99"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_names_of_loopback_are_allowed(port: int, headers: dict[str, str]) -> None:
    assert send(port, "SELECT 1", headers=headers).status == 200


def test_it_listens_on_loopback_only(server: ClickHouseServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address we would use
        except OSError:
            pytest.skip("no address but loopback's")
        address = probe.getsockname()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, server.port), timeout=5)


# Statements


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (b"INSERT INTO t FORMAT CSV\n", b" FORMAT CSV"),
        (b"INSERT INTO t(a, b) VALUES", b" FORMAT VALUES"),
        (b"insert into t settings a=1, b='FORMAT x' format Native\r\n", b"settings a=1, b='FORMAT x'  FORMAT Native"),
        (b"INSERT INTO values FORMAT CSV\n", b" FORMAT CSV"),
        (b"INSERT INTO db.format FORMAT CSV ", b" FORMAT CSV"),
        (b'INSERT INTO "a format b" (`values`) FORMAT CSV\t\n', b" FORMAT CSV"),
        (b"INSERT INTO TABLE FUNCTION file('x', CSV, 'values Int8') VALUES", b" FORMAT VALUES"),
        (b"INSERT INTO {t:Identifier} (* EXCEPT(b)) VALUES", b" FORMAT VALUES"),
        (b"# c\n--FORMAT a\n/* VALUES ' */INSERT INTO $a$ FORMAT b $a$ FORMAT CSV\n", b" FORMAT CSV"),
    ],
)
@given(data=st.binary())
def test_where_the_data_of_an_insert_starts(head: bytes, tail: bytes, data: bytes) -> None:
    if not head.endswith(b"\n"):
        data = b"(" + data
    insert = split_insert(head + data)
    assert insert is not None
    assert insert.data_at == len(head)
    assert insert.tail.upper().split() == tail.upper().split()


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 1 FORMAT CSV",
        b"INSERT INTO t SELECT 1 FORMAT CSV",
        b"INSERT INTO t (a) WITH 1 AS x SELECT x",
        b"INSERT INTO t FROM u SELECT a",
        b"INSERT INTO t; SELECT 1 FORMAT CSV",
        b"INSERT INTO t",
        b"EXPLAIN INSERT INTO t VALUES (1)",
        b"",
    ],
)
def test_statements_without_data(text: bytes) -> None:
    assert split_insert(text) is None


@given(st.binary() | st.text(alphabet="'\"`$(); \n-/*#\\aINSERTFOMV.", max_size=60).map(str.encode))
def test_any_bytes_are_understood_or_refused(text: bytes) -> None:
    for data in (text, b"INSERT INTO t " + text, b"SELECT 1 " + text):
        insert = split_insert(data)
        assert insert is None or 0 < insert.data_at <= len(data)
        with suppress(ClickHouseError):
            Statement.parse(data)


@pytest.mark.parametrize(
    ("raw", "code", "text"),
    [
        ("Code: 60. DB::Exception: No t. (UNKNOWN_TABLE)", 60, "Code: 60. DB::Exception: No t. (UNKNOWN_TABLE)"),
        (
            "Code: 73. DB::Exception: Code: 73. DB::Exception: No f. (UNKNOWN_FORMAT) (version 26.9.2.1). "
            "(UNKNOWN_FORMAT) (version 26.9.2.1 (official build))",
            73,
            "Code: 73. DB::Exception: No f. (UNKNOWN_FORMAT)",
        ),
        ("something else", 1001, "Code: 1001. DB::Exception: something else (STD_EXCEPTION)"),
    ],
)
def test_the_engine_s_errors_are_cleaned(raw: str, code: int, text: str) -> None:
    error = ClickHouseError.from_engine(raw)
    assert (error.code, str(error)) == (code, text)


# Starting and stopping


@contextmanager
def started(data_dir: Path) -> Iterator[Child]:
    """A process of its own; it must end with code 0, unless it was killed."""
    log = data_dir.parent / f"{data_dir.name}.log"
    child = start_child("tailrace_infra.clickhouse", "--data-dir", str(data_dir), log=log)
    try:
        yield child
    finally:
        code = child.stop()
    assert code in (0, -signal.SIGKILL), log.read_text()


def run_main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailrace_infra.clickhouse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_kill_9_in_the_middle_of_inserts_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    acknowledged: set[int] = set()
    tried: set[int] = set()
    create = "CREATE TABLE IF NOT EXISTS kept (batch UInt32, n UInt32) ENGINE = MergeTree ORDER BY batch"
    for first in (0, 100_000):
        with started(data_dir) as child:
            port = child.ready["port"]
            assert send(port, create).status == 200

            def insert(worker: int, first: int = first, port: int = port) -> None:
                with suppress(OSError, http.client.HTTPException):  # the kill ends it
                    for batch in range(first + worker, first + 100_000, 4):
                        tried.add(batch)
                        rows = "".join(f"{batch},{n}\n" for n in range(100))
                        if send(port, rows, query="INSERT INTO kept FORMAT CSV").status == 200:
                            acknowledged.add(batch)

            goal = len(acknowledged) + 60
            with ThreadPoolExecutor(4) as pool:
                workers = [pool.submit(insert, worker) for worker in range(4)]
                eventually(lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]  # a default in a lambda
                child.process.kill()
            for worker in workers:
                worker.result()
    with started(data_dir) as child:
        answer = send(child.ready["port"], "SELECT batch, count(), uniqExact(n) FROM kept GROUP BY batch")
        stored = {int(line.split("\t")[0]): line.split("\t")[1:] for line in answer.text.splitlines()}
    assert acknowledged <= stored.keys() <= tried
    assert all(counts == ["100", "100"] for counts in stored.values())


def test_a_second_process_on_the_directory_is_refused(tmp_path: Path) -> None:
    with started(tmp_path / "data") as child:
        second = run_main("--data-dir", str(tmp_path / "data"))
        assert second.returncode == 1
        assert second.stdout == ""
        expected = f"error: the data directory {tmp_path / 'data'} is in use by process {child.process.pid}; stop"
        assert second.stderr.startswith(expected)
        assert second.stderr.count("\n") == 1
        taken = run_main("--data-dir", str(tmp_path / "other"), "--port", str(child.ready["port"]))
        assert taken.returncode == 1
        assert f"127.0.0.1:{child.ready['port']}: Address already in use" in taken.stderr
        assert send(child.ready["port"], "SELECT 1").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path / "data") as child, ThreadPoolExecutor(1) as pool:
        port = child.ready["port"]
        answer = pool.submit(send, port, "SELECT sleepEachRow(0.5) FROM numbers(3) SETTINGS max_block_size = 1")
        eventually(lambda: running(port, "sleepEachRow"))
        child.process.send_signal(number)
        assert answer.result().status == 200
        assert child.process.wait(60) == 0


def test_a_query_that_does_not_end_is_cancelled_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path / "data") as child, ThreadPoolExecutor(1) as pool:
        port = child.ready["port"]
        answer = pool.submit(send, port, ENDLESS)
        eventually(lambda: running(port, "sipHash64"))
        child.process.terminate()
        assert child.process.wait(60) == 0  # 1: `STOP_S` was over
        with suppress(http.client.RemoteDisconnected):  # a busy machine: it was not cancelled within `CANCEL_S`
            assert answer.result().code == 394


ORPHAN = """
import sys
from pathlib import Path
from tailrace_infra.child import start_child
child = start_child("tailrace_infra.clickhouse", "--data-dir", sys.argv[1], log=Path(sys.argv[1] + ".log"))
print(child.process.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    eventually(lambda: gone(pid))


def test_requests_during_the_shutdown_are_refused(server: ClickHouseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_stopping", True)
    answer = send(server.port, "SELECT 1")
    assert (answer.status, answer.code) == (503, 236)


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("/dev/null/data", "Not a directory"),
        ("/proc/tailrace", "No such file or directory"),
        ("{tmp}/file", "File exists"),
        ("{tmp}/with?mark", "'?'"),
    ],
)
def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, directory: str, reason: str) -> None:
    (tmp_path / "file").touch()
    path = directory.format(tmp=tmp_path)
    with pytest.raises(StartError, match=re.escape(reason)) as caught:
        ClickHouseServer(Path(path))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chdb_engine, "FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(StartError, match=f"{tmp_path}.* MiB free, .* needed; free some space"):
        ClickHouseServer(tmp_path)
    monkeypatch.undo()
    (tmp_path / "tailrace.lock").unlink()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "chDB cannot be loaded .*pip install"),
        (SimpleNamespace(_chdb=SimpleNamespace(connect=object)), "too old"),
    ],
)
def test_a_missing_or_old_chdb_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "chdb", module)
    with pytest.raises(StartError, match=message):
        ClickHouseServer(tmp_path)


def test_a_directory_that_the_engine_cannot_open_is_named(server: ClickHouseServer, tmp_path: Path) -> None:
    """chDB opens one directory per process, and this process has one open."""
    with pytest.raises(StartError, match=f"ClickHouse cannot open the data directory {tmp_path}: "):
        ClickHouseServer(tmp_path)
    with pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
        ClickHouseServer(server.engine.data_dir)


@pytest.mark.parametrize("wrong", [70_000, -1])
def test_a_wrong_port_is_named(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{wrong}: .*choose another port"):
        ClickHouseServer(tmp_path, wrong)
