"""The queries of docs/middleware.md, over rows as the middleware makes them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tailrace_schemas.clock import now_us

from tests.sinks.storage import Row, Storage, distribution, row

PAGE = (Path(__file__).parents[2] / "docs" / "middleware.md").read_text()


def requests(start_s: int, route: str, durations: Sequence[float], error: str = "") -> Row:
    attributes = {"http.route": route} | ({"error.type": error} if error else {})
    return distribution(
        durations, start_s, metric="http.server.request.duration", service="shop", attributes=attributes
    )


def active(start_s: int, pid: str, method: str, last: float) -> Row:
    attributes = {"process.pid": pid, "http.request.method": method, "url.scheme": "http"}
    return row(
        "gauge", start_s, metric="http.server.active_requests", attributes=attributes, sum=last, min=last, max=last,
        last=last,
    )  # fmt: skip


def test_queries(storage: Storage) -> None:
    recent_s = now_us() // 10_000_000 * 10 - 10
    storage.write(
        "rows_10s",
        [
            requests(recent_s, "/slow", [1.0, 2.0]),
            requests(recent_s, "/slow", [3.0], "500"),
            requests(recent_s, "/quick", [0.1] * 4),
            requests(recent_s - 7200, "/quick", [9.0]),
            active(recent_s - 10, "1", "GET", 9),
            active(recent_s, "1", "GET", 2),
            active(recent_s, "1", "POST", 1),
            active(recent_s, "2", "GET", 4),
        ],
    )
    routes, in_all = (storage.records(query) for query in re.findall(r"```sql\n(.*?)```", PAGE, re.S))
    near: Any = pytest.approx
    assert routes == [
        {"route": "/slow", "requests": 3, "p99_ms": near(3000, rel=0.006), "error_ratio": near(1 / 3)},
        {"route": "/quick", "requests": 4, "p99_ms": near(100, rel=0.006), "error_ratio": 0},
    ]
    assert in_all == [{"active": 7}]
