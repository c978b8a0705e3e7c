"""What all dataflows are wired with."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from tailrace_schemas.config.slo import SloSpec
from tailrace_sinks.clickhouse import ClickHouseWriter, TlsFiles, connect
from tailrace_sinks.kafka import KafkaWriter, StoppedError
from tailrace_sinks.slo_history import slo_history
from urllib3.exceptions import HTTPError

from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.settings import Settings

__all__ = ["Adapters"]

log = logging.getLogger(__name__)

RETRY_S: Final = 5


class Adapters:
    """Writers with a flow's settings and its way to stop.

    `stop`, set, ends the sources after their current poll, and the flow drains. Once `hurry()` is true, writes that
    cannot be made durable give up: the epoch is done again after the restart.
    """

    def __init__(
        self, settings: Settings, stop: threading.Event | None = None, hurry: Callable[[], bool] | None = None
    ) -> None:
        self.settings = settings
        self.stop = stop or threading.Event()
        self.hurry = hurry or self.stop.is_set

    def clickhouse(self) -> ClickHouseWriter:
        """A writer of rows."""
        clickhouse = self.settings.clickhouse
        return ClickHouseWriter(
            clickhouse.url,
            database=clickhouse.database,
            user=clickhouse.user,
            password=clickhouse.password.get_secret_value(),
            tls=TlsFiles(clickhouse.ca_file, clickhouse.certificate_file, clickhouse.key_file),
            stop=self.hurry,
        )

    def slo_history(self, spec: SloSpec, until_us: int) -> list[Stored]:
        """What ClickHouse has of an objective's past; tries again while it does not answer, until `hurry()`.

        Raises:
            StoppedError: the process is stopping.
        """
        while True:
            try:
                with connect(self.settings.clickhouse) as client:
                    return [Stored(*row) for row in slo_history(client, spec, until_us)]
            except (ClickHouseError, HTTPError, OSError) as error:
                if self.hurry():
                    raise StoppedError(f"the past of slo/{spec.name} cannot be read: {error}") from error
                log.warning("slo/%s: its past cannot be read, again in %d s: %s", spec.name, RETRY_S, error)
                self.stop.wait(RETRY_S)

    def kafka(self) -> KafkaWriter:
        """A writer of messages."""
        return KafkaWriter(self.settings.kafka.client(), self.hurry)
