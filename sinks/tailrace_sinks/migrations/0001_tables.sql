-- Whole rows, replaced by a higher version of themselves. Not read directly: the views of 0003 give each row once.
--
-- ORDER BY is the row's identity, and PARTITION BY a function of it, so that replacing never crosses partitions.
-- `stored_at` is when the row was written, by the server's clock: rows age from there (see the TTL in migrate.py), so that
-- replaying an old file does not lose it at once, and the rollup finds what is new by it.
-- Small granules and blocks, because a query reads an hour of each of many series: 256 KiB are 300 rows with sketches, and
-- never more than 1024 rows. What such queries read is LZ4: half the time of ZSTD for an eighth more bytes.
CREATE TABLE IF NOT EXISTS rows_10s
(
    metric LowCardinality(String),
    service LowCardinality(String),
    series_id UInt64 CODEC(Delta, ZSTD(1)),
    attributes Map(String, String) CODEC(LZ4),
    kind LowCardinality(String),
    unit LowCardinality(String),
    stream LowCardinality(String),
    window_start DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    count UInt64 CODEC(T64, ZSTD(1)),
    sum Nullable(Float64) CODEC(ZSTD(1)),
    min Nullable(Float64) CODEC(ZSTD(1)),
    max Nullable(Float64) CODEC(ZSTD(1)),
    last Nullable(Float64) CODEC(ZSTD(1)),
    increase Nullable(Float64) CODEC(ZSTD(1)),
    resets Nullable(UInt32) CODEC(T64, ZSTD(1)),
    bucket_index Array(Int32) CODEC(T64, LZ4),
    bucket_count Array(UInt64) CODEC(T64, LZ4),
    scale Nullable(Int8) CODEC(ZSTD(1)),
    version UInt64 CODEC(T64, ZSTD(1)),
    stored_at DateTime('UTC') DEFAULT now() CODEC(Delta, ZSTD(1)),
    INDEX stored_at stored_at TYPE minmax GRANULARITY 4
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toDate(window_start)
ORDER BY (metric, service, series_id, window_start, stream)
SETTINGS index_granularity = 1024, index_granularity_bytes = 262144, min_compress_block_size = 16384,
    max_compress_block_size = 131072, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS rows_1m AS rows_10s
ENGINE = ReplacingMergeTree(version)
PARTITION BY toDate(window_start)
ORDER BY (metric, service, series_id, window_start, stream)
SETTINGS index_granularity = 1024, index_granularity_bytes = 262144, min_compress_block_size = 16384,
    max_compress_block_size = 131072, ttl_only_drop_parts = 1;

-- By the rollup, from rows_1m. Long windows have nearly every bucket, so Delta packs their codes best.
CREATE TABLE IF NOT EXISTS rows_1h AS rows_10s
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(window_start)
ORDER BY (metric, service, series_id, window_start, stream)
SETTINGS index_granularity = 1024, index_granularity_bytes = 262144, min_compress_block_size = 16384,
    max_compress_block_size = 131072, ttl_only_drop_parts = 1;

ALTER TABLE rows_1h
    MODIFY COLUMN bucket_index Array(Int32) CODEC(Delta, ZSTD(1)),
    MODIFY COLUMN bucket_count Array(UInt64) CODEC(T64, ZSTD(1));

-- By the rollup, from rows_1h: a month of all series at once.
CREATE TABLE IF NOT EXISTS rows_1d AS rows_1h
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(window_start)
ORDER BY (metric, service, series_id, window_start, stream)
SETTINGS index_granularity = 1024, index_granularity_bytes = 262144, min_compress_block_size = 16384,
    max_compress_block_size = 131072, ttl_only_drop_parts = 1;

-- How far each rollup has come: `stored_until` by the server's clock, `windows_until` by that of the samples.
CREATE TABLE IF NOT EXISTS rollups
(
    name String,
    stored_until DateTime('UTC'),
    windows_until DateTime('UTC')
)
ENGINE = ReplacingMergeTree(stored_until)
ORDER BY name;

CREATE TABLE IF NOT EXISTS event_rows
(
    event_id UInt64,
    time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    service LowCardinality(String),
    name LowCardinality(String),
    attributes Map(String, String) CODEC(ZSTD(1)),
    value Float64 CODEC(ZSTD(1)),
    unit LowCardinality(String),
    stream LowCardinality(String),
    stored_at DateTime('UTC') DEFAULT now() CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (service, name, time, event_id)
SETTINGS ttl_only_drop_parts = 1;

-- Totals that only grow, so the greatest is the latest. Who counts is the `scope`.
CREATE TABLE IF NOT EXISTS counter_rows
(
    scope LowCardinality(String),
    service LowCardinality(String),
    stream LowCardinality(String),
    name LowCardinality(String),
    value UInt64,
    time DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(value)
ORDER BY (service, stream, name, scope);
