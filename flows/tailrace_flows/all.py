"""Several dataflows in one: windows, rules, objectives, health, anomalies.

The parts meet on topics, as they do when each runs by itself.
"""

import threading
from collections.abc import Callable, Collection
from typing import Any, Final

from bytewax.dataflow import Dataflow

from tailrace_flows.adapters import Adapters
from tailrace_flows.alerts import add_alerts
from tailrace_flows.names import FLOWS, joined_name
from tailrace_flows.settings import Settings
from tailrace_flows.windows import add_windows

__all__ = ["build_flow", "compose", "flow"]

_PARTS_OF: Final = {"alerts": ("rules", "response"), "slo": ("slo",), "health": ("health",), "anomaly": ("anomaly",)}


def compose(names: Collection[str]) -> Callable[..., Any]:
    """The `build_flow` of some of FLOWS in one dataflow; of all of them, it is `tailrace_all`."""

    def build(
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        hurry: Callable[[], bool] | None = None,
        process: int = 0,
    ) -> Any:
        dataflow = Dataflow(f"tailrace_{joined_name(names)}")
        adapters = Adapters(settings, stop, hurry)
        if "windows" in names:
            add_windows(dataflow, adapters, process)
        if parts := [part for name in FLOWS if name in names for part in _PARTS_OF.get(name, ())]:
            add_alerts(dataflow, adapters, parts)
        return dataflow

    return build


build_flow = compose(FLOWS)
"""All of them. Args: as of `tailrace_flows.windows.build_flow`."""


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
