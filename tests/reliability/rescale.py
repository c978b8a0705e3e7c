"""Other numbers of processes, and another version, under load, both ways."""

import random
import subprocess
import threading
from pathlib import Path
from signal import SIGTERM

from confluent_kafka import Message, TopicPartition
from tailrace_schemas.clock import now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.brokers import admin_of, ends, since
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import (
    Process,
    World,
    check_rows,
    counters_of_windows,
    delivered,
    finish,
    python,
    starts_on_window,
    why_no_kafka,
)  # fmt: skip
from tests.system.harness import Bench
from tests.system.workload import Workload, assert_same, expected_rows, stored_rows

ROOT = Path(__file__).parents[2]
BEFORE = "e3800ad"
REFUSED = "this Tailrace reads"
SOURCES = ("schemas", "producers", "flows", "sinks", "infra", "subscribers")


@attack(
    name="rescale",
    promise="The number of processes may change at any time, up and down, with a stop or a kill: the rows stay exact.",
    what="The window flow is stopped, or killed, and started with another number of processes, 1 to 3, under load.",
    unit="changes",
    short=3,
    long=30,
)
def rescale(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    with World.of(run.directory, "rescale") as world:
        seconds = max(40, run.size * 14) // 10 * 10
        traffic = Traffic(run.seed, starts_on_window(now_us()), seconds, services=6, samples=60)
        world.add_traffic(traffic)
        numbers, flow = [1], _run(world, 1)
        killed = 0
        for _ in range(run.size):
            threading.Event().wait(rng.uniform(4, 10))
            if rng.random() < 0.3:
                flow.done = True
                killed += flow.kill()  # its processes end by themselves, and hold the directory until then
            else:
                code = flow.stop()
                assert code in (0, -SIGTERM), (code, world.tails())  # SIGTERM: it was still starting
            numbers.append(rng.choice([number for number in (1, 2, 3) if number != numbers[-1]]))
            flow = _run(world, numbers[-1])
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        figures = {
            "processes": " ".join(map(str, numbers)), "of these changes by a kill": killed,
            "samples": made.counters["samples"], "rows equal to the oracle": rows,
        }  # fmt: skip
        return Result(run.size, [run.seed], figures)


def _run(world: World, processes: int) -> Process:
    return world.add("windows", python("-m", "tailrace_infra.cli", "run", "windows", "--processes", str(processes)))


@attack(
    name="upgrade",
    promise="A state of another version is refused with what to do; with a new recovery directory and a higher "
    "generation the rows are exact, as far as Kafka still has the samples.",
    what=f"The flow of commit {BEFORE}, whose states have another format, is stopped or killed under live load, and "
    "the first half of the topic is deleted; this version is started on its recovery directory, and then on a new one; "
    "and the version before on that.",
    unit="upgrades",
    short=1,
    long=8,
)
def upgrade(run: Run) -> Result:
    if missing := why_no_kafka() or _check_out(run.directory / "before"):
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    old = {"PYTHONPATH": ":".join(str(run.directory / "before" / source) for source in SOURCES)}
    samples = rows = kills = 0
    for number in range(run.size):
        directory = run.directory / str(number)
        directory.mkdir()
        contents = "snapshot" if number % 2 else "replay"
        with World.of(directory, f"upgrade{number}", contents=contents) as world:
            traffic = Traffic(run.seed + number, starts_on_window(now_us()), 50, samples=100)
            world.add_traffic(traffic)
            flow = world.add_flow("windows", "windows", **old)
            world.until(lambda world=world: world.bench.counters().get("samples"), "samples are counted")
            threading.Event().wait(rng.uniform(5, 15))
            if rng.random() < 0.5:
                flow.done = True
                kills += flow.kill()
            else:
                assert flow.stop() == 0, world.tails()
            new = world.add_flow("windows", "windows")
            world.until(lambda new=new: REFUSED in new.log.read_text(), "a state of before is refused")
            new.done = True
            new.kill()
            assert "windows.generation raised" in new.log.read_text(), world.tails()
            records, gone = _delete_half(world)
            new_state = str(directory / "new-recovery")
            place = {"TAILRACE_RECOVERY__DIRECTORY": new_state, "TAILRACE_WINDOWS__GENERATION": "1"}
            new = world.add_flow("windows", "windows", **place)
            made = finish(world, traffic)
            made.counters["missing_batches"] = 0  # before what a new state finds first
            expected = {name: value for name, value in made.counters.items() if value}
            assert (found := counters_of_windows(world.bench)) == expected, f"{found}, expected {expected}"
            records += since(world.bench.read_topic(world.bench.settings.kafka.topics.samples), ends(records, {}))
            rows += _check_rows_after(world.bench, delivered(world.bench, records), delivered(world.bench, gone))
            samples += made.counters["samples"]
            assert new.stop() == 0, world.tails()
            at = new.log.stat().st_size
            back = world.add_flow("windows", "windows", **place, **old)
            world.until(lambda back=back, at=at: REFUSED in back.log.read_text()[at:], "a state of after is refused")
    figures = {"of these with a kill": kills, "samples": samples, "rows equal to the oracle": rows}
    return Result(run.size, [run.seed], figures)


def _delete_half(world: World) -> tuple[list[Message], list[Message]]:
    """Of each partition the first half of what it has. All that there was, and what is gone."""
    b, topic = world.bench, world.bench.settings.kafka.topics.samples
    records = list(b.read_topic(topic))
    lows = {partition: end // 2 for partition, end in ends(records, {}).items()}
    wanted = [TopicPartition(topic, partition, low) for partition, low in lows.items()]
    admin = admin_of(world)
    for one in admin.delete_records(wanted).values():
        one.result(60)
    return records, [one for one in records if one.offset() < lows[one.partition()]]


def _check_rows_after(b: Bench, whole: Workload, gone: Workload) -> int:
    """Rows that begin a second after the last sample that is gone are the oracle's; how many there are."""
    count = 0
    last_s = max(time_us for samples in gone.samples.values() for _, time_us, _ in samples) // S
    for view, seconds in (("windows", 10), ("windows_1m", 60)):
        found, expected = (
            {key: row for key, row in rows.items() if key[-1] > last_s + 1}
            for rows in (stored_rows(b.clickhouse, view), expected_rows(whole, seconds))
        )
        assert_same(found, expected)
        count += len(found)
    return count


def _check_out(target: Path) -> str:
    """The sources of that commit; why they cannot be had."""
    target.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, *SOURCES], capture_output=True, check=False)
    if archive.returncode:
        return f"no git history with {BEFORE} here"
    subprocess.run(["tar", "x", "-C", str(target)], input=archive.stdout, check=True)
    return ""
