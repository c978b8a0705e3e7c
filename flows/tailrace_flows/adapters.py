"""What all dataflows are wired with."""

import threading
from collections.abc import Callable

from tailrace_sinks.clickhouse import ClickHouseWriter
from tailrace_sinks.kafka import KafkaWriter

from tailrace_flows.settings import Settings

__all__ = ["Adapters"]


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
            stop=self.hurry,
        )

    def kafka(self) -> KafkaWriter:
        """A writer of messages."""
        return KafkaWriter(self.settings.kafka.client(), self.hurry)
