"""What Kafka's security errors mean: which setting is to be looked at."""

import logging
from typing import Any, Final

from tailrace_schemas.clock import monotonic_s

__all__ = ["SecurityWarnings", "advice"]

WARN_EVERY_S: Final = 30.0

_ADVICE: Final = (
    # What librdkafka's or OpenSSL's text contains, and what is likely wrong: our setting, and the property it becomes.
    ("invalid credentials", "look at kafka.username and kafka.password (sasl.username, sasl.password)"),
    ("unsupported sasl mechanism", "look at kafka.sasl_mechanism (sasl.mechanism)"),
    ("authentication failed", "look at kafka.username and kafka.password (sasl.username, sasl.password)"),
    # librdkafka does not tell these two apart.
    (
        "certificate verify failed",
        "look at kafka.ca_file (ssl.ca.location), and whether kafka.bootstrap_servers, and what the brokers advertise, "
        "are names in their certificates",
    ),
    ("ssl.ca.location", "look at kafka.ca_file (ssl.ca.location)"),
    ("ssl.key", "look at kafka.key_file and kafka.key_password (ssl.key.location, ssl.key.password)"),
    ("ssl.certificate", "look at kafka.certificate_file (ssl.certificate.location)"),
    ("ssl/tls alert", "the broker refuses kafka.certificate_file (ssl.certificate.location), or wants one"),
    ("alert certificate required", "the broker wants kafka.certificate_file (ssl.certificate.location)"),
    ("ssl handshake failed", "look at kafka.security_protocol and kafka.ca_file (security.protocol, ssl.ca.location)"),
    ("topic authorization failed", "the user lacks an ACL for it: docs/security.md has all"),
    ("group authorization failed", "the user lacks an ACL for the consumer group: docs/security.md has all"),
    ("failed to acquire idempotence pid", "the user may write to no topic: docs/security.md has all ACLs"),
    ("cluster authorization failed", "the user lacks an ACL for the cluster: docs/security.md has all"),
)


def advice(text: str) -> str:
    """Which setting an error of librdkafka is about; empty where it is not about security."""
    lower = text.lower()
    return next((said for part, said in _ADVICE if part in lower), "")


class SecurityWarnings:
    """An `error_cb` for librdkafka: warns of what waiting does not cure, and of the rest not at all.

    librdkafka goes on trying, so a password that is given back is found again. Each advice is given at most once in
    `WARN_EVERY_S`.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._said_s: dict[str, float] = {}

    def __call__(self, error: Any) -> None:
        told = advice(error.str())
        now_s = monotonic_s()
        if told and now_s - self._said_s.get(told, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._said_s[told] = now_s
            self._log.warning("%s waits: %s - %s", self._what, error.str(), told)
