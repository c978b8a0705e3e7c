"""Health checks: what `tailrace health run` does. A service that is embedded in needs none of it."""

from tailrace_producers.health.checks import (
    CheckFailedError,
    Probe,
    Status,
    clickhouse,
    command,
    http,
    kafka,
    postgresql,
    redis,
    tcp,
)
from tailrace_producers.health.runner import Check, Result, Runner, run_check, run_health

__all__ = [
    "Check", "CheckFailedError", "Probe", "Result", "Runner", "Status", "clickhouse", "command", "http", "kafka",
    "postgresql", "redis", "run_check", "run_health", "tcp",
]  # fmt: skip
