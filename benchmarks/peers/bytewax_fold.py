"""Bytewax's stock `fold_window` with a DDSketch. Items are made of JSON lines, as cheaply as Python can.

Its watermark goes on with the system's time: with 2 s for late samples, samples of a backlog that is read more slowly
than it was made are dropped as late. So it waits for an hour, and windows close at the end.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.testing import TestingSink, run_main
from ddsketch import DDSketch

from benchmarks import load
from benchmarks.clock import Clock
from benchmarks.peers.child import job, report, values

ALIGN = datetime(2020, 1, 1, tzinfo=UTC)
ACCURACY = 0.005


def main() -> None:
    this, clock = job(), Clock()

    class Part(StatelessSourcePartition[Any]):
        def __init__(self) -> None:
            self._polls = values(this, this.samples // load.BATCH, at_once=10)

        def next_batch(self) -> list[Any]:
            items: list[Any] = []
            for value in next(self._polls):
                clock.count(load.BATCH)
                for one in orjson.loads(b"[" + value[:-1].replace(b"\n", b",") + b"]"):
                    at = datetime.fromtimestamp(one["time_us"] / 1e6, UTC)
                    items.append((str(one["series"]), (at, one["value"])))
            return items

    class Source(DynamicSource[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
            return Part()

    def add(sketch: DDSketch, item: tuple[datetime, float]) -> DDSketch:
        sketch.add(item[1])
        return sketch

    def merge(one: DDSketch, other: DDSketch) -> DDSketch:
        one.merge(other)
        return one

    flow = Dataflow("fold")
    windows = win.fold_window(
        "fold",
        op.input("samples", flow, Source()),
        win.EventClock(lambda item: item[0], wait_for_system_duration=timedelta(hours=1)),
        win.TumblingWindower(align_to=ALIGN, length=timedelta(seconds=10)),
        lambda: DDSketch(ACCURACY),
        add,
        merge,
    )

    def row(item: tuple[str, tuple[int, DDSketch]]) -> tuple[Any, ...]:
        key, (number, sketch) = item
        quantiles = (sketch.get_quantile_value(q) for q in (0.5, 0.95, 0.99, 0.999))
        return (int(key), int(ALIGN.timestamp()) // 10 + number, int(sketch.count), sketch.sum, *quantiles)

    rows: list[Any] = []
    op.output("out", op.map("row", windows.down, row), TestingSink(rows))
    run_main(flow)
    report(this, clock.result(), rows)


if __name__ == "__main__":
    main()
