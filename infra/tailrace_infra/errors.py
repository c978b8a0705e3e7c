"""What went wrong, for people: one message without the noise of the libraries it came through."""

import re
import ssl
from collections.abc import Callable
from typing import Any, Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaError, KafkaException
from tailrace_flows.directory_lock import LockedError
from tailrace_flows.settings import ClickHouseSettings, KafkaSettings
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.kafka_errors import advice
from tailrace_sinks.migrate import MigrationError
from urllib3.exceptions import HTTPError

from tailrace_infra.child import ChildError
from tailrace_infra.topics import TopicsError

__all__ = ["EXPECTED", "clickhouse_reason", "kafka_metadata", "kafka_reason", "reason"]

KAFKA_TIMEOUT_S: Final = 5.0
KAFKA_STEP_S: Final = 1.0

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
UNKNOWN_USER: Final = frozenset({192, 193, 194, 516})
"""ClickHouse's codes for a user or password that is none of its."""
_KAFKA_AWAY: Final = frozenset(
    {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE}
)
_ELSEWHERE: Final = "`tailrace up` runs everything here, and --data-dir names the directory of one that runs"
_CHILD_SAYS: Final = re.compile(r"^error: (.+)\Z", re.M | re.S)


def reason(error: BaseException) -> str:
    """The message of any error, shortened where it is one of `EXPECTED`."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        text = str(error.args[0].str())
        if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return f"{text} - `tailrace topics` creates the topics"
        return f"{text} - {told}" if (told := advice(text)) else text
    if isinstance(error, ClickHouseError | HTTPError):
        return _clickhouse(error)
    if isinstance(error, ChildError):
        said = _CHILD_SAYS.search(str(error))
        return said[1] if said else str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def kafka_metadata(kafka: KafkaSettings, waiting: Callable[[], object] = lambda: None) -> Any:
    """The cluster's, within `KAFKA_TIMEOUT_S`. `waiting` is called once, if that takes more than `KAFKA_STEP_S`.

    Raises:
        KafkaException: it cannot be had; with the reason that librdkafka otherwise only logs, such as a password.
    """
    from confluent_kafka.admin import AdminClient  # other commands than these need it not

    heard: list[KafkaError] = []
    admin = AdminClient({"log_level": 0, **kafka.client(), "error_cb": heard.append})
    until_s = monotonic_s() + KAFKA_TIMEOUT_S
    told_waiting = False
    while True:
        try:
            return admin.list_topics(timeout=KAFKA_STEP_S)
        except KafkaException:
            admin.poll(0)
            if told := [error for error in heard if advice(error.str())]:
                raise KafkaException(told[-1]) from None
            if monotonic_s() >= until_s:
                if causes := [error for error in heard if error.code() != KafkaError._ALL_BROKERS_DOWN]:
                    raise KafkaException(causes[-1]) from None
                raise
        if not told_waiting:
            told_waiting = True
            waiting()


def kafka_reason(kafka: KafkaSettings, error: BaseException, *, asked: bool = False) -> str:
    """The broker's address, the message of an error met there, and what to look at.

    Asks once more where librdkafka did not say why, unless the error is `kafka_metadata`'s own (`asked`).
    """
    if _is_away(error) and not asked:
        try:
            kafka_metadata(kafka)
        except KafkaException as found:
            error = found
    hint = (
        " - is it kafka.bootstrap_servers or kafka.security_protocol that is wrong? "
        f"`tailrace kafka start` runs a Kafka here, {_ELSEWHERE}"
    )
    return f"{kafka.bootstrap_servers}: {reason(error)}{hint if _is_away(error) else ''}"


def clickhouse_reason(clickhouse: ClickHouseSettings, error: BaseException) -> str:
    """The server's URL, the message of an error met there, and what to look at where it does not answer."""
    text = f"{clickhouse.url}: {reason(error)}"
    away = isinstance(error, ClickHouseError | HTTPError) and "DB::Exception" not in text and "look at" not in text
    return f"{text} - is clickhouse.url right? {_ELSEWHERE}" if away else text


def _is_away(error: BaseException) -> bool:
    return (
        isinstance(error, KafkaException)
        and bool(error.args)
        and isinstance(error.args[0], KafkaError)
        and error.args[0].code() in _KAFKA_AWAY
        and not advice(error.args[0].str())
    )


def _clickhouse(error: BaseException) -> str:
    text = str(error)
    if "DB::Exception" in text:
        for pattern, replacement in _NOISE:
            text = pattern.sub(replacement, text)
        code = getattr(error, "code", None)
        return f"{text} - look at clickhouse.user and clickhouse.password" if code in UNKNOWN_USER else text
    # Not the server's: the connection failed, and the last cause says how.
    last = error
    while (cause := last.__cause__ or last.__context__) is not None:
        last = cause
    detail = last.strerror if isinstance(last, OSError) and last.strerror else str(last)
    if isinstance(last, ssl.SSLCertVerificationError):
        name = "mismatch" in last.verify_message or "not valid for" in last.verify_message
        detail += f" - look at {'clickhouse.url' if name else 'clickhouse.ca_file'}"
    elif isinstance(last, ssl.SSLError):
        detail += " - look at clickhouse.url (https?), clickhouse.certificate_file and clickhouse.key_file"
    return f"ClickHouse does not answer: {detail}"
