-- Each row once, its fullest version. What is computed from a row is computed when it is asked for, so that nothing stored
-- can disagree. FINAL is exact and, partition by partition, as fast as reading without it; PREWHERE on the sorting key, which
-- all versions of a row share, is safe under it.
CREATE OR REPLACE VIEW windows AS
SELECT
    metric, service, attributes, kind, unit, stream,
    window_start, window_start + 10 AS window_end, toUInt32(10) AS window_seconds,
    count, sum, min, max,
    if(kind IN ('distribution', 'gauge'), sum / count, NULL) AS mean,
    last, increase, increase / 10 AS rate, resets,
    tailrace_quantile_row(0.5, bucket_index, bucket_count, scale, min, max) AS p50,
    tailrace_quantile_row(0.9, bucket_index, bucket_count, scale, min, max) AS p90,
    tailrace_quantile_row(0.95, bucket_index, bucket_count, scale, min, max) AS p95,
    tailrace_quantile_row(0.99, bucket_index, bucket_count, scale, min, max) AS p99,
    tailrace_quantile_row(0.999, bucket_index, bucket_count, scale, min, max) AS p999,
    bucket_index, bucket_count, scale, version, series_id
FROM rows_10s FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW windows_1m AS
SELECT
    metric, service, attributes, kind, unit, stream,
    window_start, window_start + 60 AS window_end, toUInt32(60) AS window_seconds,
    count, sum, min, max,
    if(kind IN ('distribution', 'gauge'), sum / count, NULL) AS mean,
    last, increase, increase / 60 AS rate, resets,
    tailrace_quantile_row(0.5, bucket_index, bucket_count, scale, min, max) AS p50,
    tailrace_quantile_row(0.9, bucket_index, bucket_count, scale, min, max) AS p90,
    tailrace_quantile_row(0.95, bucket_index, bucket_count, scale, min, max) AS p95,
    tailrace_quantile_row(0.99, bucket_index, bucket_count, scale, min, max) AS p99,
    tailrace_quantile_row(0.999, bucket_index, bucket_count, scale, min, max) AS p999,
    bucket_index, bucket_count, scale, version, series_id
FROM rows_1m FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW windows_1h AS
SELECT
    metric, service, attributes, kind, unit, stream,
    window_start, window_start + 3600 AS window_end, toUInt32(3600) AS window_seconds,
    count, sum, min, max,
    if(kind IN ('distribution', 'gauge'), sum / count, NULL) AS mean,
    last, increase, increase / 3600 AS rate, resets,
    tailrace_quantile_row(0.5, bucket_index, bucket_count, scale, min, max) AS p50,
    tailrace_quantile_row(0.9, bucket_index, bucket_count, scale, min, max) AS p90,
    tailrace_quantile_row(0.95, bucket_index, bucket_count, scale, min, max) AS p95,
    tailrace_quantile_row(0.99, bucket_index, bucket_count, scale, min, max) AS p99,
    tailrace_quantile_row(0.999, bucket_index, bucket_count, scale, min, max) AS p999,
    bucket_index, bucket_count, scale, version, series_id
FROM rows_1h FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW windows_1d AS
SELECT
    metric, service, attributes, kind, unit, stream,
    window_start, window_start + 86400 AS window_end, toUInt32(86400) AS window_seconds,
    count, sum, min, max,
    if(kind IN ('distribution', 'gauge'), sum / count, NULL) AS mean,
    last, increase, increase / 86400 AS rate, resets,
    tailrace_quantile_row(0.5, bucket_index, bucket_count, scale, min, max) AS p50,
    tailrace_quantile_row(0.9, bucket_index, bucket_count, scale, min, max) AS p90,
    tailrace_quantile_row(0.95, bucket_index, bucket_count, scale, min, max) AS p95,
    tailrace_quantile_row(0.99, bucket_index, bucket_count, scale, min, max) AS p99,
    tailrace_quantile_row(0.999, bucket_index, bucket_count, scale, min, max) AS p999,
    bucket_index, bucket_count, scale, version, series_id
FROM rows_1d FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW events AS
SELECT event_id, time, service, name, attributes, value, unit, stream
FROM event_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

-- Tailrace's own exact counts, over all who count.
CREATE OR REPLACE VIEW counters AS
SELECT service, stream, name, sum(value) AS value, max(time) AS time
FROM counter_rows FINAL
GROUP BY service, stream, name;
