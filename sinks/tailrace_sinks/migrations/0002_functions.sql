-- Functions over sketches; docs/sql.md is their manual. They belong to the server, not to a database.
--
-- A sketch is OpenTelemetry's base-2 exponential histogram: at a scale of s, base = 2^(2^-s), bucket b holds
-- (base^b, base^(b+1)]. Its code is one integer in the order of the values: b + 1024 * 2^s above zero, 0 at zero, and the
-- negative code of |v| below. Dividing a code by 2, towards zero, gives the code at the next coarser scale.

-- The value that stands for a bucket: the harmonic mean of its edges, at most (base - 1) / (base + 1) off, relatively.
CREATE OR REPLACE FUNCTION tailrace_bucket_value AS (code, scale) ->
    sign(code) * exp2(abs(code) / exp2(scale) - 1024)
        * (2 * exp2(exp2(-scale)) / (1 + exp2(exp2(-scale))));

-- A bucket's greatest value (positive codes) or the bound that its values stay below (negative codes).
CREATE OR REPLACE FUNCTION tailrace_bucket_upper AS (code, scale) ->
    sign(code) * exp2((abs(code) + (code > 0)) / exp2(scale) - 1024);

-- The code of a value. Beyond the range of normal floats: the code of the nearest of those.
CREATE OR REPLACE FUNCTION tailrace_bucket_code AS (value, scale) ->
    toInt32(sign(value) * least(
        ceil(log2(greatest(abs(value), 2.2250738585072014e-308)) * exp2(scale)) - 1 + 1024 * exp2(scale),
        2048 * exp2(scale) - 1));

-- Codes at scale 8, where those of all scales compare: a bucket stands at its edge next to zero.
CREATE OR REPLACE FUNCTION tailrace_codes_at_8 AS (bucket_index, scale) ->
    arrayMap(code -> toInt32(code * bitShiftRight(256, assumeNotNull(scale))), bucket_index);

-- Aggregates. The sample of rank max(1, ceil(q * count)) in all selected rows, by the coarsest scale among them. Ranks are
-- found at scale 8 and the code is then made coarser: dividing keeps the order, so that gives the same code as merging at
-- the coarsest scale would. (1 - 1e-12: 0.07 * 100 is a bit more than 7 in floats.) q is a constant.
CREATE OR REPLACE FUNCTION tailrace_quantile AS (q, bucket_index, bucket_count, scale) ->
    tailrace_bucket_value(
        intDiv(
            quantileExactWeightedArray(q * (1 - 1e-12))(tailrace_codes_at_8(bucket_index, scale), bucket_count),
            bitShiftRight(256, min(scale))),
        min(scale));

-- Aggregates. The share of samples that are not above x; samples in x's own bucket all count as such.
CREATE OR REPLACE FUNCTION tailrace_fraction_below AS (x, bucket_index, bucket_count, scale) ->
    sum(arraySum(
        (code, n) -> if(code <= tailrace_bucket_code(x, assumeNotNull(scale)), n, 0), bucket_index, bucket_count))
        / nullIf(sum(arraySum(bucket_count)), 0);

-- Of one row: `tailrace_quantile` within its exact minimum and maximum, which are the answer for q = 0 and q = 1.
CREATE OR REPLACE FUNCTION tailrace_quantile_row AS (q, bucket_index, bucket_count, scale, min, max) ->
    multiIf(
        scale IS NULL, NULL,
        q <= 0, min,
        q >= 1, max,
        least(max, greatest(min, tailrace_bucket_value(
            bucket_index[arrayFirstIndex(
                n -> n >= q * (1 - 1e-12) * arraySum(bucket_count), arrayCumSum(bucket_count))],
            assumeNotNull(scale)))));
