"""Loads of different shapes through the real processes: is it exact, how late is it, how much memory does it take."""

from dataclasses import dataclass

import numpy as np
from tailrace_schemas.clock import now_us

from tests.reliability.attack import Plot, Result, Run, attack
from tests.reliability.overload import Lag
from tests.reliability.store import Watched, watching
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import World, check_rows, finish, starts_on_window, why_no_kafka

LOOK_S = 0.25
EXACT = "Whatever the shape of the load, every row is exact and the lag is zero in the end."


@dataclass(frozen=True)
class Load:
    what: str
    samples: int = 1000
    hosts: int = 6
    shape: tuple[float, ...] = (1.0,)


LOADS = {
    "steady": Load("The same load all the time: 2,000 samples a second."),
    "burst": Load("A fifth of the time, in the middle, five times the load before and after: 2,000, 10,000, 2,000 "
                  "samples a second.", shape=(1, 1, 5, 1, 1)),
    "ramp": Load("Load that grows in ten steps from 1,000 to 10,000 samples a second.",
                 shape=tuple(step / 2 for step in range(1, 11))),
    "cardinality": Load("Many series, few samples of each: 4,000 hosts, each with a sample a second.",
                        samples=40, hosts=2000),
}  # fmt: skip


class _Freshness:
    """How long after its end a window's rows of a service are seen in ClickHouse by a reader who asks often."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.found_s: dict[tuple[str, int], float] = {}

    def look(self) -> None:
        query = "SELECT service, toUnixTimestamp(window_start) AS at FROM windows GROUP BY service, at"
        now_s = now_us() / S
        for service, start_s in self._world.bench.clickhouse.query(query).result_rows:
            self.found_s.setdefault((service, start_s), now_s - start_s - 10)


def _perform(run: Run, load: Load) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    with World.of(run.directory, "load") as world:
        flow = world.add_flow("windows", "windows")
        start_us = starts_on_window(now_us()) + 10 * S  # the flow has started by then
        traffic = Traffic(
            run.seed, start_us, max(20, run.size // 10 * 10), samples=load.samples, hosts=load.hosts, shape=load.shape
        )
        lag, freshness = Lag(world), _Freshness(world)
        world.add_traffic(traffic)
        watched = {name: Watched(world.parts[name]) for name in ("windows", "broker", "clickhouse")}
        with watching(*watched.values()), watching(lag, freshness, every_s=LOOK_S):
            world.until(lambda: world.parts["sender"].done, "the traffic is sent", traffic.seconds + 240)
            world.until(lambda: len(set(lag.look())) == 1, "the lag is zero")
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        assert flow.code == 0
    last_s = start_us // S + traffic.seconds - 10  # closed by silence, later than others
    late_s = np.array([late for (_, at_s), late in freshness.found_s.items() if at_s < last_s])
    figures = {
        "samples sent": made.counters["samples"], "series": 2 * len(traffic.series()),
        "samples a second, mean": made.counters["samples"] / traffic.seconds,
        "rows equal to the oracle": rows, "lag at most, records": max(lag.records, default=0.0),
        "lag at the end, records": 0, "windows of a service": late_s.size,
        "row in ClickHouse after the window's end, p50, s": float(np.percentile(late_s, 50)),
        "row in ClickHouse after the window's end, p99, s": float(np.percentile(late_s, 99)),
        **{f"memory of {name}: most, MB": one.most_mb() for name, one in watched.items()},
    }  # fmt: skip
    plots = [Plot("lag", "s", "records", lag.at_s, lag.records), watched["windows"].plot("the window flow")]
    return Result(traffic.seconds, [run.seed], figures, plots=plots)


def _register(name: str, load: Load) -> None:
    attack(name=f"load_{name}", promise=EXACT, what=load.what, unit="seconds of load", short=40, long=300)(
        lambda run: _perform(run, load)
    )


for _name, _load in LOADS.items():
    _register(_name, _load)
