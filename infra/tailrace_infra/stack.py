"""The embedded stack: a broker, ClickHouse, the flow and the agent, each its own process on loopback.

They know each other by a bootstrap address and a URL only, exactly as in production. `DIR/run.json` says where they
listen while they run, so that other commands on the same data directory find them.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pydantic import SecretStr
from tailrace_flows.directory_lock import is_locked, lock
from tailrace_flows.names import joined_name
from tailrace_flows.private_files import open_private, private_directory, write_private
from tailrace_flows.settings import Settings
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from tailrace_infra.child import Child, ChildError, start_child
from tailrace_infra.config_command import default_config, publish_config, stored_config
from tailrace_infra.topics import ensure_topics

__all__ = [
    "Endpoints",
    "Stack",
    "embedded_stack",
    "names_servers",
    "running_endpoints",
    "start_clickhouse",
    "trim_logs",
]

log = logging.getLogger(__name__)

CLICKHOUSE_PORT = 18123
CLICKHOUSE_START_S = 60.0
"""It replays what a kill left unfinished."""
FLOW_STOP_S = 8.0
LEFT_OVER_S = 10.0
"""Processes of a stack that was killed end within this time."""
LEFT_OVER_POLL_S = 0.1
LOG_BYTES_MAX = 10 << 20
"""A client that repeats a query that fails writes 400 bytes each time."""


@dataclass(frozen=True)
class Endpoints:
    """Where a running embedded stack listens."""

    bootstrap_servers: str
    clickhouse_url: str
    pid: int

    def environment(self) -> dict[str, str]:
        """The settings that point a process at this stack."""
        return {
            "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "TAILRACE_CLICKHOUSE__URL": self.clickhouse_url,
            # Neither has users: whoever else may listen there is not told the passwords of other servers.
            "TAILRACE_KAFKA__SECURITY_PROTOCOL": "PLAINTEXT",
            "TAILRACE_CLICKHOUSE__USER": "default",
            "TAILRACE_CLICKHOUSE__PASSWORD": "",
        }

    def apply(self, settings: Settings) -> Settings:
        """The settings of a client of this stack."""
        return settings.model_copy(
            update={
                "kafka": settings.kafka.model_copy(
                    update={"bootstrap_servers": self.bootstrap_servers, "security_protocol": "PLAINTEXT"}
                ),
                "clickhouse": settings.clickhouse.model_copy(
                    update={"url": self.clickhouse_url, "user": "default", "password": SecretStr("")}
                ),
            }
        )


def names_servers(settings: Settings) -> bool:
    """Whether the settings say which servers are meant, rather than a stack in the default directory."""
    return "bootstrap_servers" in settings.kafka.model_fields_set or "url" in settings.clickhouse.model_fields_set


def running_endpoints(data_dir: Path) -> Endpoints | None:
    """The endpoints of the stack that runs on this directory, if one does.

    What a killed stack left behind is recognised by its lock, which the kernel has freed: its process id may be
    another process' by now.
    """
    try:
        found = Endpoints(**json.loads((data_dir / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if is_locked(data_dir / "stack") else None


def start_clickhouse(data_dir: Path, port: int) -> Child:
    """The embedded ClickHouse on the tables of this directory; its log goes to `DIR/logs/clickhouse.log`.

    Raises:
        ChildError: it did not come up: the port is taken, or another process uses the directory.
    """
    logs = _logs(data_dir)
    return start_child(
        "tailrace_infra.clickhouse", "--data-dir", str(data_dir / "clickhouse"), "--port", str(port),
        log=logs / "clickhouse.log", timeout_s=CLICKHOUSE_START_S,
    )  # fmt: skip


def _logs(data_dir: Path) -> Path:
    logs = private_directory(data_dir / "logs")
    trim_logs(logs)
    return logs


def trim_logs(logs: Path) -> None:
    """Makes `NAME.log.1` of the last LOG_BYTES_MAX of each log that is longer, and begins that anew.

    The processes that write go on: they append. What they write in the moment between is lost, as with logrotate's
    `copytruncate`. Where the disk takes nothing the log stays as it is.
    """
    for path in logs.glob("*.log"):
        with suppress(OSError):
            if path.stat().st_size > LOG_BYTES_MAX:
                older = path.with_name(f"{path.name}.1")
                older.unlink(missing_ok=True)  # makes room
                with path.open("rb") as log, open_private(older, "wb") as copy:
                    log.seek(-LOG_BYTES_MAX, os.SEEK_END)
                    shutil.copyfileobj(log, copy)
                os.truncate(path, 0)


class Stack:
    """A running embedded stack; made by `embedded_stack`."""

    def __init__(self, endpoints: Endpoints, settings: Settings, data_dir: Path) -> None:
        self.endpoints = endpoints
        self.settings = settings
        self.data_dir = data_dir
        self.children: dict[str, Child] = {}

    def start(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Starts a process of the stack; its log goes to `DIR/logs/NAME.log`.

        Raises:
            ChildError: it ended before it was ready; quotes its log.
        """
        path = self.data_dir / "logs" / f"{name}.log"
        child = start_child(
            module, *arguments, log=path, environment={**self.endpoints.environment(), **(environment or {})}
        )
        self.children[name] = child
        return child

    def stop(self, name: str, timeout_s: float = 10.0) -> int | None:
        """Stops a process; its exit code, or None if it was not running."""
        child = self.children.pop(name, None)
        return None if child is None else child.stop(timeout_s)

    def failed(self) -> str | None:
        """The name of a process that has ended by itself."""
        return next((name for name, child in self.children.items() if child.process.poll() is not None), None)

    def trim_logs(self) -> None:
        """As the function; to be called again and again."""
        trim_logs(self.data_dir / "logs")

    def ends(self) -> list[IO[bytes]]:
        """What can be read as soon as a process has ended."""
        return [child.end for child in self.children.values()]

    def log_tail(self, name: str) -> str:
        """The last lines of a process' log."""
        try:
            lines = (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-5:])


@contextmanager
def embedded_stack(
    settings: Settings,
    data_dir: Path,
    *,
    clickhouse_port: int = CLICKHOUSE_PORT,
    flow: bool = True,
    alerts: bool = False,
    say: Callable[[str], None] = log.info,
) -> Iterator[Stack]:
    """Runs the stack while the context lasts; afterwards nothing of it is left running.

    The flow drains first, so that what was read is stored; then ClickHouse and the broker stop. With `alerts`, rules,
    objectives, health and anomalies are judged too, by what was last applied to the directory, or else by the shipped
    defaults.

    Raises:
        ValueError: what was last applied cannot be read.
        LockedError: another stack uses the directory.
        ChildError: a part did not come up; quotes its log.
    """
    logs = _logs(data_dir)
    with lock(data_dir / "stack", "a directory has one stack. Stop that one, or choose another --data-dir."):
        broker = start_child("tailrace_infra.broker", log=logs / "broker.log")
        try:
            say("ClickHouse (chDB) is opening its directory ...")
            clickhouse = _patiently(lambda: start_clickhouse(data_dir, clickhouse_port))
        except BaseException:  # Ctrl-C included: nothing that was started is left behind
            broker.stop()
            raise
        url = f"http://127.0.0.1:{clickhouse.ready['port']}"
        endpoints = Endpoints(broker.ready["bootstrap_servers"], url, os.getpid())
        stack = Stack(endpoints, endpoints.apply(settings), data_dir)
        stack.children |= {"broker": broker, "clickhouse": clickhouse}
        run_file = data_dir / "run.json"
        try:
            ensure_topics(stack.settings.kafka.client(), stack.settings.kafka.topics)
            with connect(stack.settings.clickhouse) as client:
                migrate(client, stack.settings.clickhouse)
            if flow:
                say("the flow is starting ...")
                _start_flow(stack, "flow", "windows")
            if alerts:
                applied = stored_config(data_dir)
                publish_config(stack.settings.kafka, default_config() if applied is None else applied)
                _start_flow(stack, "alerts", "alerts,slo,health,anomaly")
            write_private(run_file, json.dumps(asdict(endpoints)))
            yield stack
        finally:
            run_file.unlink(missing_ok=True)
            stack.stop("agent")
            stack.stop("flow", FLOW_STOP_S)
            stack.stop("alerts", FLOW_STOP_S)
            stack.stop("clickhouse")
            stack.stop("broker")


def _start_flow(stack: Stack, part: str, flow: str) -> None:
    """Starts a part of the stack that is a flow, or several in one."""
    directory = stack.data_dir / "recovery"
    own = directory / joined_name(flow.split(","))
    until_s = monotonic_s() + LEFT_OVER_S
    while is_locked(own) and monotonic_s() < until_s:
        threading.Event().wait(LEFT_OVER_POLL_S)
    recovery = {
        "TAILRACE_RECOVERY__DIRECTORY": str(directory),
        # The embedded broker keeps 5 MB a partition: too little to read open windows from it again.
        "TAILRACE_RECOVERY__CONTENTS": "snapshot",
        # Senders of samples go on only as epochs commit; nobody waits for the others', which cost.
        "TAILRACE_RECOVERY__EPOCH_S": "0.25" if flow == "windows" else "1",
    }
    stack.start(part, "tailrace_infra.run", flow, environment=recovery)


def _patiently(start: Callable[[], Child]) -> Child:
    """Starts a process whose predecessor, of a stack that was killed, may still be ending."""
    until_s = monotonic_s() + LEFT_OVER_S
    while True:
        try:
            return start()
        except ChildError as error:
            if "is in use by process" not in str(error) or monotonic_s() > until_s:
                raise
            threading.Event().wait(LEFT_OVER_POLL_S)
