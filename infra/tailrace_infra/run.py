"""Flow processes: one, or a Bytewax cluster of several on this host.

`python -m tailrace_infra.run` is one such process, started by `tailrace run` and `tailrace up`; its settings come
from the environment, so that no secret stands in an argument list.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import Consumer, KafkaException
from tailrace_flows import broker_clock, host_clock, recovery, runner
from tailrace_flows.all import compose
from tailrace_flows.core.feed import PoisonedError
from tailrace_flows.directory_lock import LockedError, lock
from tailrace_flows.names import FLOWS, joined_name
from tailrace_flows.private_files import private_umask
from tailrace_flows.settings import KafkaSettings, Settings
from tailrace_schemas.kafka_errors import advice
from tailrace_sinks.clickhouse import WriteRejectedError, connect
from tailrace_sinks.kafka import about, is_hopeless
from tailrace_sinks.rollup import rollup
from urllib3.exceptions import HTTPError

from tailrace_infra.check import check_kafka
from tailrace_infra.child import Child, ChildError, announce_ready, exit_with_parent, start_child
from tailrace_infra.errors import kafka_reason, reason
from tailrace_infra.logs import configure_logging
from tailrace_infra.ports import free_ports
from tailrace_infra.signals import StopSignal

__all__ = ["FlowError", "names_of", "run_flow"]

log = logging.getLogger(__name__)

CLOCK_BACK_CODE, CLOCK_AHEAD_CODE = 75, 76
"""How a process of a cluster ends that must start anew since the host's clock was set back, or rightly ahead."""
_OFFSET_VARIABLE = "TAILRACE_CLOCK_OFFSET_US"
"""In the environment of a process that starts anew: `host_clock.offset_us` of the one before."""
_AGAIN_VARIABLE = "TAILRACE_STARTED_AGAIN"
"""In the environment of a process that has started anew: who started it first knows that it is ready."""
STOP_TIMEOUT_S = 8.0
TOPICS_TIMEOUT_S = 10.0
ROLLUP_S = 300


class FlowError(Exception):
    """The flow ended by itself: the message says why, for people."""


def names_of(flow: str) -> list[str]:
    """The flows that `windows`, `alerts,slo` or `all` mean.

    Raises:
        ValueError: one of them is none.
    """
    names = list(FLOWS) if flow == "all" else flow.split(",")
    if unknown := [name for name in names if name not in FLOWS]:
        raise ValueError(f"{unknown[0]!r} is no flow; there are: {', '.join(FLOWS)}, all")
    return names


def recovery_of(flow: str, settings: Settings) -> Path:
    """The directory of a flow's state."""
    return settings.recovery.directory / joined_name(names_of(flow))


def run_flow(
    flow: str,
    settings: Settings,
    processes: int = 1,
    duration_s: float | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Runs a flow, or several in one (`alerts,slo`), until SIGTERM, SIGINT or `duration_s`. Main thread only.

    Raises:
        LockedError: another instance uses the recovery directory.
        FlowError: the flow failed, Kafka does not answer or has no topics, or the recovery directory
            cannot be written to.
    """
    # Here, because the engine would take half a minute to notice, and put a panic of its own before our message.
    private_umask()
    found = check_kafka(settings)
    if not found.ok:
        raise FlowError(found.detail)
    _check_topics(settings.kafka, names_of(flow))
    directory = recovery_of(flow, settings)
    try:
        with lock(directory) as held:
            if processes == 1:
                _run_here(flow, settings, 0, None, duration_s, ready)
            else:
                _run_cluster(flow, settings, processes, duration_s, held)
    except OSError as error:
        if recovery.no_space(error, directory):  # for the lock, which is a file too
            raise FlowError(explain(error, settings, directory)) from error
        where = Path(error.filename).resolve() if isinstance(error.filename, str) else None
        if where and (where == directory.resolve() or where in directory.resolve().parents):
            raise FlowError(f"{reason(error)} - recovery.directory must be one that can be written to") from error
        raise


def _check_topics(kafka: KafkaSettings, names: Sequence[str]) -> None:
    """Raises FlowError where the topic that a flow reads first is not there, or not for this user."""
    topics = {kafka.topics.samples if name == "windows" else kafka.topics.config for name in names}
    consumer = Consumer({**kafka.client(), "group.id": kafka.group_id, "enable.auto.commit": False, "log_level": 0})
    try:
        for topic in sorted(topics):
            error = consumer.list_topics(topic, TOPICS_TIMEOUT_S).topics[topic].error
            if error is not None and is_hopeless(error):
                raise about(topic, error)
    except KafkaException as error:
        raise FlowError(kafka_reason(kafka, error)) from error
    finally:
        consumer.close()


def _run_here(
    flow: str,
    settings: Settings,
    process: int,
    addresses: list[str] | None,
    duration_s: float | None,
    ready: Callable[[], object],
) -> None:
    names = names_of(flow)
    build = compose(names)
    if process == 0 and "windows" in names:
        runner.start_deaf(threading.Thread(target=_roll_up, args=(settings,), name="rollup", daemon=True))
    offset = os.environ.pop(_OFFSET_VARIABLE, None)
    host_clock.begin(_broker_offset_us(settings) if offset is None else int(offset))
    try:
        runner.run(
            settings, build, recovery_of(flow, settings), process=process, addresses=addresses,
            duration_s=duration_s, ready=ready,
        )  # fmt: skip
    except runner.ClockSetError as error:
        log.warning("%s", error)
        logging.shutdown()
        if addresses:
            os._exit(CLOCK_AHEAD_CODE if error.ahead else CLOCK_BACK_CODE)
        # The same process goes on, for whoever supervises it. The lock is free with its file, which is not inherited.
        environment = {**os.environ, _AGAIN_VARIABLE: "1", _OFFSET_VARIABLE: str(host_clock.offset_us())}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - our own command
    except Exception as error:
        raise FlowError(explain(error, settings, recovery_of(flow, settings))) from error


def _broker_offset_us(settings: Settings) -> int | None:
    return broker_clock.offset_us(settings.kafka.client(), settings.kafka.topics.clock)


def _roll_up(settings: Settings) -> None:
    """Hours and days out of minutes, for as long as the process runs. Interrupted anywhere, the next run makes up."""
    never = threading.Event()
    while not never.wait(ROLLUP_S):
        try:
            with connect(settings.clickhouse) as client:
                merged = rollup(client, host_clock.now_us())
        except (ClickHouseError, HTTPError, OSError) as error:
            log.warning("rollup: again in %d s: %s", ROLLUP_S, str(error).splitlines()[0])
        else:
            log.info("rollup: %d hours and days", merged)


def explain(error: BaseException, settings: Settings, directory: Path) -> str:
    """The root of a chain of errors, in a sentence that says what to do where that is known.

    `directory`: of the flow's state.
    """
    if recovery.no_space(error, directory):
        return (
            f"no space left on the disk of the recovery directory {directory.resolve()}: free some and start again, or "
            "stop, move the directory to another disk and set recovery.directory; what is in it is whole, and the flow "
            "goes on from there"
        )
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    root = next((one for one in chain if isinstance(one, (PoisonedError, WriteRejectedError))), chain[-1])
    text = str(root) or type(root).__name__
    if isinstance(root, KafkaException) and root.args and advice(str(root)):
        return reason(root)
    if "UNKNOWN_TOPIC" in text:
        text += f" - `tailrace topics` creates the topics on {settings.kafka.bootstrap_servers}"
    elif "_TRANSPORT" in text or "timed out" in text.lower():
        text += f" - is Kafka at {settings.kafka.bootstrap_servers}?"
    return text


def _run_cluster(flow: str, settings: Settings, processes: int, duration_s: float | None, held: int) -> None:
    """Starts the processes, waits for the end of any, and stops the others: a cluster lives and dies as one.

    Where they end since the host's clock was set, they are started anew.

    `held`: the lock's file, which they inherit: if this process is killed, they take seconds to end, and are not alone
    on their state if the next start does not wait for them.
    """
    duration = [] if duration_s is None else ["--duration", str(duration_s)]
    directory = recovery_of(flow, settings)
    children: list[Child] = []
    host_clock.begin(_broker_offset_us(settings))
    with StopSignal(last=True) as stop:
        try:
            codes = [CLOCK_BACK_CODE]
            while (set_anew := not {CLOCK_AHEAD_CODE, CLOCK_BACK_CODE}.isdisjoint(codes)) and not stop.is_set():
                host_clock.begin(None if CLOCK_AHEAD_CODE in codes else host_clock.offset_us())
                environment = {_OFFSET_VARIABLE: str(host_clock.offset_us())}
                children.clear()
                try:
                    # Here, since they do not know when all of those before are gone.
                    recovery.prepare_recovery(directory)
                except Exception as error:
                    raise FlowError(explain(error, settings, directory)) from error
                addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(processes))
                for process in range(processes):
                    arguments = [flow, "--process", str(process), "--addresses", addresses, *duration]
                    child = start_child("tailrace_infra.run", *arguments, environment=environment, pass_fds=(held,))
                    children.append(child)
                stop.wait(None, [child.end for child in children])
                for child in children:
                    child.process.terminate()
                codes = [child.stop(STOP_TIMEOUT_S) for child in children]
            if any(codes) and not set_anew:
                raise FlowError(f"a process of the cluster failed (exit codes {codes}); its log is above")
        except ChildError:
            if not stop.is_set():  # else Ctrl-C met it in the instant before it had its own session
                raise
        finally:
            for child in children:
                child.stop()


def main() -> None:
    """One flow process."""
    parser = argparse.ArgumentParser(prog="python -m tailrace_infra.run", description=main.__doc__)
    parser.add_argument("flow")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--addresses", default="")
    parser.add_argument("--duration", type=float)
    options = parser.parse_args()
    configure_logging()
    private_umask()
    exit_with_parent()
    settings = Settings()

    def ready() -> None:
        if _AGAIN_VARIABLE in os.environ:  # a second line would be taken for the end of its stdout
            return
        announce_ready(recovery=str(recovery_of(options.flow, settings).resolve()))

    try:
        if options.addresses:
            _run_here(options.flow, settings, options.process, options.addresses.split(","), options.duration, ready)
        else:
            run_flow(options.flow, settings, duration_s=options.duration, ready=ready)
    except (FlowError, LockedError) as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
