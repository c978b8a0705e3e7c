"""The dataflow of objectives, their burn rates and alerts: see `tailrace_flows.alerts`, of which this is a part."""

from typing import Any

from tailrace_flows.all import compose
from tailrace_flows.settings import Settings

__all__ = ["build_flow", "flow"]

build_flow = compose(["slo"])


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
