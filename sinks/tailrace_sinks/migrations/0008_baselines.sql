-- What detectors and rules with `threshold: auto` have learned of each series, as it stands.
CREATE TABLE IF NOT EXISTS baseline_rows
(
    baseline_id String,
    source LowCardinality(String),
    subject LowCardinality(String),
    service LowCardinality(String),
    labels Map(String, String),
    time DateTime('UTC'),
    points UInt64,
    warming_up Bool,
    expected Nullable(Float64),
    low Nullable(Float64),
    high Nullable(Float64),
    bar Float64,
    held UInt32,
    version UInt64,
    stored_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (source, baseline_id)
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE VIEW baselines AS
SELECT baseline_id AS id, * EXCEPT (baseline_id, stored_at, version) FROM baseline_rows FINAL;
