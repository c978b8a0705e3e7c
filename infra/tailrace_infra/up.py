"""`tailrace up`: the embedded stack, the agent on this host, and the live view."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.console import Console
from rich.live import Live
from tailrace_flows.settings import Settings
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect
from urllib3.exceptions import HTTPError

from tailrace_infra.agent import agent_options
from tailrace_infra.child import ChildError
from tailrace_infra.errors import EXPECTED, reason
from tailrace_infra.live import line, screen
from tailrace_infra.overview import LagReader, Overview, read_overview
from tailrace_infra.signals import StopSignal
from tailrace_infra.stack import FLOW_STOP_S, Stack, embedded_stack

__all__ = ["run_up"]

log = logging.getLogger(__name__)

SCREEN_S = 2.0
LINE_S = 10.0
RATE_S = 10.0
"""What the rate is taken over, at least: the agent sends every few seconds."""
FIGURES_S = 10
"""No signal is heard while ClickHouse is asked: it must not take as long as other queries may."""
CATCH_UP_S = 10.0
CATCH_UP_POLL_S = 0.2
DEATH_S = 1.0


class _InterruptedError(Exception):
    """SIGINT or SIGTERM came."""


def run_up(
    settings: Settings,
    data_dir: Path,
    duration_s: float | None,
    interval_s: float | None,
    clickhouse_port: int,
    fail: Callable[[str], NoReturn],
) -> None:
    """Runs until Ctrl-C, SIGTERM or `duration_s`; then everything that was collected is stored.

    `fail` ends the command with a message.
    """
    console = Console(stderr=True)

    with StopSignal() as stop:

        def say(text: str) -> None:
            # Between the steps of starting up a signal is noticed here.
            if stop.is_set():
                raise _InterruptedError
            console.print(text, style="dim", highlight=False, soft_wrap=True)

        try:
            with embedded_stack(settings, data_dir, clickhouse_port=clickhouse_port, alerts=True, say=say) as stack:
                stack.start("agent", "tailrace_infra.agent", "--child", *agent_options(interval_s))
                say(f"Kafka's protocol is on {stack.endpoints.bootstrap_servers}")
                say(f"ClickHouse's HTTP interface is on {stack.endpoints.clickhouse_url}")
                query = "SELECT metric, count, p99 FROM windows LIMIT 10"
                say(f'try: tailrace sql --data-dir {data_dir} "{query}"')
                try:
                    _watch(stack, stop, duration_s, console)
                    console.print("stopping: storing what was collected ...", style="dim")
                    _finish(stack)
                except EXPECTED as error:
                    # A part that has died shows first as a connection refused.
                    stop.wait(DEATH_S, stack.ends())
                    if failed := stack.failed():
                        raise _PartFailedError(_ended(stack, failed)) from error
                    raise
        except _PartFailedError as error:
            fail(str(error))
        except (*EXPECTED, ValueError, _InterruptedError) as error:
            # A child may have died of the terminal's Ctrl-C in the instant before it had its own session.
            if not isinstance(error, _InterruptedError) and not (isinstance(error, ChildError) and stop.is_set()):
                fail(reason(error))
            console.print("stopped before everything was up", style="dim")


class _PartFailedError(Exception):
    """A process of the stack ended by itself, or did not store everything."""


def _watch(stack: Stack, stop: StopSignal, duration_s: float | None, console: Console) -> None:
    """Shows what goes on until it is time to end."""
    until_s = None if duration_s is None else monotonic_s() + duration_s
    period_s = SCREEN_S if console.is_terminal else LINE_S
    with _figures(stack) as read, Live(console=console, auto_refresh=False, transient=False) as live:
        past: deque[tuple[float, int]] = deque()
        while until_s is None or monotonic_s() < until_s:
            remaining_s = period_s if until_s is None else min(period_s, until_s - monotonic_s())
            if stop.wait(remaining_s, stack.ends()):
                return
            failed = stack.failed()
            if failed is not None:
                raise _PartFailedError(_ended(stack, failed))
            stack.trim_logs()
            overview = read()
            if overview is None:
                continue
            now_s, samples = monotonic_s(), overview.counters.get("samples", 0)
            past.append((now_s, samples))
            while len(past) > 2 and now_s - past[1][0] >= RATE_S:
                past.popleft()
            rate = (samples - past[0][1]) / (now_s - past[0][0]) if len(past) > 1 else 0.0
            if console.is_terminal:
                live.update(screen(overview, rate, stack.endpoints.clickhouse_url, console.height), refresh=True)
            else:
                log.info("%s", line(overview, rate))


@contextmanager
def _figures(stack: Stack) -> Iterator[Callable[[], Overview | None]]:
    """A function that reads the figures; None while ClickHouse is busy or away."""
    lag = LagReader(stack.settings.kafka)
    try:
        with connect(stack.settings.clickhouse, read_timeout_s=FIGURES_S) as client:

            def read() -> Overview | None:
                try:
                    return read_overview(client, lag)
                except (ClickHouseError, HTTPError, OSError) as error:
                    log.warning("no figures: %s", reason(error).splitlines()[0])
                    return None

            yield read
    finally:
        lag.close()


def _ended(stack: Stack, name: str) -> str:
    log_tail = stack.log_tail(name)
    path = stack.data_dir / "logs" / f"{name}.log"
    return f"{name} has ended by itself; " + (f"{path} says:\n{log_tail}" if log_tail else f"{path} is empty")


def _finish(stack: Stack) -> None:
    """Stops the agent, waits until the flow has read everything, and drains it.

    Raises:
        _PartFailedError: something of it is not stored.
    """
    stack.stop("agent")
    left = _catch_up(stack)
    if failed := stack.failed():
        raise _PartFailedError(_ended(stack, failed))
    if stack.stop("flow", FLOW_STOP_S):
        raise _PartFailedError(f"the flow failed while it stored its last windows:\n{stack.log_tail('flow')}")
    if left:
        raise _PartFailedError(
            f"{left:,} records were not read within {CATCH_UP_S:g} s; the embedded broker has them in memory only, "
            "so they are lost"
        )


def _catch_up(stack: Stack) -> int:
    """Waits until the flow has read everything; how many records it has not, 0 if a second signal cut it short."""
    left = 0
    lag = LagReader(stack.settings.kafka)
    try:
        with StopSignal() as at_once:
            until_s = monotonic_s() + CATCH_UP_S
            while monotonic_s() < until_s:
                found = lag.read()
                left = found.records if found else 0
                if not left or stack.failed():
                    break
                if at_once.wait(CATCH_UP_POLL_S):
                    log.warning("stopping at once; %d records are not read", left)
                    return 0
    finally:
        lag.close()
    return left
