"""A real Apache Kafka on this machine for development and tests: one KRaft node, loopback, no containers.

It needs Java 17, and Kafka 4 itself: its jars, fetched once by Maven into a cache, or an installation that
KAFKA_HOME names.

| Variable               | Meaning                                                                       |
|------------------------|-------------------------------------------------------------------------------|
| `KAFKA_HOME`           | an installation of Kafka 4; nothing is fetched then                           |
| `TAILRACE_KAFKA_CACHE` | where fetched jars are kept (`kafka-VERSION/` in it), default `~/.cache/tailrace` |
| `JAVA_HOME`            | the Java to use, else the `java` on PATH                                      |

A data directory holds one server: `server.properties` (written anew at each start), `logs/` (the data),
`kafka.log` (what the server said since its last start) and `kafka.json` (its pid and address while it runs).
"""

import base64
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from tailrace_flows.private_files import open_private, private_directory, write_private
from tailrace_schemas.clock import monotonic_s

from tailrace_infra.ports import free_port, free_ports

__all__ = [
    "KAFKA_VERSION", "KafkaServerError", "RunningKafka", "cache", "copy_dependencies", "fetch_jars", "find_jars",
    "find_java", "running_kafka", "start", "status", "stop",
]  # fmt: skip

KAFKA_VERSION = "4.3.1"
JAVA_VERSION_MIN = 17
FETCH_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 20.0
PORT_TIMEOUT_S = 3.0

_FILES = Path(__file__).parent / "kafka_files"
_JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+ExitOnOutOfMemoryError",
    # A short-lived server: a small heap, quick compilation, shared classes start it in half the time.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
)
_MANAGED = frozenset({
    "process.roles", "node.id", "controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs",
    "controller.listener.names", "inter.broker.listener.name", "listener.security.protocol.map",
})  # fmt: skip

_log = logging.getLogger(__name__)

Progress = Callable[[str], object]


class KafkaServerError(RuntimeError):
    """Kafka cannot be had or did not start: the message says what is missing, or quotes its log."""


@dataclass(frozen=True)
class RunningKafka:
    """A server that was started; it runs on its own until `stop`."""

    bootstrap_servers: str
    pid: int


def find_java() -> str:
    """The absolute path of a Java that can run Kafka 4; `KafkaServerError` if there is none. Takes 0.1 s."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        where = f"in JAVA_HOME ({home})" if home else "on PATH"
        raise KafkaServerError(f"Kafka needs Java {JAVA_VERSION_MIN} or later; there is no java {where}")
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KafkaServerError(f"{java} does not run: {error}") from error
    found = re.search(r'version "(\d+)', answer)
    if found is None or int(found[1]) < JAVA_VERSION_MIN:
        raise KafkaServerError(
            f"Kafka needs Java {JAVA_VERSION_MIN} or later; {java} says: {answer.strip()[:200] or 'nothing'}"
        )
    return os.path.abspath(java)


def find_jars() -> Path | None:
    """The directory of Kafka's jars: that of KAFKA_HOME, or the cache; None when nothing was fetched yet.

    `KafkaServerError` when KAFKA_HOME is set and is not a Kafka 4.
    """
    home = os.environ.get("KAFKA_HOME")
    if not home:
        jars = cache() / f"kafka-{KAFKA_VERSION}"
        return jars if jars.is_dir() else None
    libs = Path(home).absolute() / "libs"
    if not any(libs.glob("kafka_2.1?-4.*.jar")):
        raise KafkaServerError(f"KAFKA_HOME is {home}, which is no Kafka 4: there is no libs/kafka_2.13-4.*.jar in it")
    return libs


def fetch_jars(progress: Progress = _log.info) -> Path:
    """The directory of Kafka's jars, fetched by Maven when `find_jars` finds none (44 MB, once).

    Checksums are verified. All or nothing: the directory has its name only when it is complete.
    """
    jars = find_jars()
    if jars is not None:
        return jars
    jars = cache() / f"kafka-{KAFKA_VERSION}"
    if shutil.which("mvn") is None:
        raise KafkaServerError(
            f"Kafka's jars are not in {jars}, and there is no mvn on PATH to fetch them: "
            "install Maven, or let KAFKA_HOME name an installation of Kafka 4"
        )
    progress(f"fetching Apache Kafka {KAFKA_VERSION} with Maven (44 MB, once) into {jars}")
    copy_dependencies(f"Kafka {KAFKA_VERSION}", _FILES / "pom.xml", jars, {"kafka.version": KAFKA_VERSION})
    return jars


def copy_dependencies(what: str, pom: Path, jars: Path, properties: Mapping[str, str]) -> None:
    """Let Maven put the runtime jars of a pom.xml into the directory `jars`, all or none; `what` is for messages.

    Checksums are verified. `KafkaServerError` when there is no Maven or it fails, with the end of what it said.
    """
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaServerError(f"there is no mvn on PATH to fetch {what}: install Maven")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=jars.parent) as directory:
        target = Path(directory) / "jars"
        command = [
            maven, "-B", "-q", "--strict-checksums", "-f", str(pom),
            "dependency:copy-dependencies", "-DincludeScope=runtime",
            *(f"-D{name}={value}" for name, value in properties.items()), f"-DoutputDirectory={target}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise KafkaServerError(f"Maven did not fetch {what} within {FETCH_TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            raise KafkaServerError(f"Maven could not fetch {what}:\n{_tail(done.stdout + done.stderr)}")
        try:
            target.rename(jars)
        except OSError:
            if not jars.is_dir():  # else another process was faster, with the same jars
                raise


def start(
    data_dir: Path,
    port: int = 9092,
    properties: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 60.0,
    progress: Progress = _log.info,
) -> RunningKafka:
    """Start a server on 127.0.0.1:`port` (0: any free one) and return when it answers.

    Where one already serves this data directory, that one is returned. `properties` are Kafka's own and add
    to or replace those of `kafka_files/server.properties`. The server is detached: it survives this process.
    Takes 2 to 3 s, 1 s more the first time. `KafkaServerError` when Java or the jars are missing, the port is
    taken, or Kafka does not come up within the timeout; nothing is left running then.
    """
    data_dir = data_dir.resolve()
    if "," in str(data_dir):
        raise KafkaServerError(f"{data_dir}: Kafka takes a comma in the path of its data for two directories")
    private_directory(private_directory(data_dir) / "logs")  # Java would make it as the umask says
    with _only_one_start(data_dir):
        running = status(data_dir)
        if running is None:
            java, jars = find_java(), fetch_jars(progress)
            port = _usable_port(port)
            config = _write_config(data_dir, port, properties or {})
            if not (data_dir / "logs" / "meta.properties").exists():
                _format_storage(java, jars, config)
            running = _launch(java, jars, config, f"127.0.0.1:{port}")
        elif port not in (0, int(running.bootstrap_servers.rpartition(":")[2])):
            raise KafkaServerError(f"{data_dir} is already served on {running.bootstrap_servers}; stop that first")
        try:
            _wait_until_ready(running, data_dir, timeout_s, progress)
        except BaseException:  # Ctrl-C included: a server that nobody knows of is not left behind
            stop(data_dir)
            raise
    return running


def status(data_dir: Path) -> RunningKafka | None:
    """The server of this data directory, None when it does not run. It may still be starting up."""
    path = data_dir.resolve() / "kafka.json"
    try:
        running = RunningKafka(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise KafkaServerError(f"{path} is damaged ({error}); remove it when no Kafka runs there") from error
    return running if _process(running.pid, data_dir) else None


def stop(data_dir: Path, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the server of this data directory; False when none was running.

    SIGTERM lets it finish cleanly (0.4 s); SIGKILL follows after the timeout. A process that merely has the
    recorded pid is left alone.
    """
    running = status(data_dir)
    process = _process(running.pid, data_dir) if running else None
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            if not _ended(process, timeout_s):
                process.kill()
                _ended(process, timeout_s)
    (data_dir / "kafka.json").unlink(missing_ok=True)
    return process is not None


@contextmanager
def running_kafka(data_dir: Path, properties: Mapping[str, str] | None = None) -> Iterator[RunningKafka]:
    """A server on a free port for as long as the context lasts; its data is removed then, its log kept."""
    running = start(data_dir, 0, properties)
    try:
        yield running
    finally:
        stop(data_dir)
        shutil.rmtree(data_dir / "logs", ignore_errors=True)


def cache() -> Path:
    """Where fetched jars are kept."""
    return Path(os.environ.get("TAILRACE_KAFKA_CACHE") or "~/.cache/tailrace").expanduser().absolute()


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


@contextmanager
def _only_one_start(data_dir: Path) -> Iterator[None]:
    """Two starts of one data directory at a time would overwrite each other's pid file: the second waits."""
    with open_private(data_dir / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _usable_port(port: int) -> int:
    """The port, or a free one for 0; `KafkaServerError` when it is taken."""
    if port == 0:
        return free_port()
    deadline_s = monotonic_s() + PORT_TIMEOUT_S
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kafka does: TIME_WAIT is no obstacle
        while True:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except (OSError, OverflowError) as error:
                # The threads of a server that was killed hold its port for a while after its process has ended.
                if getattr(error, "errno", 0) != errno.EADDRINUSE or monotonic_s() > deadline_s:
                    raise KafkaServerError(f"Kafka cannot listen on 127.0.0.1:{port}: {error}") from error
            time.sleep(0.1)


def _write_config(data_dir: Path, port: int, properties: Mapping[str, str]) -> Path:
    """Write server.properties: ours, then what this start needs, then the caller's."""
    refused = sorted(_MANAGED & properties.keys())
    if refused:
        raise KafkaServerError(
            f"{', '.join(refused)}: set by Tailrace itself, since it must know the address and the data"
        )
    # The controller's port is nobody else's business and may change at each start.
    controller = next(one for one in free_ports(2) if one != port)
    config = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data_dir / "logs"),
        **properties,
    }
    text = (_FILES / "server.properties").read_text(encoding="utf-8") + "\n# This start\n"
    for key, value in config.items():
        if "\n" in key + value:
            raise KafkaServerError(f"{key!r}: a property is one line")
        escaped = value.replace("\\", "\\\\")
        text += f"{key}={escaped}\n"
    path = data_dir / "server.properties"
    write_private(path, text)  # the caller's properties may hold passwords
    return path


def _format_storage(java: str, jars: Path, config: Path) -> None:
    """Give the data directory a cluster id; harmless when an earlier attempt was cut short."""
    # 16 bytes of hexadecimal digits: encoded, they never start with a dash, which would be an option.
    cluster_id = base64.urlsafe_b64encode(secrets.token_hex(8).encode()).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-c", str(config), "-t", cluster_id]
    done = subprocess.run([java, *_JVM_OPTIONS, "-cp", f"{jars}/*", *tool], capture_output=True, text=True)
    if done.returncode != 0:
        raise KafkaServerError(f"Kafka could not format {config.parent / 'logs'}:\n{_tail(done.stdout + done.stderr)}")


def _launch(java: str, jars: Path, config: Path, bootstrap_servers: str) -> RunningKafka:
    """Start the server in a session of its own and record it."""
    log = str(config.parent / "kafka.log")
    command = [
        java,
        *_JVM_OPTIONS,
        f"-XX:ErrorFile={config.parent}/java-error.log",
        "-cp",
        f"{jars}/*",
        "kafka.Kafka",
        str(config),
    ]
    # Not Popen: its object wants to be waited for, and this server may outlive us.
    pid = os.posix_spawn(
        java,
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    running = RunningKafka(bootstrap_servers, pid)
    write_private(config.parent / "kafka.json", json.dumps(asdict(running)))
    return running


def _wait_until_ready(running: RunningKafka, data_dir: Path, timeout_s: float, progress: Progress) -> None:
    """Return when the server answers a metadata request; `KafkaServerError` when it ends or stays silent."""
    admin = AdminClient(
        {
            "bootstrap.servers": running.bootstrap_servers,
            "log_level": 0,  # it is refused a few times first, which is no news
            "reconnect.backoff.ms": 10,
            "reconnect.backoff.max.ms": 100,
        }
    )
    with suppress(psutil.Error):
        # For an instant after exec a process has no command line, and by that it is recognized.
        while not psutil.Process(running.pid).cmdline():
            time.sleep(0.001)
    started_s = monotonic_s()
    told_s = 0.0
    progress(f"starting Kafka on {running.bootstrap_servers}")
    while (waited_s := monotonic_s() - started_s) < timeout_s:
        if _process(running.pid, data_dir) is None:
            raise KafkaServerError(f"Kafka ended while it started; its log says:\n{_log_tail(data_dir)}")
        with suppress(KafkaException):
            if admin.list_topics(timeout=0.25).brokers:
                return
        if waited_s - told_s >= 5:
            told_s = waited_s
            progress(f"waiting for Kafka on {running.bootstrap_servers} ({waited_s:.0f} s)")
    raise KafkaServerError(f"Kafka did not answer within {timeout_s:g} s; its log says:\n{_log_tail(data_dir)}")


def _log_tail(data_dir: Path) -> str:
    path = data_dir / "kafka.log"
    return _tail(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ""


def _process(pid: int, data_dir: Path) -> psutil.Process | None:
    """The process, if it is the server of this directory: its command line names our server.properties.

    A recycled pid is told apart by that, whatever the clocks did meanwhile; a zombie has no command line.
    """
    try:
        process = psutil.Process(pid)
        ours = str(data_dir.resolve() / "server.properties") in process.cmdline()
    except psutil.Error:
        return None
    return process if ours else None


def _ended(process: psutil.Process, timeout_s: float) -> bool:
    """Wait for the end of a process, our child or not. A zombie that its parent ignores has ended."""
    deadline_s = monotonic_s() + timeout_s
    while True:
        with suppress(psutil.TimeoutExpired):
            process.wait(0.1)  # reaps it if it is our child
            return True
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        if monotonic_s() >= deadline_s:
            return False
