"""What the flows write, as Arrow schemas: ClickHouse takes these batches as they are, and so does the aggregates topic.

Needs pyarrow; the rest of this package does not.
"""

from typing import Any, NamedTuple

import pyarrow as pa

from tailrace_schemas.codec import FlatCodec

__all__ = [
    "ALERT_EVENTS", "ANOMALIES", "BASELINES", "COUNTERS", "EVENTS", "EVERY_SERVICE", "HEALTH", "INCIDENTS",
    "SLO_STATUS", "WINDOW_ROWS", "WindowRows", "decode_window_rows", "encode_window_rows",
]  # fmt: skip

ATTRIBUTES = pa.map_(pa.string(), pa.string())

WINDOW_ROWS: Any = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("service", pa.string(), nullable=False),
        pa.field("series_id", pa.uint64(), nullable=False),  # hash of service, metric, kind, unit, attributes
        pa.field("attributes", ATTRIBUTES, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("stream", pa.string(), nullable=False),
        pa.field("window_start", pa.timestamp("s", tz="UTC"), nullable=False),
        pa.field("count", pa.uint64(), nullable=False),  # samples in the window
        pa.field("sum", pa.float64()),  # NULL for cumulative
        pa.field("min", pa.float64()),  # distribution, gauge
        pa.field("max", pa.float64()),
        pa.field("last", pa.float64()),  # gauge, cumulative
        pa.field("increase", pa.float64()),  # counter, cumulative, event; NULL at the first point of a cumulative
        pa.field("resets", pa.uint32()),  # cumulative
        pa.field("bucket_index", pa.list_(pa.int32()), nullable=False),  # distribution: sketch codes, ascending
        pa.field("bucket_count", pa.list_(pa.uint64()), nullable=False),
        pa.field("scale", pa.int8()),  # distribution
        pa.field("version", pa.uint64(), nullable=False),  # generation << 48 | count
    ]
)
"""One series and one window: the whole row. `mean`, `rate` and the quantiles are computed from it by the views."""

EVENTS: Any = pa.schema(
    [
        pa.field("event_id", pa.uint64(), nullable=False),  # hash of where the sample stands: equal on replay
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("service", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # the metric
        pa.field("attributes", ATTRIBUTES, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("stream", pa.string(), nullable=False),
    ]
)
"""Each occurrence of a sample of kind `event`: deploys, incidents."""

COUNTERS: Any = pa.schema(
    [
        pa.field("scope", pa.string(), nullable=False),  # who counts: "shard 07", "partition 3"
        pa.field("service", pa.string(), nullable=False),  # empty: not known
        pa.field("stream", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # see tailrace_flows.core.counters
        pa.field("value", pa.uint64(), nullable=False),  # a total that only grows; also the row's version
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""Tailrace's own exact counts: they live in recovered state, so a crash counts nothing twice."""

ALERT_EVENTS: Any = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("alert_id", pa.string(), nullable=False),  # empty: a rejected command named no alert that is known
        pa.field("sequence", pa.uint32(), nullable=False),  # counts the events of one alert
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("transition", pa.string(), nullable=False),
        pa.field("cause", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("service", pa.string(), nullable=False),  # the label; empty: none
        pa.field("severity", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("description", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("labels", ATTRIBUTES, nullable=False),
        pa.field("operator", pa.string(), nullable=False),  # empty: no threshold
        pa.field("threshold", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("current_value", pa.float64()),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("acknowledged_at", pa.timestamp("us", tz="UTC")),
        pa.field("acknowledged_by", pa.string(), nullable=False),
        pa.field("resolved_at", pa.timestamp("us", tz="UTC")),
        pa.field("resolved_by", pa.string(), nullable=False),  # empty: by itself
        pa.field("false_positive", pa.bool_()),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("annotations", pa.string(), nullable=False),  # JSON, as in the message
    ]
)
"""Each event of an alert's life, with the alert as it stood then: `tailrace_schemas.alerts.AlertEvent` in columns."""

SLO_STATUS: Any = pa.schema(
    [
        pa.field("slo", pa.string(), nullable=False),
        pa.field("service", pa.string(), nullable=False),
        pa.field("window_end", pa.timestamp("s", tz="UTC"), nullable=False),
        pa.field("objective", pa.float64(), nullable=False),  # 0..1
        pa.field("period_s", pa.float64(), nullable=False),
        pa.field("bad", pa.float64(), nullable=False),  # events of the period
        pa.field("total", pa.float64(), nullable=False),
        pa.field("error_ratio", pa.float64()),  # of the period; NULL: no events
        pa.field("budget_remaining", pa.float64(), nullable=False),  # 1 untouched, 0 used up, below: overspent
        *(
            pa.field(f"burn_rate_{window}", pa.float64())
            for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
        ),
        pa.field("exhausted_at", pa.timestamp("s", tz="UTC")),  # at the burn rate of the last hour
        pa.field("frozen", pa.string(), nullable=False),  # why nothing was judged; empty: it was
        pa.field("version", pa.uint64(), nullable=False),  # total events
    ]
)
"""An objective as of the end of a 10 s window."""

HEALTH: Any = pa.schema(
    [
        pa.field("service", pa.string(), nullable=False),
        pa.field("check", pa.string(), nullable=False),  # empty: the service as a whole
        pa.field("status", pa.string(), nullable=False),
        pa.field("since", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("response_time_s", pa.float64()),
        pa.field("root_causes", pa.list_(pa.string()), nullable=False),
        pa.field("dependencies", ATTRIBUTES, nullable=False),
    ]
)
"""A change of the health of a check or a service."""

INCIDENTS: Any = pa.schema(
    [
        pa.field("incident_id", pa.string(), nullable=False),
        pa.field("service", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("severity", pa.string(), nullable=False),
        pa.field("start_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("end_time", pa.timestamp("us", tz="UTC")),
        pa.field("description", pa.string(), nullable=False),
        pa.field("impact", pa.string(), nullable=False),
        pa.field("resolution", pa.string(), nullable=False),
        pa.field("alerts", pa.list_(pa.string()), nullable=False),  # ids
        pa.field("false_positives", pa.uint32(), nullable=False),
        pa.field("downtime_s", pa.float64(), nullable=False),  # of stretches that have ended
        pa.field("down_since", pa.timestamp("us", tz="UTC")),  # of one that has not
        pa.field("acknowledged_at", pa.timestamp("us", tz="UTC")),
        pa.field("acknowledged_by", pa.string(), nullable=False),
        pa.field("interventions", pa.uint32(), nullable=False),
        pa.field("version", pa.uint64(), nullable=False),
    ]
)
"""An incident as it stands: `tailrace_schemas.incidents.Incident` in columns."""

ANOMALIES: Any = pa.schema(
    [
        pa.field("anomaly_id", pa.string(), nullable=False),  # of detector, labels and window_end
        pa.field("detector", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),  # or the expression of several
        pa.field("service", pa.string(), nullable=False),  # the label; empty: none
        pa.field("labels", ATTRIBUTES, nullable=False),
        pa.field("window_end", pa.timestamp("s", tz="UTC"), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("expected", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # 0..1
        pa.field("flag", pa.bool_(), nullable=False),
        pa.field("bar", pa.float64(), nullable=False),  # how many times the usual evidence a flag needs from now on
        pa.field("reason", pa.string(), nullable=False),
        pa.field("marked_by", pa.string(), nullable=False),  # who called the flag a false alarm; empty: nobody
        pa.field("version", pa.uint64(), nullable=False),
    ]
)
"""A point of a series that stood out: flagged, or with a high score."""

BASELINES: Any = pa.schema(
    [
        pa.field("baseline_id", pa.string(), nullable=False),  # of source and labels
        pa.field("source", pa.string(), nullable=False),  # rule:GROUP/ALERT or detector:NAME
        pa.field("subject", pa.string(), nullable=False),  # what is measured, in words
        pa.field("service", pa.string(), nullable=False),  # the label; empty: none
        pa.field("labels", ATTRIBUTES, nullable=False),
        pa.field("time", pa.timestamp("s", tz="UTC"), nullable=False),  # of the evaluation
        pa.field("points", pa.uint64(), nullable=False),  # that were learned
        pa.field("warming_up", pa.bool_(), nullable=False),
        pa.field("expected", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("bar", pa.float64(), nullable=False),  # how many times the usual evidence it needs
        pa.field("held", pa.uint32(), nullable=False),  # points for which a threshold has stood still, being passed
        pa.field("version", pa.uint64(), nullable=False),
    ]
)
"""What was learned of a series, as it stands."""

EVERY_SERVICE = ""
"""In place of a service's name, in a message without rows: the windows flow goes on. Its `watermark_us` is no event
time, but a wall time: all samples that Kafka had by then have been read, and the rows of windows that they close are on
their way. Said every 2 s, as far as it has read more."""

_ENVELOPE = FlatCodec("WindowRows")


class WindowRows(NamedTuple):
    """Rows of one service and stream, for the aggregates topic."""

    service: str
    """Or `EVERY_SERVICE`."""
    stream: str
    window_seconds: int
    watermark_us: int
    """Windows that end here or before are closed; with the messages up to this one, all their rows are out. Never goes
    back but for a repetition after a crash; far below zero: nothing is said."""
    rows: Any
    """pyarrow.RecordBatch of WINDOW_ROWS; empty where only time has passed."""


def encode_window_rows(block: WindowRows) -> bytes:
    """The message: an Avro envelope around an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WINDOW_ROWS) as writer:
        writer.write_batch(block.rows)
    return _ENVELOPE.encode(block._asdict() | {"rows": sink.getvalue().to_pybytes()})


def decode_window_rows(message: bytes) -> WindowRows:
    """The rows of a message, as one record batch, its offsets and text checked.

    Flows write these messages: they may be damaged, but nothing here bounds what a hostile one would unfold to.

    Raises:
        ValueError: not such a message.
    """
    datum = _ENVELOPE.decode(message)
    try:
        reader = pa.ipc.open_stream(datum["rows"])
        if reader.schema != WINDOW_ROWS:
            raise ValueError("the rows are of another schema")
        batches = reader.read_all().combine_chunks().to_batches()
        rows = batches[0] if batches else pa.RecordBatch.from_pylist([], WINDOW_ROWS)
        rows.validate(full=True)
    except (pa.ArrowException, OSError) as error:  # Arrow raises any of its own, and OSError where bytes are missing
        raise ValueError(f"the rows cannot be read: {error}") from None
    for field, column in zip(WINDOW_ROWS, rows.columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"{field.name} has no value in some row")
    return WindowRows(**(datum | {"rows": rows}))
