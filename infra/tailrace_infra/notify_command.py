"""`tailrace notify`: tells receivers what the dispatcher decided."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from tailrace_flows.config_follower import ConfigFollower
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.config.receivers import Receiver

from tailrace_infra.output import Format, write_rows
from tailrace_infra.signals import StopSignal

__all__ = ["register"]

log = logging.getLogger(__name__)

CONFIG_POLL_S = 1.0
EXIT_S = 12.0
"""After a signal, the process is gone by then: the notifier's `STOP_S`, and what a commit takes where Kafka answers."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("notify")(notify)


def notify(
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run; default: until stopped.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How the summary is printed.")] = Format.TABLE,
) -> None:
    """Tell people: send notifications to the receivers of the configuration, by email, webhook and Apprise.

    Secrets of receivers are references, ${env:NAME} or ${file:/path}, which are resolved here. Several can run: the
    others stand by. SIGTERM and Ctrl-C finish what is under way. At the end it prints what became of how many.

    Examples:

        tailrace notify

        SLACK_URL=slack://T000/B000/XXXX tailrace notify --data-dir tailrace-data
    """
    from confluent_kafka import KafkaException

    from tailrace_infra.cli import fail, reach_kafka, resolved_settings
    from tailrace_infra.errors import kafka_reason

    try:
        from tailrace_subscribers.notify.secrets import Masker, MaskingFilter
        from tailrace_subscribers.notify.service import GROUP, Notifier
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tailrace"):
            raise
        fail(f"this needs the package {error.name}: pip install 'tailrace[notify]'")

    kafka = reach_kafka(resolved_settings(data_dir).kafka)
    masker = Masker()
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskingFilter(masker))
    for name in ("urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they report, they also tell the caller
    until_s = None if duration is None else monotonic_s() + duration
    ended = threading.Event()
    try:
        follower = ConfigFollower(kafka.client(), kafka.topics.config)
        receivers = _Receivers(follower)
        with StopSignal(last=True) as stop:
            threading.Thread(target=_end_in_time, args=(stop, duration, ended), daemon=True).start()
            notifier = Notifier(
                kafka.client(), kafka.topics.notifications, f"{kafka.topic_prefix}-{GROUP}", receivers.current, masker,
                stopped=lambda: stop.is_set() or (until_s is not None and monotonic_s() >= until_s),
            )  # fmt: skip
            notifier.run()
        follower.close()
    except KafkaException as error:
        fail(kafka_reason(kafka, error))
    finally:
        ended.set()
    rows = [[name, what, count] for (name, what), count in sorted(notifier.counts.items())]
    write_rows(["receiver", "what", "count"], rows, format)


def _end_in_time(stop: StopSignal, duration_s: float | None, ended: threading.Event) -> None:
    """Ends the process where it hangs once it is to stop: librdkafka tries a commit again as long as Kafka is away."""
    stop.wait(duration_s)
    log.info("stopping: what is under way is finished, within %d s", EXIT_S)
    if not ended.wait(EXIT_S):
        log.warning("Kafka does not answer: what was sent last is not committed, and is sent again after the restart")
        logging.shutdown()
        os._exit(0)


class _Receivers:
    """The configuration's, looked at again every second."""

    def __init__(self, follower: ConfigFollower) -> None:
        self._follower = follower
        self._next_s = 0.0
        self._take()

    def current(self) -> Mapping[str, Receiver]:
        if (now_s := monotonic_s()) >= self._next_s:
            self._next_s = now_s + CONFIG_POLL_S
            if self._follower.poll():
                self._take()
        return self._receivers

    def _take(self) -> None:
        self._receivers = {one.name: one for one in self._follower.config.values() if isinstance(one, Receiver)}
        log.info("receivers: %s", ", ".join(sorted(self._receivers)) or "none")
