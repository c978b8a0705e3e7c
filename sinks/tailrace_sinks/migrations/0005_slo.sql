-- An objective as of the end of each 10 s window; the status of fuller data replaces that of less.
CREATE TABLE IF NOT EXISTS slo_status_rows
(
    slo LowCardinality(String),
    service LowCardinality(String),
    window_end DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    objective Float64 CODEC(ZSTD(1)),
    period_s Float64 CODEC(ZSTD(1)),
    bad Float64 CODEC(ZSTD(1)),
    total Float64 CODEC(ZSTD(1)),
    error_ratio Nullable(Float64) CODEC(ZSTD(1)),
    budget_remaining Float64 CODEC(ZSTD(1)),
    burn_rate_5m Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_30m Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_1h Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_2h Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_6h Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_1d Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_3d Nullable(Float64) CODEC(ZSTD(1)),
    burn_rate_30d Nullable(Float64) CODEC(ZSTD(1)),
    exhausted_at Nullable(DateTime('UTC')) CODEC(ZSTD(1)),
    frozen LowCardinality(String),
    version UInt64 CODEC(T64, ZSTD(1)),
    stored_at DateTime('UTC') DEFAULT now() CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toDate(window_end)
ORDER BY (slo, window_end)
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE VIEW slo_status AS
SELECT * EXCEPT stored_at FROM slo_status_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;
