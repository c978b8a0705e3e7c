"""The dataflow of the health of services, and its alerts: see `tailrace_flows.alerts`, of which this is a part."""

from typing import Any

from tailrace_flows.all import compose
from tailrace_flows.settings import Settings

__all__ = ["build_flow", "flow"]

build_flow = compose(["health"])


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
