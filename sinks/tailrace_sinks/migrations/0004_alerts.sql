-- Each event once, whatever is sent again after a crash: an event's id is the same then. Events are few, so one table
-- serves both views: what happened, and how each alert stands.
CREATE TABLE IF NOT EXISTS alert_event_rows
(
    event_id String,
    alert_id String,
    sequence UInt32,
    time DateTime64(6, 'UTC'),
    transition LowCardinality(String),
    cause String,
    reason String,
    name LowCardinality(String),
    source LowCardinality(String),
    service LowCardinality(String),
    severity LowCardinality(String),
    status LowCardinality(String),
    description String,
    metric LowCardinality(String),
    labels Map(String, String),
    operator LowCardinality(String),
    threshold Nullable(Float64),
    duration_s Nullable(Float64),
    current_value Nullable(Float64),
    started_at Nullable(DateTime64(6, 'UTC')),
    acknowledged_at Nullable(DateTime64(6, 'UTC')),
    acknowledged_by String,
    resolved_at Nullable(DateTime64(6, 'UTC')),
    resolved_by String,
    false_positive Nullable(Bool),
    tags Array(String),
    annotations String,
    stored_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree
ORDER BY (alert_id, sequence, event_id)
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE VIEW alert_events AS
SELECT * EXCEPT stored_at FROM alert_event_rows FINAL;

-- As each alert stands now. A rejected command changes nothing, and a silence not the alert itself.
CREATE OR REPLACE VIEW alerts AS
SELECT
    alert_id AS id, name, description, severity, status, source, service, metric, labels,
    operator, threshold, duration_s, current_value,
    started_at, time AS changed_at, acknowledged_at, acknowledged_by, resolved_at, resolved_by, false_positive,
    tags, annotations, sequence
FROM alert_event_rows FINAL
WHERE transition NOT IN ('rejected', 'silenced', 'unsilenced') AND alert_id != ''
ORDER BY alert_id, sequence DESC
LIMIT 1 BY alert_id;
