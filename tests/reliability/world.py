"""The whole pipeline, each part a process that can be killed and is started again; and what must come of it.

The oracle is worked out from what Kafka has confirmed, which is read back from the topic of samples, in plain Python.
"""

import os
import subprocess
import sys
import threading
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient
from tailrace_flows.config_topic import publish
from tailrace_infra import kafka
from tailrace_infra.ports import free_port
from tailrace_producers.replay import CommittedOffsets
from tailrace_schemas.alerts import AlertEvent
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.cloudevents import read_event, read_notification
from tailrace_schemas.config import load, record_of
from tailrace_schemas.config.health import HEARTBEAT_WITHIN_S
from tailrace_schemas.deadletter import decode_dead_letter
from tailrace_schemas.notifications import Notification
from tailrace_schemas.samples import SampleBatch, decode
from tailrace_sinks.kafka import KafkaWriter
from tailrace_sinks.rollup import rollup

from tests.infra.canaries import canary
from tests.reliability.traffic import WINDOW_S, Event, S, Traffic, command
from tests.system.harness import Bench, bench
from tests.system.workload import Workload, assert_same, expected_rows, stored_rows

__all__ = [
    "Broker", "Process", "World", "alert_events", "check_alerts", "check_notifications", "check_objective",
    "check_rollups", "check_rows", "configure", "counters_of_windows", "delivered", "finish", "judge_statuses",
    "notifications", "python", "starts_on_window", "told", "unexpected", "why_no_kafka",
]  # fmt: skip

PATIENCE_S = 240.0
"""For anything to happen: the machine may be busy with something else."""
EDGE_S = 300
"""The buckets of an objective's period of a day; of a longer one longer."""
SECRETS = {"TAILRACE_CLICKHOUSE__PASSWORD": canary("clickhouse"), "HOOK_TOKEN": canary("hook")}
"""What all processes are given; the embedded ClickHouse takes any password."""
OF_WINDOWS = ("samples", "late_samples", "duplicate_batches", "duplicate_samples", "missing_batches", "gap_records",
              "recovered_batches", "series_limit_samples", "ended")  # fmt: skip
"""Counters of the window flow, besides `dead_letters.*`."""


def why_no_kafka() -> str:
    """Why no real Kafka can be run here; empty: it can."""
    try:
        kafka.find_java()
        return "" if kafka.find_jars() else "Kafka's jars are not here: `tailrace kafka start` fetches them once"
    except kafka.KafkaServerError as error:
        return str(error)


def starts_on_window(at_us: int) -> int:
    """The last window boundary before a time."""
    return at_us // (10 * S) * 10 * S


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


class Process:
    """A process that is killed and started again."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.address = ""
        """Of a broker."""
        self._argv, self._environment = argv, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.done = False
        """It is not started again."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def code(self) -> int | None:
        """Of the last exit, if it is not running."""
        return self._process.poll() if self._process else None

    def state(self) -> str:
        """What it says of itself, for the message of a failure."""
        return ""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> bool:
        """SIGKILL; whether there was something to kill."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        process.wait()
        return True

    def signal(self, number: int) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code, None as -9 where it did not end by itself."""
        self.done = True
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


class Broker(Process):
    """A real Kafka, on the same port again after a kill."""

    def __init__(self, directory: Path, properties: Mapping[str, str] | None = None) -> None:
        super().__init__("broker", [], {}, directory / "kafka.log")
        self.directory = directory
        self._properties = {"offsets.topic.num.partitions": "4", **(properties or {})}

    @property
    def pid(self) -> int | None:
        running = kafka.status(self.directory)
        return running.pid if running else None

    @property
    def code(self) -> int | None:
        return None if self.pid else 1

    def start(self) -> None:
        port = int(self.address.rpartition(":")[2]) if self.address else free_port()
        self.address = kafka.start(self.directory, port, self._properties, timeout_s=PATIENCE_S).bootstrap_servers

    def kill(self) -> bool:
        pid = self.pid
        if pid is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.kill()
            process.wait(PATIENCE_S)
        return True

    def stop(self, timeout_s: float = 60.0) -> int:
        self.done = True
        kafka.stop(self.directory, timeout_s)
        return 0


@dataclass
class World:
    """See the module. Made by `World.of`."""

    bench: Bench
    parts: dict[str, Process] = field(default_factory=dict)
    """By name, the broker and ClickHouse among them."""
    ended: Counter[str] = field(default_factory=Counter)
    """Starts after an end that nobody asked for: of what cannot begin while what it needs is away."""
    _closing: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def of(
        cls, directory: Path, prefix: str, *, brokers: Sequence["Broker | Process"] = (), replication: int = 1,
        contents: str = "replay", **environment: str,
    ) -> Iterator["World"]:  # fmt: skip
        """A ClickHouse, topics and tables; no flow yet. `brokers`: in place of a Kafka of its own."""
        brokers = brokers or [Broker(directory / "kafka")]
        clickhouse = Process(
            "clickhouse", python("-m", "tailrace_infra.clickhouse", "--data-dir", str(directory / "clickhouse"),
                                 "--port", str(port := free_port())), {}, directory / "clickhouse.log",
        )  # fmt: skip
        try:
            for broker in brokers:
                broker.start()
            clickhouse.start()
            _await_http(port, clickhouse)
            addresses = ",".join(broker.address for broker in brokers)
            _await_brokers(addresses, len(brokers))
            with bench(addresses, f"http://127.0.0.1:{port}", directory, prefix, contents, replication) as b:
                b.environment |= {"TAILRACE_RECOVERY__EPOCH_S": "0.5", **SECRETS, **environment}
                world = cls(b, {**{broker.name: broker for broker in brokers}, "clickhouse": clickhouse})
                watcher = threading.Thread(target=world._watch, name="watch")
                watcher.start()
                try:
                    yield world
                finally:
                    world._closing.set()
                    watcher.join()
                    for part in reversed(list(world.parts.values())):
                        part.kill()
        finally:
            for part in (clickhouse, *brokers):
                part.kill()

    def add(self, name: str, argv: list[str], **environment: str) -> Process:
        """Starts a part, and again whenever it ends with an error."""
        part = Process(name, argv, {**self.bench.environment, **environment}, self.bench.directory / f"{name}.log")
        part.start()
        self.parts[name] = part
        return part

    def add_flow(self, name: str, flow: str, **environment: str) -> Process:
        return self.add(name, python("-m", "tailrace_infra.run", flow), **environment)

    def add_traffic(self, traffic: Traffic) -> Process:
        """The sender; its end with code 0 is its last."""
        confirmed = self.bench.directory / "confirmed"
        return self.add("sender", command(traffic, self.bench.settings.kafka.topics.samples, confirmed))

    def until_judging(self, flow: str) -> None:
        """Until a flow of alerts has begun: its objectives have read their past, and what comes from now on is judged.

        It has committed then, and so stored what it knows; a kill takes it no further back.
        """
        kafka = self.bench.settings.kafka
        group = f"{kafka.topic_prefix}-{flow.replace(',', '_')}"
        with CommittedOffsets(kafka.bootstrap_servers, kafka.topics.aggregates, group) as committed:
            self.until(lambda: any(committed(range(4)).values()), f"{flow} has begun")

    def confirmed(self) -> int:
        """Seconds of the traffic that Kafka has confirmed."""
        path = self.bench.directory / "confirmed"
        return int(path.read_text()) if path.exists() else 0

    def _watch(self) -> None:
        """Starts again what has ended, as a supervisor does: at once after a kill, else after half a second."""
        starting: dict[str, threading.Thread] = {}
        while not self._closing.wait(0.05):
            for name, part in list(self.parts.items()):
                if part.done or part.pid is not None or (name in starting and starting[name].is_alive()):
                    continue
                if (code := part.code) == 0:
                    part.done = name == "sender"
                    if part.done:
                        continue
                own = code is not None and code >= 0 and name != "broker"
                self.ended[name] += own
                starting[name] = threading.Thread(target=self._start, args=(part, 0.5 if own else 0.0))
                starting[name].start()
        for thread in starting.values():
            thread.join()

    def _start(self, part: Process, after_s: float) -> None:
        if self._closing.wait(after_s) or part.done:
            return
        try:
            part.start()
        except kafka.KafkaServerError:
            self.ended[part.name] += 1  # and again

    def until(
        self, attempt: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, *, every_s: float = 0.5
    ) -> Any:
        """The first true answer; an error of Kafka or ClickHouse, which may be away, is none."""
        deadline_s = monotonic_s() + timeout_s
        said = ""
        while True:
            try:
                if answer := attempt():
                    return answer
            except Exception as error:  # noqa: BLE001 - the parts are being killed meanwhile
                said = str(error)[:300]
            if monotonic_s() > deadline_s:
                raise AssertionError(f"{what}: not within {timeout_s:g} s. {said}\n{self.tails()}")
            self._closing.wait(every_s)

    def tails(self, lines: int = 6) -> str:
        """The ends of all logs, and what the parts say of themselves."""
        found = []
        for name, part in self.parts.items():
            if part.log.exists():
                text = [line[:500] for line in part.log.read_text(errors="replace").splitlines()[-lines:]]
                found.append("\n".join([f"-- {name}, pid {part.pid}{part.state()}", *text]))
        return "\n".join(found)


def configure(b: Bench, text: str) -> None:
    """Puts a configuration in force."""
    records = [record_of(item) for item in load([("rules.yaml", text)]).items]
    publish(KafkaWriter(b.settings.kafka.client()), b.settings.kafka.topics.config, records)


# -- the oracle -------------------------------------------------------------------------------------


def delivered(b: Bench, records: Iterable[Message] | None = None) -> Workload:
    """What Kafka has, or these records: each batch once, and how often it had what."""
    made = Workload()
    seen: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for record in b.read_topic(b.settings.kafka.topics.samples) if records is None else records:
        batch = decode(record.value())
        if not isinstance(batch, SampleBatch):
            made.counters[f"dead_letters.{batch.reason}"] += 1
            continue
        sequences = seen[batch.service, batch.stream, batch.producer_id]
        if batch.sequence in sequences:
            made.counters["duplicate_batches"] += 1
            made.counters["duplicate_samples"] += batch.samples
            continue
        if batch.sequence >= 0:
            sequences.add(batch.sequence)
        index, offset = array("I", bytes(batch.series_index)), array("i", bytes(batch.time_offset_us))
        made.samples[batch.service, batch.stream] += [
            (batch.table.series[i], batch.base_time_us + at, value)
            for i, at, value in zip(index, offset, array("d", bytes(batch.value)), strict=True)
        ]
        made.counters["samples"] += batch.samples
        made.counters["ended"] += batch.end_of_stream
    for sequences in seen.values():
        if missing := max(sequences, default=-1) + 1 - len(sequences):
            made.counters["missing_batches"] += missing
    return made


def counters_of_windows(b: Bench) -> dict[str, int]:
    return {
        name: value for name, value in b.counters().items() if name in OF_WINDOWS or name.startswith("dead_letters.")
    }


def check_rows(b: Bench, made: Workload, *, letters_too: bool = True, aged_before_us: int = 0, **more: int) -> int:
    """Rows of 10 s and of a minute, and the counts, are those of the oracle, dead letters those of the bad records.

    `aged_before_us`: rows of 10 s that begin before it may have been deleted for their age. How many rows of 10 s there
    were.
    """
    expected = {name: value for name, value in {**made.counters, **more}.items() if value}
    found = counters_of_windows(b)
    assert found == expected, f"counters: {found}, expected {expected}"
    stored, rows = stored_rows(b.clickhouse, "windows"), expected_rows(made, 10)
    if aged_before_us:
        rows = {key: row for key, row in rows.items() if key in stored or key[-1] * S >= aged_before_us}
    assert_same(stored, rows)
    assert_same(stored_rows(b.clickhouse, "windows_1m"), expected_rows(made, 60))
    if not letters_too:
        return len(rows)
    topics = b.settings.kafka.topics
    letters = {(one.partition, one.offset) for one in map(_letter, b.read_topic(topics.dead_letters))}
    bad = {
        (record.partition(), record.offset())
        for record in b.read_topic(topics.samples)
        if not isinstance(decode(record.value()), SampleBatch)
    }
    assert letters == bad, f"dead letters: {len(letters)}, bad records {len(bad)}"
    return len(rows)


def _letter(record: Any) -> Any:
    return decode_dead_letter(record.value())


def alert_events(b: Bench) -> tuple[list[AlertEvent], int]:
    """Those on the topic, each once, and how many came again."""
    found: dict[str, AlertEvent] = {}
    records = b.read_topic(b.settings.kafka.topics.alerts)
    for message in records:
        event = read_event(message.value() or b"")
        assert dict(message.headers() or [])["ce_id"].decode() == event.id
        found.setdefault(event.id, event)
    return list(found.values()), len(records) - len(found)


def told(events: Iterable[AlertEvent]) -> list[Event]:
    """Those of the rule by host, as a `Traffic` expects them."""
    found = []
    for event in events:
        assert event.alert is not None
        labels = event.alert.labels
        if "host" not in labels:
            continue  # `unexpected` has a look at it
        found.append((event.transition.value, round(event.time.timestamp()), labels["service"], labels["host"]))
    return sorted(found, key=lambda one: (one[1], one))


def unexpected(events: Iterable[AlertEvent], traffic: Traffic) -> list[tuple[str, str, str]]:
    """Those of objectives and health that nothing in the traffic is the reason for: (transition, source, time).

    Its objective never spends enough for an alert, and it beats as long as it lasts; silence may be told afterwards.
    """
    silent_s = traffic.start_us // S + traffic.seconds + HEARTBEAT_WITHIN_S
    return [
        (event.transition.value, event.alert.source, event.time.isoformat())
        for event in events
        if event.alert is not None and "host" not in event.alert.labels
        and not (event.alert.source.startswith("health/svc-") and event.time.timestamp() > silent_s)
    ]  # fmt: skip


def finish(world: World, traffic: Traffic, flow: str = "windows") -> Workload:
    """Until all of the traffic is sent, counted and drained; what Kafka has. The flow has stopped then."""
    world.until(lambda: world.parts["sender"].done, "the traffic is sent", traffic.seconds + PATIENCE_S)
    assert world.confirmed() == traffic.seconds
    made = world.until(lambda: delivered(world.bench), "the broker gives all it has")
    assert isinstance(made, Workload)

    def are_counted() -> bool:
        found = counters_of_windows(world.bench)
        return found.get("samples", 0) + found.get("late_samples", 0) >= made.counters["samples"]

    world.until(are_counted, "all is counted")
    assert world.parts[flow].stop() == 0, world.tails()
    return made


def check_alerts(b: Bench, traffic: Traffic, *, aged_before_us: int = 0) -> tuple[int, int]:
    """The topic and ClickHouse have the oracle's events and no others, each with one id. How many; how many came again.

    `aged_before_us`: those before it may have been deleted from ClickHouse for their age.
    """
    events, again = alert_events(b)
    found, expected = told(events), traffic.events()
    assert found == expected, (
        f"missing {sorted(set(expected) - set(found))[:5]}, too many {sorted(set(found) - set(expected))[:5]}"
    )
    assert not (more := unexpected(events, traffic)), f"nothing is the reason for {more[:5]}, {len(more)} in all"
    stored = {one for (one,) in b.clickhouse.query("SELECT DISTINCT event_id FROM alert_events").result_rows}
    assert stored <= {one.id for one in events}
    assert stored >= {one.id for one in events if one.time.timestamp() * S >= aged_before_us}
    return len(events), again


Status = tuple[int, float, float, str]
"""Of an objective: window end in seconds, bad and all events of the period, why nothing was judged."""


def check_objective(
    b: Bench, made: Workload, traffic: Traffic, *, period_s: int = 30 * 86400, slo: str = "cool", service: str = "svc-0"
) -> int:
    """Each window has its status, from the traffic's first to that of the last alert; what was told is judged then.

    How many there are. The flow must have begun before the traffic (`World.until_judging`).
    """
    rows = b.clickhouse.query(
        "SELECT toUnixTimestamp(window_end), bad, total, frozen FROM slo_status WHERE slo = {slo:String} "
        "AND window_end > fromUnixTimestamp({start:Int64}) ORDER BY window_end",
        parameters={"slo": slo, "start": traffic.start_us // S},
    ).result_rows
    judge_statuses(rows, made, traffic, period_s=period_s, service=service)
    return len(rows)


def judge_statuses(
    rows: Sequence[Status], made: Workload, traffic: Traffic, *, period_s: int, service: str = "svc-0"
) -> None:
    """As `check_objective`. Each has counted what came in the period before it.

    Exactly, but for the bucket of 5 minutes that the older edge lies in (docs/slo.md, "How exact it is"): of that some.
    """
    judged = [end_s for end_s, _, _, frozen in rows if not frozen]
    assert len(set(judged)) == len(judged), "a window has two statuses"
    last_s = max(end_s for _, end_s, _, _ in traffic.events())
    missing = sorted({*range(traffic.start_us // S + WINDOW_S, last_s + 1, WINDOW_S)} - set(judged))
    assert not missing, f"{len(missing)} windows have no status of {len(judged)}: {missing[:5]}"
    events: dict[str, list[tuple[int, float]]] = {"cool": [], "requests": []}
    for series, time_us, value in made.samples[service, ""]:
        if series.metric in events:
            events[series.metric].append((time_us // (WINDOW_S * S) * WINDOW_S + WINDOW_S, value))
    counted = {metric: _Counted(found) for metric, found in events.items()}
    for end_s, bad, total, frozen in rows:
        if frozen:
            continue
        edge_s = -(-(end_s - period_s) // EDGE_S) * EDGE_S
        for what, found in (("requests", total), ("cool", total - bad)):
            least = counted[what].within(edge_s, end_s)
            most = counted[what].within(edge_s - EDGE_S, end_s)
            assert least - 0.5 < found < most + 0.5, (what, end_s, found, least, most)


def check_rollups(b: Bench, made: Workload) -> int:
    """Rows of hours and days, made as the flow makes them, but at once, are those of the oracle. How many there are.

    A flow makes them of hours that are over, every 5 minutes; here it is 2 days later.
    """
    last_us = max(time_us for samples in made.samples.values() for _, time_us, _ in samples)
    rollup(b.clickhouse, max(last_us, now_us()) + 2 * 86400 * S)
    count = 0
    for view, seconds in (("windows_1h", 3600), ("windows_1d", 86400)):
        expected = expected_rows(made, seconds)
        assert_same(stored_rows(b.clickhouse, view), expected)
        count += len(expected)
    return count


class _Counted:
    """Events by the end of their window, for the sum of any time."""

    def __init__(self, events: Iterable[tuple[int, float]]) -> None:
        ordered = sorted(events)
        self._ends = [end_s for end_s, _ in ordered]
        self._sums = [0.0, *accumulate(value for _, value in ordered)]

    def within(self, after_s: int, until_s: int) -> float:
        """Those whose end is in (after, until]."""
        return self._sums[bisect_right(self._ends, until_s)] - self._sums[bisect_right(self._ends, after_s)]


def notifications(b: Bench, receiver: str) -> dict[str, Notification]:
    """A receiver's on the topic, by id, in order."""
    records = b.read_topic(b.settings.kafka.topics.notifications)
    found = [read_notification(record.value() or b"") for record in records]
    return {one.id: one for one in found if one.receiver == receiver}


def check_notifications(b: Bench, receiver: str, got: list[str]) -> tuple[int, int]:
    """`got`: the ids that a webhook has got. How many were decided, and how many it got again.

    A notification has the state of its whole group: what was not told is followed by a later one that was.
    """
    decided = notifications(b, receiver)
    assert set(got) <= set(decided), f"{len(set(got) - set(decided))} were never decided"
    newest = {one.group_key: one.id for one in decided.values()}
    untold = set(newest.values()) - set(got)
    assert not untold, f"of {len(newest)} groups {len(untold)} were not told the last of it"
    return len(decided), len(got) - len(set(got))


# -- small ------------------------------------------------------------------------------------------


def _await_brokers(addresses: str, count: int) -> None:
    """Until so many are in the cluster."""
    admin = AdminClient({"bootstrap.servers": addresses, "log_level": 0})
    deadline_s = monotonic_s() + PATIENCE_S
    while True:
        with suppress(KafkaException):
            if len(admin.list_topics(timeout=5).brokers) == count:
                return
        assert monotonic_s() < deadline_s, f"no {count} brokers at {addresses}"
        threading.Event().wait(0.2)


def _await_http(port: int, process: Process) -> None:
    deadline_s = monotonic_s() + PATIENCE_S
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except (URLError, OSError):
            assert process.pid is not None, process.log.read_text()
            assert monotonic_s() < deadline_s
            threading.Event().wait(0.05)
