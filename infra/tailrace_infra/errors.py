"""What went wrong, for people: one message without the noise of the libraries it came through."""

import re
from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaError, KafkaException
from tailrace_flows.runner import LockedError
from tailrace_sinks.migrate import MigrationError
from urllib3.exceptions import HTTPError

from tailrace_infra.child import ChildError
from tailrace_infra.topics import TopicsError

__all__ = ["EXPECTED", "reason"]

EXPECTED: Final = (
    ChildError,
    ClickHouseError,
    HTTPError,
    KafkaException,
    LockedError,
    MigrationError,
    OSError,
    TopicsError,
)
"""What a command may meet through no fault of ours: services that are away, directories, ports, disks."""

# clickhouse-connect puts its own words and the URL around the server's message, and a FORMAT behind the query.
_NOISE: Final = (
    (re.compile(r"^Received ClickHouse exception, code: \d+, server response: ", re.S), ""),
    (re.compile(r" \(for url [^)]*\)\s*$"), ""),
    (re.compile(r" \(version [^)]*\)\s*$"), ""),
    (re.compile(r"\s*\bFORMAT Native\b(?=[.:;]|\s)"), ""),
)
_CHILD_SAYS: Final = re.compile(r"^error: (.+)\Z", re.M | re.S)


def reason(error: BaseException) -> str:
    """The message of any error, shortened where it is one of `EXPECTED`."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        missing = error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
        return str(error.args[0].str()) + (" - `tailrace topics` creates the topics" if missing else "")
    if isinstance(error, ClickHouseError | HTTPError):
        return _clickhouse(error)
    if isinstance(error, ChildError):
        said = _CHILD_SAYS.search(str(error))
        return said[1] if said else str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _clickhouse(error: BaseException) -> str:
    text = str(error)
    if "DB::Exception" in text:
        for pattern, replacement in _NOISE:
            text = pattern.sub(replacement, text)
        return text
    # Not the server's: the connection failed, and the last cause says how.
    last = error
    while (cause := last.__cause__ or last.__context__) is not None:
        last = cause
    detail = last.strerror if isinstance(last, OSError) and last.strerror else str(last)
    return f"ClickHouse does not answer: {detail}"
