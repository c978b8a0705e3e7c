"""Access logs against a plain reading of their lines."""

import gzip
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tailrace_producers.replay import ReplayError, ReplayOptions
from tailrace_producers.replay.access_log import MAX_PATHS, log_format
from tailrace_producers.replay.model import BadReason
from tailrace_schemas.samples import Series

from tests.data import data_file
from tests.producers.replay_oracle import Row, read_rows

COMBINED = '10.0.0.1 - - [17/May/2015:10:05:03 +0200] "GET /shop/cart?id=7 HTTP/1.1" 200 1234 "-" "curl/8"'
TIME_US = 1431849903000000
DURATION = ("http.server.request.duration", "distribution", "s")
SIZE = ("http.server.response.body.size", "distribution", "By")
REQUESTS = ("http.server.requests", "counter", "{request}")


def replayed(tmp_path: Path, *lines: str, name: str = "web.log", **options: Any) -> list[tuple[Any, ...]]:
    """(metric, time, value, attributes) of each sample."""
    path = tmp_path / name
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    rows, bad = read_rows(path, ReplayOptions(**options))
    assert not bad.total, bad.examples
    assert {row.service for row in rows} == {"web"}
    return [(row.series[:3], row.time_us, row.value, dict(row.series.attributes)) for row in rows]


def attributes(method: str = "GET", status: str = "200", path: str | None = "/shop") -> dict[str, str]:
    named = {"http.request.method": method, "http.response.status_code": status, "url.path": path}
    return {key: value for key, value in named.items() if value}


def test_a_combined_line_gives_a_size_and_a_count(tmp_path: Path) -> None:
    assert replayed(tmp_path, COMBINED) == [
        (SIZE, TIME_US, 1234.0, attributes()),
        (REQUESTS, TIME_US, 1.0, attributes()),
    ]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (COMBINED + " 0.25", {"duration_field": "1"}),
        (COMBINED + ' "0.25"', {"duration_field": "1"}),
        (COMBINED + ' "a b" x 250 more', {"duration_field": "3", "duration_unit": "ms"}),
        (COMBINED + " urt=0.1 rt=0.25 uct=0", {"duration_field": "rt"}),
        (COMBINED + ' request_time="250000"', {"duration_field": "request_time", "duration_unit": "us"}),
        (
            COMBINED + " 0.25",
            {
                "log_format": '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
                '"$http_referer" "$http_user_agent" $request_time'
            },
        ),
        (
            COMBINED + " 0.1 0.25",
            {
                "log_format": '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
                '"$http_referer" "$http_user_agent" $request_time $upstream_response_time',
                "duration_field": "upstream_response_time",
            },
        ),
        (
            COMBINED + " 250000",
            {"log_format": '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i" %D'},
        ),
        (
            COMBINED + " 250000 250",
            {
                "log_format": '%h %l %u %t \\"%r\\" %>s %B \\"%{Referer}i\\" \\"%{User-Agent}i\\" %D %{ms}T',
                "duration_field": "%{ms}T",
            },
        ),
        (
            "2015-05-17T10:05:03+02:00|GET|/shop/cart|200|1234|250|100%",
            {
                "log_format": "$time_iso8601|$request_method|$uri|$status|$body_bytes_sent|${request_time}|100%",
                "duration_unit": "ms",
            },
        ),
        (
            "1431849903 GET /shop/cart?x=[ 200 1234 0.25 17%",
            {"log_format": "%{sec}t %m %U%q %s %b %T 17%%", "format": "access_log"},
        ),
        (
            "1431849903.000 10.0.0.1 GET /shop/cart?x=1 HTTP/1.1 200 1234 0.25",
            {"log_format": "$msec $remote_addr $request_method $request_uri $server_protocol $status $body_bytes_sent "
                           "$request_time"},
        ),
    ],
)  # fmt: skip
def test_durations_come_from_where_they_are(tmp_path: Path, line: str, options: dict[str, Any]) -> None:
    assert replayed(tmp_path, line, **options) == [
        (DURATION, TIME_US, 0.25, attributes()),
        (SIZE, TIME_US, 1234.0, attributes()),
        (REQUESTS, TIME_US, 1.0, attributes()),
    ]


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET / HTTP/1.1", ("GET", "/")),
        ("POST /a/b/c HTTP/2.0", ("POST", "/a")),
        ("GET /search;sid=1?q=secret HTTP/1.1", ("GET", "/search")),
        ("GET http://shop.example/a/b HTTP/1.1", ("GET", "/a")),
        ("OPTIONS * HTTP/1.0", ("OPTIONS", None)),
        ("BREW /pot HTTP/1.1", ("_OTHER", "/pot")),
        ("get /lower HTTP/1.1", ("_OTHER", "/lower")),
        ("-", ("_OTHER", None)),
        (r"\x16\x03\x01\x00", ("_OTHER", None)),
        (r"GET /with\"quote HTTP/1.1", ("GET", "/with")),
        ("GET /\udcff HTTP/1.1", ("GET", None)),
        ("", ("_OTHER", None)),
    ],
)
def test_requests_of_every_sort_are_requests(
    tmp_path: Path, request_line: str, expected: tuple[str, str | None]
) -> None:
    line = COMBINED.replace("GET /shop/cart?id=7 HTTP/1.1", request_line)
    assert replayed(tmp_path, line)[-1] == (REQUESTS, TIME_US, 1.0, attributes(expected[0], "200", expected[1]))


def test_common_format_dash_sizes_and_other_prefixes(tmp_path: Path) -> None:
    rows = replayed(
        tmp_path,
        '::1 - jane doe [17/May/2015:10:05:03 +0200] "GET /shop HTTP/1.1" 304 -',
        'shop.example:443 10.0.0.1 - - [17/May/2015:10:05:03 +0200] "GET /shop HTTP/1.1" - 0 "-" "-"',
    )
    assert rows[0] == (SIZE, TIME_US, 0.0, attributes(status="304"))
    assert rows[3] == (REQUESTS, TIME_US, 1.0, attributes(status=""))


@pytest.mark.parametrize(("segments", "path"), [(0, None), (1, "/shop"), (2, "/shop/cart"), (5, "/shop/cart")])
def test_path_segments_are_an_option(tmp_path: Path, segments: int, path: str | None) -> None:
    assert replayed(tmp_path, COMBINED, path_segments=segments)[0][3] == attributes(path=path)


def test_a_scanner_does_not_make_series_without_end(tmp_path: Path) -> None:
    lines = [COMBINED.replace("/shop/cart", f"/{i}") for i in range(MAX_PATHS + 50)] * 2
    path = tmp_path / "web.log"
    path.write_text("\n".join(lines))
    for block_bytes in (1000, 1 << 20):  # the first that come are kept, however the file is cut
        rows, _ = read_rows(path, block_bytes=block_bytes)
        paths = Counter(dict(row.series.attributes)["url.path"] for row in rows)
        assert paths == {f"/{i}": 4 for i in range(MAX_PATHS)} | {"_OTHER": 200}


def test_a_line_without_its_duration_is_still_a_request(tmp_path: Path) -> None:
    rows = replayed(tmp_path, COMBINED + " 0.25", COMBINED + " -", COMBINED, duration_field="1")
    assert [row[0] for row in rows] == [DURATION, SIZE, REQUESTS, SIZE, REQUESTS, SIZE, REQUESTS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration_field": "rt"}, "no line has the duration field 'rt': give its position"),
        ({"duration_field": "0"}, "duration_field '0' is neither a position"),
        ({"log_format": "$remote_addr $status"}, "does not have a time"),
        ({"log_format": "%t %s", "duration_field": "%D"}, "does not have the field 'D'"),
    ],
)
def test_formats_that_cannot_work_are_clear_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ReplayError, match=re.escape(message)):
        replayed(tmp_path, COMBINED, **options)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gibberish", BadReason.PATTERN),
        (COMBINED.replace("May", "Mai"), BadReason.TIME),
        (COMBINED.replace("17/May", "31/Feb"), BadReason.TIME),
        (COMBINED.replace("+0200", "+9900"), BadReason.TIME),
        (COMBINED.replace("2015", "1915"), BadReason.TIME_RANGE),
        ("\udcff\udcfe", BadReason.PATTERN),
    ],
)
def test_bad_lines_are_counted_and_quoted(tmp_path: Path, line: str, reason: BadReason) -> None:
    path = tmp_path / "web.log"
    path.write_bytes("\r\n".join(["", COMBINED, "", line, COMBINED, ""]).encode("utf-8", "surrogateescape"))
    rows, bad = read_rows(path)
    assert len(rows) == 4
    assert (bad.lines, bad.counts) == (3, {reason: 1})
    assert [(example.line, example.reason) for example in bad.examples] == [(4, reason)]


def test_a_log_is_told_by_its_content(tmp_path: Path) -> None:
    assert len(replayed(tmp_path, COMBINED, name="web.txt")) == 2
    with pytest.raises(ReplayError, match="no column 'time'"):
        replayed(tmp_path, COMBINED, format="csv")
    with pytest.raises(ReplayError, match="1 of 1 lines are bad, all of them"):
        replayed(tmp_path, "time,metric,value", format="access_log")


def test_a_variable_that_comes_twice_is_read_once() -> None:
    form = log_format(ReplayOptions(log_format="$time_local $msec $status $status"))
    assert form.groups == {"time", "status"}


def test_a_real_apache_log() -> None:
    path = data_file("latency/apache_access_first5000.log.gz")
    expected = []
    for line in read_lines(path):
        request = re.match(r'\S+ \S+ \S+ \[(.+?)\] "(\S+) (\S+) [^"]*" (\d+) (\S+) ', line)
        assert request, line
        time_text, method, target, status, size = request.groups()
        segment = "/" + re.split(r"[/?#;]", target)[1]
        key = attributes(method, status, segment)
        time_us = int(datetime.strptime(time_text, "%d/%b/%Y:%H:%M:%S %z").timestamp()) * 1_000_000
        expected.append((SIZE, time_us, 0.0 if size == "-" else float(size), key))
        expected.append((REQUESTS, time_us, 1.0, key))
    rows, bad = read_rows(path)
    found = [(row.series[:3], row.time_us, row.value, dict(row.series.attributes)) for row in rows]
    assert (bad.lines, bad.total, len(found)) == (5000, 0, 10_000)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    kept = {row[3]["url.path"] for row in found} - {"_OTHER"}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[3] == theirs[3] | ({} if theirs[3]["url.path"] in kept else {"url.path": "_OTHER"})


def read_lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_series_are_named_by_opentelemetry() -> None:
    rows, _ = read_rows(data_file("latency/apache_access_first5000.log.gz"), ReplayOptions(service="www"))
    assert rows[0] == Row(
        "www",
        Series(
            *SIZE,
            (("http.request.method", "GET"), ("http.response.status_code", "200"), ("url.path", "/presentations")),
        ),
        1431857103000000,
        203023.0,
    )
