-- Points that stood out from their series' own past: flagged, or with a high score. One that a person marked comes again
-- with a higher version.
CREATE TABLE IF NOT EXISTS anomaly_rows
(
    anomaly_id String,
    detector LowCardinality(String),
    metric LowCardinality(String),
    service LowCardinality(String),
    labels Map(String, String),
    window_end DateTime('UTC'),
    value Float64,
    expected Float64,
    low Float64,
    high Float64,
    score Float64,
    flag Bool,
    bar Float64,
    reason String,
    marked_by String,
    version UInt64,
    stored_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (detector, window_end, anomaly_id)
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE VIEW anomalies AS
SELECT anomaly_id AS id, * EXCEPT (anomaly_id, stored_at, version) FROM anomaly_rows FINAL;
