"""The host agent as a process of its own: `tailrace agent`, and a part of `tailrace up`."""

import argparse
import logging
import threading

from tailrace_flows.settings import Settings
from tailrace_producers.agent import run_agent

from tailrace_infra.child import announce_ready, exit_with_parent
from tailrace_infra.logs import configure_logging
from tailrace_infra.signals import StopSignal

__all__ = ["run_agent_process"]

log = logging.getLogger(__name__)


def run_agent_process(settings: Settings, service: str, interval_s: float, duration_s: float | None) -> None:
    """Collects until SIGTERM, SIGINT or `duration_s`; what was collected is sent. Main thread only."""
    kafka = settings.kafka
    properties = {name: value for name, value in kafka.client().items() if name != "bootstrap.servers"}
    with StopSignal() as stop:
        timer = threading.Timer(duration_s or 0.0, stop.set)
        timer.daemon = True
        if duration_s is not None:
            timer.start()
        try:
            stats = run_agent(
                stop,
                bootstrap_servers=kafka.bootstrap_servers,
                properties=properties,
                topics=kafka.topics,
                service=service,
                interval_s=interval_s,
            )
        finally:
            timer.cancel()
    log.info("agent: %s", stats)


def main() -> None:
    """The agent as a child of `tailrace up`."""
    parser = argparse.ArgumentParser(prog="python -m tailrace_infra.agent", description=main.__doc__)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--service", default="host")
    options = parser.parse_args()
    configure_logging()
    exit_with_parent()
    announce_ready()
    run_agent_process(Settings(), options.service, options.interval, None)


if __name__ == "__main__":
    main()
