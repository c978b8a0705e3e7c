"""`tailrace io-report` over rows as the flow stores them."""

import json
from typing import Any

from tailrace_schemas.clock import now_us

from tests.infra.command import tailrace
from tests.sinks.storage import Row, Storage, distribution, row


def operation(start_s: int, service: str, kind: str, target: str, durations: list[float], error: str = "") -> Row:
    attributes = {"io.operation.kind": kind, "io.operation.target": target} | ({"error.type": error} if error else {})
    return distribution(durations, start_s, metric="io.operation.duration", service=service, attributes=attributes)


def lookups(start_s: int, name: str, result: str, count: int) -> Row:
    attributes = {"cache.name": name, "cache.result": result}
    return row("counter", start_s, metric="cache.lookups", service="shop", attributes=attributes, increase=count)


def memory(start_s: int, name: str, pid: str, size: float) -> Row:
    attributes = {"cache.name": name, "process.pid": pid}
    values = {"last": size, "sum": size, "min": size, "max": size}
    return row("gauge", start_s, metric="cache.memory.usage", service="shop", attributes=attributes, **values)


def test_operations_and_caches_of_all_processes(storage: Storage) -> None:
    now_s = now_us() // 10_000_000 * 10 - 10
    storage.write(
        "rows_10s",
        [
            operation(now_s, "shop", "read", "ids", [0.1, 0.2]),
            operation(now_s - 10, "shop", "read", "ids", [0.3]),
            operation(now_s - 10, "shop", "read", "ids", [4.0], "OSError"),
            operation(now_s - 7200, "shop", "read", "ids", [99.0]),
            operation(now_s, "it's", "command", "build", [60.0]),
            lookups(now_s, "regex", "hit", 30), lookups(now_s - 10, "regex", "hit", 45),
            lookups(now_s, "regex", "miss", 25),
            memory(now_s, "regex", "1", 100), memory(now_s - 10, "regex", "1", 900), memory(now_s, "regex", "2", 50),
        ],
    )  # fmt: skip
    environment = {
        "TAILRACE_CLICKHOUSE__URL": storage.settings.url,
        "TAILRACE_CLICKHOUSE__DATABASE": storage.settings.database,
    }

    def report(*options: str) -> Any:
        done = tailrace("io-report", *options, environment=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "json" in options else done.stdout

    found = report("--format", "json")
    assert [one["target"] for one in found["operations"]] == ["build", "ids"]
    ids = found["operations"][1]
    assert (ids["count"], ids["errors"], ids["max_s"], round(ids["total_s"], 6)) == (4, 1, 4.0, 4.6)
    assert abs(ids["p50_s"] - 0.2) < 0.2 * 0.006
    assert found["caches"] == [{"name": "regex", "hits": 75, "misses": 25, "memory_bytes": 150.0, "hit_ratio": 0.75}]
    quoted = report("--service", "it's", "--format", "markdown")
    assert "| command build | 1 | 0 | 60 s |" in quoted
    assert "ids" not in quoted
    assert "Nothing was tracked." in report("--service", "nobody")
