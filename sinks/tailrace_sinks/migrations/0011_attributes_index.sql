-- Of one series by its attributes a query reads what holds it, not all series of its service: a month of hours is read in a
-- fifth of the time, for a hundredth of a byte a row. Parts that exist get the index in the background.
ALTER TABLE rows_10s ADD INDEX IF NOT EXISTS attribute_values mapValues(attributes) TYPE bloom_filter GRANULARITY 1;
ALTER TABLE rows_1m ADD INDEX IF NOT EXISTS attribute_values mapValues(attributes) TYPE bloom_filter GRANULARITY 1;
ALTER TABLE rows_1h ADD INDEX IF NOT EXISTS attribute_values mapValues(attributes) TYPE bloom_filter GRANULARITY 1;
ALTER TABLE rows_1d ADD INDEX IF NOT EXISTS attribute_values mapValues(attributes) TYPE bloom_filter GRANULARITY 1;
ALTER TABLE rows_10s MATERIALIZE INDEX attribute_values SETTINGS mutations_sync = 0;
ALTER TABLE rows_1m MATERIALIZE INDEX attribute_values SETTINGS mutations_sync = 0;
ALTER TABLE rows_1h MATERIALIZE INDEX attribute_values SETTINGS mutations_sync = 0;
ALTER TABLE rows_1d MATERIALIZE INDEX attribute_values SETTINGS mutations_sync = 0;

-- The views of 0003, with the index. Without its exact mode, in which one small part that spans all series makes all of them
-- be read: all versions of a row have the same attributes, so no granule that is skipped has one of a row that is not.
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
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0;

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
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0;

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
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0;

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
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1,
    use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0;
