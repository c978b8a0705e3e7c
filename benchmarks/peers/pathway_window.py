"""Pathway: `windowby` a tumbling window, whose values become a DDSketch when it is complete.

The topic is read as `static`, so each window is reduced once. A custom accumulator with a sketch, which would do for a
stream, was four times slower: it makes a sketch for each sample.
"""

from typing import Any

import numpy as np
import pathway as pw
from ddsketch import DDSketch

from benchmarks.clock import Clock
from benchmarks.peers.child import job, report

ACCURACY = 0.005


def answer(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    sketch = DDSketch(ACCURACY)
    for value in values.tolist():
        sketch.add(value)
    return (sketch.count, sketch.sum, *(sketch.get_quantile_value(q) for q in (0.5, 0.95, 0.99, 0.999)))


class Sample(pw.Schema):
    series: int
    time_us: int
    value: float


def main() -> None:
    this, clock = job(), Clock()
    answers: dict[Any, Any] = {}
    samples = pw.io.kafka.read(
        {"bootstrap.servers": this.bootstrap_servers, "group.id": "pathway-peer", "auto.offset.reset": "earliest"},
        topic=this.topic, format="json", schema=Sample, mode="static",
    )  # fmt: skip
    windows = samples.filter(pw.this.series >= 0).windowby(
        pw.this.time_us, window=pw.temporal.tumbling(duration=10_000_000), instance=pw.this.series
    )
    rows = windows.reduce(
        series=pw.this._pw_instance, start=pw.this._pw_window_start, values=pw.reducers.ndarray(pw.this.value)
    ).select(pw.this.series, pw.this.start, answer=pw.apply(answer, pw.this.values))

    def out(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            answers[row["series"], row["start"] // 10_000_000] = row["answer"]

    pw.io.subscribe(rows, on_change=out)
    clock.count(0)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    clock.count(this.samples)
    measured = clock.result()
    report(this, measured, ((*key, int(row[0]), *row[1:]) for key, row in answers.items()))


if __name__ == "__main__":
    main()
