"""The dataflow of anomalies and their scores: see `tailrace_flows.alerts`, of which this is a part."""

import threading
from collections.abc import Callable
from typing import Any

from bytewax.dataflow import Dataflow

from tailrace_flows.adapters import Adapters
from tailrace_flows.alerts import add_alerts
from tailrace_flows.settings import Settings

__all__ = ["build_flow", "flow"]


def build_flow(
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    hurry: Callable[[], bool] | None = None,
    process: int = 0,
) -> Any:
    """The dataflow. Args: as of `tailrace_flows.windows.build_flow`."""
    dataflow = Dataflow("tailrace_anomaly")
    add_alerts(dataflow, Adapters(settings, stop, hurry), ("anomaly",))
    return dataflow


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
