"""Windows, rules, objectives, health and their responses in one dataflow.

The parts meet on topics, as they do when each runs by itself.
"""

import threading
from collections.abc import Callable
from typing import Any

from bytewax.dataflow import Dataflow

from tailrace_flows.adapters import Adapters
from tailrace_flows.alerts import PARTS, add_alerts
from tailrace_flows.settings import Settings
from tailrace_flows.windows import add_windows

__all__ = ["build_flow", "flow"]


def build_flow(
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    hurry: Callable[[], bool] | None = None,
    process: int = 0,
) -> Any:
    """The dataflow. Args: as of `tailrace_flows.windows.build_flow`."""
    dataflow = Dataflow("tailrace_all")
    adapters = Adapters(settings, stop, hurry)
    add_windows(dataflow, adapters, process)
    add_alerts(dataflow, adapters, PARTS)
    return dataflow


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
