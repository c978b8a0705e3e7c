"""ClickHouse in trouble: away, slow, refusing, full of parts, read-only, cut off just when it has taken the rows."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil
from tailrace_flows.behind import PATIENCE_S
from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Plot, Result, Run, attack
from tests.reliability.traffic import Traffic
from tests.reliability.world import Process, World, check_rows, finish, starts_on_window, why_no_kafka
from tests.sinks.faults import Answer, CutAfter, CutBefore, CutDuring
from tests.sinks.faults import proxy_to as http_proxy_to
from tests.system.proxy import Mode, proxy_to

MOST_GROWTH_MB = 150
"""What a flow may take more while it waits than before: what librdkafka fetches ahead (32 MB a partition), an epoch."""
FAULTS = {
    "cut before": CutBefore(),
    "cut within": CutDuring(),
    "too many parts": Answer(500, 252, "Too many parts"),
    "read-only": Answer(500, 242, "Table is in readonly mode"),
    "no memory": Answer(500, 241, "Memory limit exceeded"),
    "no right": Answer(500, 164, "Cannot execute query in readonly mode"),
}
"""What becomes of an insert, with ClickHouse's codes."""


class Watched:
    """A process's memory, files and threads, over its restarts."""

    def __init__(self, part: Process) -> None:
        self._part = part
        self.at_s: list[float] = []
        self.rss_mb: list[float] = []
        self.fds: list[int] = []
        self.threads: list[int] = []
        self.began_s = monotonic_s()

    def look(self) -> None:
        pid = self._part.pid
        try:
            process = psutil.Process(pid) if pid else None
            if process is not None:
                rss, fds, threads = process.memory_info().rss / 2**20, _open_files(process.pid), process.num_threads()
                self.at_s.append(monotonic_s() - self.began_s)
                self.rss_mb.append(rss)
                self.fds.append(fds)
                self.threads.append(threads)
        except (psutil.Error, OSError):
            pass

    def plot(self, name: str) -> Plot:
        return Plot(f"memory of {name}", "s", "MB", self.at_s, self.rss_mb)

    def last_mb(self) -> float:
        return self.rss_mb[-1] if self.rss_mb else 0.0

    def most_mb(self, since_s: float = 0.0) -> float:
        return max((mb for at, mb in zip(self.at_s, self.rss_mb, strict=True) if at >= since_s), default=0.0)


def _open_files(pid: int) -> int:
    """Without those below /proc: a thread of ClickHouse opens three when it first works, and keeps them."""
    count = 0
    for place in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            count += not place.readlink().is_relative_to("/proc")
    return count


class Looking(Protocol):
    """What looks at something again and again."""

    def look(self) -> object: ...


@contextmanager
def watching(*watched: Looking, every_s: float = 0.5) -> Iterator[None]:
    """Looks in the background; raises at the end what looking raised."""
    end = threading.Event()

    def look() -> None:
        while not end.wait(every_s):
            for one in watched:
                one.look()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield
        finally:
            end.set()
        looking.result()


@attack(
    name="store",
    promise="ClickHouse may go away, hang, refuse, fill up or lose its answers: rows go on to the aggregates topic, "
    "with bounded memory, what is to be stored waits on disk, and every row is exact.",
    what="Between the flow and ClickHouse: refused connections, a server that hangs, that is slow, that cuts the "
    "connection before, within and after an insert that it took, too many parts, read-only, no memory, no right; in "
    "random order under live load, with one long absence.",
    unit="faults",
    short=6,
    long=60,
)
def store(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    rng = random.Random(run.seed)
    kinds = ["refuse", "hang", "slow", "cut after", *FAULTS]
    order = [kind for _ in range(-(-run.size // len(kinds))) for kind in rng.sample(kinds, len(kinds))][: run.size]
    away_s = max(30.0, min(120.0, 5.0 * run.size))
    with (
        World.of(run.directory, "store") as world,
        http_proxy_to(world.bench.settings.clickhouse.url) as http,
        proxy_to(http.url) as proxy,
    ):
        flow = world.add_flow("windows", "windows", TAILRACE_CLICKHOUSE__URL=proxy.url)
        seconds = int(40 + run.size * 6 + away_s) // 10 * 10
        traffic = Traffic(run.seed, starts_on_window(now_us()), seconds, samples=1000)
        world.add_traffic(traffic)
        aggregates = world.bench.settings.kafka.topics.aggregates
        watched, done, grown_mb, told = Watched(flow), Counter[str](), 0.0, 0
        begun = 0
        with watching(watched):
            world.until(lambda: world.bench.counters().get("samples"), "samples are counted")
            for number, kind in enumerate(["away", *order]):
                threading.Event().wait(rng.uniform(1, 3))
                if world.ended["windows"] > begun:  # a process that begins takes 150 MB, whatever it meets
                    begun = world.ended["windows"]
                    counted = world.until(lambda: world.bench.counters().get("samples"), "ClickHouse answers")
                    world.until(
                        lambda counted=counted: (
                            world.bench.counters()["samples"] > counted or world.parts["sender"].done
                        ),
                        "samples are counted after the flow has ended",
                    )
                before_mb, since_s = watched.last_mb(), monotonic_s() - watched.began_s
                cuts = proxy.cuts
                if kind in ("refuse", "hang", "away"):
                    proxy.mode = Mode.HANG if kind == "hang" else Mode.REFUSE
                    if kind == "away":
                        threading.Event().wait(PATIENCE_S + 2)
                        told = -len(world.bench.read_topic(aggregates))
                        threading.Event().wait(away_s - PATIENCE_S - 2)
                        told += len(world.bench.read_topic(aggregates))
                    else:
                        threading.Event().wait(rng.uniform(1, 4))
                    proxy.mode = Mode.PASS
                elif kind == "slow":
                    proxy.delay_s = 0.2
                    threading.Event().wait(rng.uniform(2, 5))
                    proxy.delay_s = 0.0
                elif kind == "cut after" and number % 2:
                    proxy.mode = Mode.CUT
                    world.until(lambda cuts=cuts: proxy.cuts > cuts + 1, "answers are cut off")
                    proxy.mode = Mode.PASS
                else:
                    http.faults += [{**FAULTS, "cut after": CutAfter()}[kind]] * (1 if kind == "no right" else 3)
                    world.until(lambda: not http.faults, f"inserts meet: {kind}")
                done[kind] += 1
                grown_mb = max(grown_mb, watched.most_mb(since_s) - before_mb if before_mb else 0.0)
            made = finish(world, traffic)
        rows = check_rows(world.bench, made)
    ended = world.ended["windows"]
    assert ended >= done["no right"], "what no repetition cures stops the flow"
    assert told > 0, "while ClickHouse was away no rows came to the aggregates topic"
    assert grown_mb < MOST_GROWTH_MB, f"the flow grew by {grown_mb:.0f} MB"
    figures = {
        **dict(sorted(done.items())), "seconds away": away_s, "messages of rows on the topic meanwhile": told,
        "memory: growth in a fault, at most, MB": grown_mb, "memory: most, MB": watched.most_mb(),
        "samples": made.counters["samples"], "rows equal to the oracle": rows,
        "stops of the flow with what to do (no right)": ended,
    }  # fmt: skip
    return Result(sum(done.values()), [run.seed], figures, plots=[watched.plot("the window flow")])
