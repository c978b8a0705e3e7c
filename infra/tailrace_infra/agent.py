"""The host agent as a process of its own: what `tailrace agent` becomes, and a part of `tailrace up`.

It loads no more than it needs: neither the command's libraries nor the flow's.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from tailrace_flows.settings import AgentSettings, Settings, load_settings
from tailrace_producers.agent import Agent, read_all
from tailrace_producers.collectors import Failure
from tailrace_producers.telemetry import Telemetry
from tailrace_schemas.clock import monotonic_s

from tailrace_infra.child import announce_ready, exit_with_parent
from tailrace_infra.logs import configure_logging
from tailrace_infra.signals import ReloadSignal

__all__ = ["agent_options", "collect_once", "replace_by_agent"]

log = logging.getLogger("tailrace_infra.agent")  # not __main__, which it is when run

ONCE_INTERVAL_S: Final = 1.0
"""Utilizations are those between two passes."""


def agent_options(
    interval_s: float | None = None, service: str | None = None, duration_s: float | None = None
) -> list[str]:
    """The arguments of `python -m tailrace_infra.agent`; None leaves it to the settings."""
    given = {"--interval": interval_s, "--service": service, "--duration": duration_s}
    return [part for option, value in given.items() if value is not None for part in (option, str(value))]


def replace_by_agent(
    settings: Settings, interval_s: float | None, service: str | None, duration_s: float | None
) -> NoReturn:
    """Makes this process the agent: same PID, less than half the memory of the command's."""
    environment = dict(os.environ)
    if settings.kafka != load_settings().kafka:  # a stack's own; otherwise the variable would hide the file's changes
        environment["TAILRACE_KAFKA__BOOTSTRAP_SERVERS"] = settings.kafka.bootstrap_servers
        environment["TAILRACE_KAFKA__SECURITY_PROTOCOL"] = settings.kafka.security_protocol or "PLAINTEXT"
    options = agent_options(interval_s, service, duration_s)
    sys.stdout.flush()
    command = [sys.executable, "-m", "tailrace_infra.agent", *options]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted


def collect_once(settings: AgentSettings) -> list[list[Any]]:
    """What a pass gives: metric, attributes, kind, value, unit; distributions as the number of their values.

    It takes a second, for there is one pass before it.
    """
    collectors = settings.collectors()
    for name, item in read_all(collectors, monotonic_s()):
        if isinstance(item, Failure):
            log.warning("cannot read %s %s: %s", name, item.what, item.error)
    threading.Event().wait(ONCE_INTERVAL_S)
    rows: dict[tuple[str, str, str, str], float] = {}
    for _, item in read_all(collectors, monotonic_s()):
        if not isinstance(item, Failure):
            attributes = ", ".join(f"{key}={value}" for key, value in item.attributes.items())
            key = (item.metric, attributes, item.kind, item.unit)
            rows[key] = rows.get(key, 0) + 1 if item.kind == "distribution" else item.value
    return [[metric, attributes, kind, value, unit] for (metric, attributes, kind, unit), value in rows.items()]


def run_agent(interval_s: float | None, service: str | None, duration_s: float | None, signals: ReloadSignal) -> int:
    """Collects until SIGTERM, SIGINT or `duration_s`, and sends what is left, 5 s at most. SIGHUP brings new settings.

    Returns the exit code: 1 where a defect ended the collecting.

    Raises:
        ValueError: the settings are wrong.
        confluent_kafka.KafkaException: librdkafka does not accept its properties.
    """
    settings = load_settings()
    kafka = settings.kafka
    stop = threading.Event()
    with Telemetry(
        service or settings.agent.service,
        {"host.name": socket.gethostname()},
        bootstrap_servers=kafka.bootstrap_servers,
        properties={name: value for name, value in kafka.client().items() if name != "bootstrap.servers"},
        topics=kafka.topics,
    ) as telemetry:
        agent = Agent(telemetry, interval_s or settings.agent.interval_s, settings.agent.collectors())

        def run() -> None:
            try:
                agent.run(stop)
            finally:
                signals.set()

        gc.freeze()  # a pass makes thousands of objects; looking through all that was loaded each time is a fifth of it
        worker = threading.Thread(target=run, name="tailrace-agent")
        worker.start()
        try:
            came = _serve(agent, settings, interval_s, duration_s, signals)
        finally:
            stop.set()
            worker.join()
    log.info("agent: %s", telemetry.stats)
    return 1 if came == 0 else 0


def _serve(
    agent: Agent, settings: Settings, interval_s: float | None, duration_s: float | None, signals: ReloadSignal
) -> int | None:
    """Waits for the end, and for new settings until then. Returns what `signals` told; None: its time was over."""
    until_s = None if duration_s is None else monotonic_s() + duration_s
    while True:
        came = signals.next(None if until_s is None else max(0.0, until_s - monotonic_s()))
        if came != signal.SIGHUP:
            return came
        try:
            new = load_settings()
        except ValueError as error:
            log.error("SIGHUP: the settings stay as they were; %s", error)
            continue
        agent.replace(interval_s or new.agent.interval_s, new.agent.collectors())
        at_start = {"kafka": settings.kafka, "agent.service": settings.agent.service}
        now: Mapping[str, object] = {"kafka": new.kafka, "agent.service": new.agent.service}
        differs = [name for name, value in at_start.items() if value != now[name]]
        log.info(
            "SIGHUP: %d process groups, %d probes, every %g s",
            len(new.agent.groups), len(new.agent.probes), interval_s or new.agent.interval_s,
        )  # fmt: skip
        if differs:
            log.warning("SIGHUP: %s changed; that takes a restart", " and ".join(differs))


def main() -> int:
    """The agent; `tailrace agent --help` says more."""
    parser = argparse.ArgumentParser(prog="python -m tailrace_infra.agent", description=main.__doc__)
    parser.add_argument("--interval", type=float)
    parser.add_argument("--service")
    parser.add_argument("--duration", type=float)
    parser.add_argument("--child", action="store_true", help="say when ready, and end with the parent")
    options = parser.parse_args()
    configure_logging()
    if options.child:
        exit_with_parent()
    from confluent_kafka import KafkaException

    try:
        with ReloadSignal(last=True) as signals:
            if options.child:
                announce_ready()
            return run_agent(options.interval, options.service, options.duration, signals)
    except ValueError as error:
        log.error("%s", error)
        return 2
    except KafkaException as error:
        log.error("librdkafka refuses its properties: %s", error.args[0].str())
        return 1


if __name__ == "__main__":
    sys.exit(main())
