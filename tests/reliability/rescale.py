"""Other numbers of processes, and another version, under load, both ways."""

import random
import subprocess
import threading
from pathlib import Path
from signal import SIGTERM

from tailrace_schemas.clock import now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import Traffic
from tests.reliability.world import Process, World, check_rows, finish, python, starts_on_window, why_no_kafka

ROOT = Path(__file__).parents[2]
BEFORE = "19b931b"
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
    promise="A state of another version is refused with what to do; with a new recovery directory the rows are exact.",
    what=f"The flow of commit {BEFORE}, whose states have another format, is stopped or killed under live load; this "
    "version is started on its recovery directory, and then on a new one.",
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
            world.until(lambda new=new: "this Tailrace reads" in new.log.read_text(), "a state of before is refused")
            new.done = True
            new.kill()
            world.add_flow("windows", "windows", TAILRACE_RECOVERY__DIRECTORY=str(directory / "new-recovery"))
            made = finish(world, traffic)
            rows += check_rows(world.bench, made)
            samples += made.counters["samples"]
    figures = {"of these with a kill": kills, "samples": samples, "rows equal to the oracle": rows}
    return Result(run.size, [run.seed], figures)


def _check_out(target: Path) -> str:
    """The tree of that commit; why it cannot be had."""
    target.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode:
        return f"no git history with {BEFORE} here"
    subprocess.run(["tar", "x", "-C", str(target)], input=archive.stdout, check=True)
    return ""
