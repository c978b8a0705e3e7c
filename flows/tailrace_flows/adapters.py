"""What all dataflows are wired with."""

import threading
from collections.abc import Callable
from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from tailrace_schemas.config.slo import SloSpec
from tailrace_sinks.clickhouse import ClickHouseWriter, TlsFiles, connect
from tailrace_sinks.kafka import KafkaWriter
from tailrace_sinks.slo_history import slo_history
from urllib3.exceptions import HTTPError

from tailrace_flows import host_clock
from tailrace_flows.behind import Behind, Spool
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.settings import Settings

__all__ = ["Adapters"]

HISTORY_TIMEOUT_S: Final = 60


class Adapters:
    """Writers with a flow's settings and its way to stop.

    `stop`, set, ends the sources after their current poll, and the flow drains. Once `hurry()` is true, writes that
    ClickHouse does not take give up: they are kept on disk, or done again after the restart.
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

    def behind(self) -> Behind:
        """What a flow writes its rows with."""
        recovery = self.settings.recovery
        spool = Spool(recovery.directory / "spool", recovery.spool_mb * 1_000_000)
        return Behind(self.clickhouse(), spool, stopping=self.stop.is_set)

    def slo_history(self, spec: SloSpec, until_us: int) -> list[Stored]:
        """What ClickHouse has of an objective's past.

        Raises:
            ConnectionError: it does not answer, or refuses.
        """
        try:
            with connect(self.settings.clickhouse, read_timeout_s=HISTORY_TIMEOUT_S) as client:
                return [Stored(*row) for row in slo_history(client, spec, until_us)]
        except (ClickHouseError, HTTPError, OSError) as error:
            raise ConnectionError(str(error)) from error

    def kafka(self) -> KafkaWriter:
        """A writer of messages."""
        return KafkaWriter(self.settings.kafka.client(), host_clock.now_us)
