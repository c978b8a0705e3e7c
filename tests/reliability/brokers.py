"""Kafka in trouble: gone, paused, without its past, another topic of the same name, full, refusing, a node less."""

import json
import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)  # fmt: skip
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.clock import now_us

from tests.infra.canaries import canary
from tests.reliability.attack import Result, Run, attack
from tests.reliability.kraft import are_in_sync, nodes
from tests.reliability.traffic import Traffic
from tests.reliability.world import (
    Process,
    World,
    check_rows,
    counters_of_windows,
    delivered,
    finish,
    starts_on_window,
    why_no_kafka,
)  # fmt: skip
from tests.system.harness import Bench
from tests.system.workload import Workload, assert_same, expected_rows, make_workload, stored_rows

EXACT = "Every sample that Kafka has confirmed is in exactly one row, whatever becomes of the broker."
OLD = {"TAILRACE_WINDOWS__IDLE_S": "600"}
"""For samples of the past: wall time closes none of their windows."""
CONTENTS = ("snapshot", "replay")
"""Of `recovery.contents`."""


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def admin_of(world: World) -> AdminClient:
    return AdminClient({"bootstrap.servers": world.bench.settings.kafka.bootstrap_servers, "log_level": 0})


def restart(part: Process) -> None:
    """A clean one: the watcher starts it again."""
    part.stop()
    part.done = False


@attack(
    name="broker_gone",
    promise=EXACT,
    what="The broker is killed, paused (SIGSTOP) for 2 to 15 s, and restarted, in turns, under live load.",
    unit="faults",
    short=3,
    long=30,
)
def broker_gone(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    with World.of(run.directory, "gone") as world:
        world.add_flow("windows", "windows")
        traffic = Traffic(run.seed, starts_on_window(now_us()), max(40, run.size * 14) // 10 * 10, samples=200)
        world.add_traffic(traffic)
        done: Counter[str] = Counter()
        paused_s = 0.0
        broker = world.parts["broker"]
        for number in range(run.size):
            pause(rng.uniform(2, 8))
            world.until(lambda: broker.pid, "the broker runs")
            how = ("pause", "kill", "restart")[number % 3]
            done[how] += 1
            if how == "kill":
                broker.kill()
            elif how == "restart":
                restart(broker)
            else:
                for_s = rng.uniform(2, 15)
                paused_s += for_s
                broker.signal(signal.SIGSTOP)
                pause(for_s)
                broker.signal(signal.SIGCONT)
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        figures = {
            **{f"{how}s": count for how, count in done.items()}, "seconds paused": paused_s,
            "samples": made.counters["samples"], "rows equal to the oracle": rows,
            "starts of the flow again": world.ended["windows"],
        }  # fmt: skip
        return Result(run.size, [run.seed], figures)


@attack(
    name="broker_retention",
    promise="What the broker deleted before it was read is counted exactly, and named by its range, once; rows lack no "
    "more than what is counted, also of what a restart could not read again.",
    what="Records are deleted past the offset where a stopped flow resumes, in every partition; the flow is killed "
    "while it finds that out. With `recovery.contents` snapshot and replay.",
    unit="gaps",
    short=8,
    long=80,
)
def broker_retention(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    figures: Counter[str] = Counter()
    for contents in CONTENTS:
        directory = run.directory / contents
        directory.mkdir()
        with World.of(directory, f"retention_{contents}", contents=contents, **OLD) as world:
            figures += _lose_records(world, random.Random(run.seed), run, contents)
    return Result(figures["gaps"], [run.seed], figures)


def _lose_records(world: World, rng: random.Random, run: Run, contents: str) -> Counter[str]:
    b, topic = world.bench, world.bench.settings.kafka.topics.samples
    admin = admin_of(world)
    made = make_workload(run.seed, services=8, steps=60 + 8 * run.size, samples=20)
    gaps = gone = 0
    kept: list[Message] = []
    position: dict[int, int] = {}
    flow = world.add_flow("windows", "windows")
    rounds = max(1, run.size // 8)
    messages = _parts(made.messages, 2 * rounds + 1)
    for number in range(rounds):
        b.send(b.producer(), messages[2 * number])
        records = since(b.read_topic(topic), position)
        kept += records
        _await_counted(world, delivered(b, kept), gone)
        assert flow.stop() == 0, world.tails()
        position = ends(records, position)
        b.send(b.producer(), messages[2 * number + 1])
        unread = since(b.read_topic(topic), position)
        lows = {}
        for partition, end in ends(unread, position).items():
            if end - position[partition] > 2:
                lows[partition] = rng.randrange(position[partition] + 1, end)
        wanted = [TopicPartition(topic, partition, low) for partition, low in lows.items()]
        for one in admin.delete_records(wanted).values():
            one.result(60)
        kept += [one for one in unread if one.offset() >= lows.get(one.partition(), 0)]
        gaps += len(lows)
        gone += sum(low - position[partition] for partition, low in lows.items())
        began, position = position, ends(unread, position)
        flow.done = False
        log = flow.log.stat().st_size
        world.until(lambda: flow.pid, "the flow runs again")
        pause(rng.uniform(0.5, 3))
        flow.kill()
        _await_counted(world, delivered(b, kept), gone)
        told = flow.log.read_text()[log:]
        for partition, low in lows.items():
            which = rf"{re.escape(topic)}\[{partition}\]: the broker no longer has offsets"
            lines = [f"{which} {began[partition]} to {low - 1}; going on at {low} "]
            if contents == "replay":
                lines.append(rf"{which} \d+ to {began[partition] - 1}, which were counted before")
            for line in lines:
                times = len(re.findall(line, told))
                assert times in (1, 2), f"{line!r} is told {times} times"  # twice: killed after it
    b.send(b.producer(), messages[-1])
    kept += since(b.read_topic(topic), position)
    whole = delivered(b, kept)
    _await_counted(world, whole, gone)
    assert flow.stop() == 0, world.tails()
    figures = Counter({"gaps": gaps, "records deleted unread, counted as gap_records": gone,
                       "samples": whole.counters["samples"]})  # fmt: skip
    unreplayed = b.counters().get("unreplayed_samples", 0)
    if contents == "snapshot":
        assert unreplayed == 0
        figures["rows equal to the oracle (snapshot)"] = check_rows(b, whole, letters_too=False, gap_records=gone)
    else:
        figures["counted as unreplayed_samples (replay)"] = unreplayed
        figures["missing in rows of 10 s (replay)"] = _lacking(b, "windows", expected_rows(whole, 10), unreplayed)
        figures["missing in rows of 1 m (replay)"] = _lacking(b, "windows_1m", expected_rows(whole, 60), unreplayed)
    return figures


def _lacking(b: Bench, view: str, expected: dict[tuple[Any, ...], dict[str, Any]], most: int) -> int:
    """How many samples rows lack, `most` at most; those that lack none are the oracle's."""
    found = stored_rows(b.clickhouse, view)
    assert found.keys() <= expected.keys()
    lacking = {key: row["count"] - (found[key]["count"] if key in found else 0) for key, row in expected.items()}
    assert min(lacking.values()) >= 0
    assert sum(lacking.values()) <= most, (sum(lacking.values()), most)
    # What a counter has added since its last point is not known where that could not be read again.
    whole = {key for key, row in expected.items() if not lacking[key] and row["kind"] != "cumulative"}
    assert_same({key: found[key] for key in whole}, {key: expected[key] for key in whole})
    return sum(lacking.values())


def _parts(messages: Sequence[tuple[str, bytes]], count: int) -> list[list[tuple[str, bytes]]]:
    step = -(-len(messages) // count)
    return [list(messages[at : at + step]) for at in range(0, len(messages), step)]


def since(records: list[Message], position: dict[int, int]) -> list[Message]:
    return [one for one in records if one.offset() >= position.get(one.partition(), 0)]


def ends(records: list[Message], position: dict[int, int]) -> dict[int, int]:
    found = dict(position)
    for one in records:
        found[one.partition()] = max(found.get(one.partition(), 0), one.offset() + 1)
    return found


def _await_counted(world: World, made: Workload, gone: int) -> None:
    expected = {**made.counters, **({"gap_records": gone} if gone else {})}
    expected = {name: value for name, value in expected.items() if value}

    def are_counted() -> bool:
        found = counters_of_windows(world.bench)
        assert found == expected, f"they are {found}"
        return True

    world.until(are_counted, f"the counters are {expected}", 90)


@attack(
    name="broker_topic",
    promise="A topic that was deleted and made anew is read from its start: nothing of it is skipped in silence.",
    what="The topic of samples is deleted and made anew, with more records than the old one had, while the flow runs "
    "and while it is stopped, in turns. With `recovery.contents` snapshot and replay.",
    unit="topics",
    short=2,
    long=10,
)
def broker_topic(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    figures: Counter[str] = Counter()
    for contents in CONTENTS:
        directory = run.directory / contents
        directory.mkdir()
        with World.of(directory, f"remade_{contents}", contents=contents, **OLD) as world:
            figures += _make_anew(world, run)
    return Result(figures["topics deleted and made anew"] // len(CONTENTS), [run.seed], figures)


def _make_anew(world: World, run: Run) -> Counter[str]:
    b, topics = world.bench, world.bench.settings.kafka.topics
    admin, flow = admin_of(world), world.add_flow("windows", "windows")
    whole = Workload()
    for number in range(run.size + 1):
        stream = f"topic-{number}"
        made = make_workload(run.seed + number, services=4, steps=20 + 10 * number, samples=10, stream=stream)
        if number:
            stopped = number % 2 == 0
            if stopped:
                assert flow.stop() == 0, world.tails()
            for one in admin.delete_topics([topics.samples], operation_timeout=60).values():
                one.result(60)
            if not stopped:
                pause(1.0)
            world.until(lambda: _made_anew(b.settings), "the topic is made anew")
            b.send(b.producer(), made.messages)
            flow.done = False
        else:
            b.send(b.producer(), made.messages)
        for name, count in made.counters.items():
            whole.counters[name] += count
        whole.samples.update(made.samples)
        _await_counted(world, whole, 0)
    assert flow.stop() == 0, world.tails()
    rows = check_rows(b, whole, letters_too=False)
    return Counter({"topics deleted and made anew": run.size, "samples": whole.counters["samples"],
                    "rows equal to the oracle": rows, "starts of the flow again": world.ended["windows"]})  # fmt: skip


def _made_anew(settings: Any) -> bool:
    with suppress(KafkaException):
        ensure_topics(settings.kafka.client(), settings.kafka.topics, 4)
        return True
    return False


@attack(
    name="broker_cluster",
    promise=EXACT,
    what="Three brokers, three replicas: one is lost for good, then a second one for a while, which leaves no leader.",
    unit="losses",
    short=2,
    long=12,
)
def broker_cluster(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    brokers = nodes(run.directory / "cluster", 3)
    # On a busy machine Kafka has confirmed nothing for 77 s: what is sent after that is late, rightly.
    patient = {"TAILRACE_WINDOWS__LATENESS_S": "300"}
    with World.of(run.directory, "cluster", brokers=brokers, replication=3, **patient) as world:
        world.add_flow("windows", "windows")
        traffic = Traffic(run.seed, starts_on_window(now_us()), max(60, run.size * 20) // 10 * 10, samples=100)
        world.add_traffic(traffic)
        pause(8)
        for_good, unsent = False, 0
        for number in range(run.size):
            pause(rng.uniform(2, 6))
            lost = brokers[number % 3]
            if number % 2:  # and no majority while this one is away too
                if for_good:
                    # Or Kafka may believe that only who is lost has all: it then waits for that one, rightly.
                    left = [one for one in brokers if not one.done]
                    world.until(lambda left=left: are_in_sync(left), "those that are left are in sync")
                lost.kill()
            else:
                # Who is lost for good as the only one in sync takes what was confirmed with it.
                world.until(lambda: are_in_sync(brokers), "all replicas are in sync")
                for_good = number + 2 >= run.size
                lost.done = True
                lost.kill()
                if not for_good:
                    threading.Timer(20, lambda lost=lost: setattr(lost, "done", False)).start()
            unsent = traffic.seconds - world.confirmed()
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        figures = {
            "brokers": 3,
            "lost": run.size,
            "seconds of samples confirmed after the last loss": unsent,
            "samples": made.counters["samples"],
            "rows equal to the oracle": rows,
        }
        return Result(run.size, [run.seed], figures)


USER, PASSWORD = "tailrace", canary("kafka")


@attack(
    name="broker_auth",
    promise="A right or a user that is taken away stops the flow with a message that says so, and loses nothing.",
    what="The rights (ACLs) of the flow's user and its SCRAM credentials are taken away under load, and given back.",
    unit="revocations",
    short=2,
    long=10,
)
def broker_auth(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    brokers = nodes(run.directory / "cluster", 1)
    with World.of(run.directory, "auth", brokers=brokers) as world:
        admin = admin_of(world)
        _give(admin, credentials=True)
        secured = {
            "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": brokers[0].sasl_address,
            "TAILRACE_KAFKA__PROPERTIES": json.dumps(
                {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256", "sasl.username": USER}
            ),
            "TAILRACE_KAFKA__PASSWORD": PASSWORD,
        }  # fmt: skip
        flow = world.add_flow("windows", "windows", **secured)
        traffic = Traffic(run.seed, starts_on_window(now_us()), max(40, run.size * 20) // 10 * 10, samples=100)
        world.add_traffic(traffic)
        said: Counter[str] = Counter()
        for number in range(run.size):
            world.until(lambda: counters_of_windows(world.bench).get("samples"), "samples are counted")
            pause(4)
            at, ended = flow.log.stat().st_size, world.ended["windows"]
            if number % 2:
                _take_credentials(admin)
                flow.kill()  # a connection that was let in stays so
            else:
                for one in admin.delete_acls([AclBindingFilter(*_binding(ResourceType.ANY, None))]).values():
                    one.result(30)
            world.until(lambda ended=ended: world.ended["windows"] > ended, "the flow stops", 90)
            text = flow.log.read_text()[at:].lower()
            assert "authori" in text or "authenticat" in text, text[-2000:]
            said["rights" if number % 2 == 0 else "user"] += 1
            pause(2)
            _give(admin, credentials=bool(number % 2))
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        figures = {**{f"taken away: {what}": n for what, n in said.items()},
                   "samples": made.counters["samples"], "rows equal to the oracle": rows}  # fmt: skip
        return Result(run.size, [run.seed], figures)


def _binding(kind: ResourceType, name: str | None) -> tuple[Any, ...]:
    how = ResourcePatternType.LITERAL if name else ResourcePatternType.ANY
    operation, permission = (
        (AclOperation.ALL, AclPermissionType.ALLOW) if name else (AclOperation.ANY, AclPermissionType.ANY)
    )
    return (kind, name, how, f"User:{USER}", "*" if name else None, operation, permission)


def _give(admin: AdminClient, *, credentials: bool) -> None:
    if credentials:
        one = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), PASSWORD.encode()
        )
        for done in admin.alter_user_scram_credentials([one]).values():
            done.result(30)
    rights = [AclBinding(*_binding(kind, "*")) for kind in (ResourceType.TOPIC, ResourceType.GROUP)]
    rights.append(AclBinding(*_binding(ResourceType.BROKER, "kafka-cluster")))
    for done in admin.create_acls(rights).values():
        done.result(30)


def _take_credentials(admin: AdminClient) -> None:
    from confluent_kafka.admin import UserScramCredentialDeletion

    for done in admin.alter_user_scram_credentials(
        [UserScramCredentialDeletion(USER, ScramMechanism.SCRAM_SHA_256)]
    ).values():
        done.result(30)
