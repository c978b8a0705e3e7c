"""Quix Streams: a tumbling window by key with an aggregator of a DDSketch's buckets."""

from typing import Any

from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping
from quixstreams import Application
from quixstreams.dataframe.windows.aggregations import Aggregator

from benchmarks.clock import Clock
from benchmarks.peers.child import job, report

ACCURACY = 0.005
MAPPING = LogarithmicMapping(ACCURACY)


class Sketch(Aggregator):
    """State as what Quix stores: JSON, after each sample."""

    def initialize(self) -> Any:
        return [0, 0.0, {}]

    def agg(self, old: Any, new: Any, timestamp: Any) -> Any:
        value = new["value"]
        buckets = old[2]
        bucket = str(MAPPING.key(value))
        buckets[bucket] = buckets.get(bucket, 0) + 1
        return [old[0] + 1, old[1] + value, buckets]

    def result(self, value: Any) -> Any:
        return value


def quantiles(buckets: dict[str, int]) -> list[float]:
    sketch = DDSketch(ACCURACY)
    for bucket, count in buckets.items():
        sketch.add(MAPPING.value(int(bucket)), count)
    return [sketch.get_quantile_value(q) for q in (0.5, 0.95, 0.99, 0.999)]


def main() -> None:
    this, clock = job(), Clock()
    application = Application(
        broker_address=this.bootstrap_servers, consumer_group="quix-peer", auto_offset_reset="earliest",
        state_dir=this.options["directory"], use_changelog_topics=False, commit_interval=30, loglevel="ERROR",
        consumer_extra_config={"queued.max.messages.kbytes": 32 * 1024},
    )  # fmt: skip
    rows: list[Any] = []

    def counted(value: Any) -> Any:
        if value["series"] >= 0:
            clock.count(1)
        return value

    def out(value: Any, key: Any, timestamp: Any, headers: Any) -> None:
        count, total, buckets = value["value"]
        clock.stop()
        rows.append((key, value["start"] // 10_000, count, total, buckets))

    frame = application.dataframe(application.topic(this.topic, value_deserializer="json", key_deserializer="str"))
    frame = frame.apply(counted)
    windows = frame.tumbling_window(10_000, grace_ms=2_000).agg(value=Sketch()).final(closing_strategy="partition")
    windows.update(out, metadata=True)
    application.run(timeout=10, collect=False)
    measured = clock.result()
    report(this, measured, ((*row[:4], *quantiles(row[4])) for row in rows if row[0] != "-1"))


if __name__ == "__main__":
    main()
