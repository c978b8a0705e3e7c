-- A row for each change of status, of a check or (`check` empty) of a service as a whole.
CREATE TABLE IF NOT EXISTS health_rows
(
    service LowCardinality(String),
    check LowCardinality(String),
    status LowCardinality(String),
    since DateTime64(6, 'UTC'),
    time DateTime64(6, 'UTC'),
    reason String,
    response_time_s Nullable(Float64),
    root_causes Array(String),
    dependencies Map(String, String),
    stored_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree
ORDER BY (service, check, time)
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE VIEW health_changes AS
SELECT * EXCEPT stored_at FROM health_rows FINAL;

-- As everything stands now.
CREATE OR REPLACE VIEW health AS
SELECT * EXCEPT stored_at FROM health_rows FINAL
ORDER BY service, check, time DESC
LIMIT 1 BY service, check;

-- A higher version of an incident replaces it. One that is withdrawn is part of another, or never was.
CREATE TABLE IF NOT EXISTS incident_rows
(
    incident_id String,
    service LowCardinality(String),
    status LowCardinality(String),
    severity LowCardinality(String),
    start_time DateTime64(6, 'UTC'),
    end_time Nullable(DateTime64(6, 'UTC')),
    description String,
    impact String,
    resolution String,
    alerts Array(String),
    false_positives UInt32,
    downtime_s Float64,
    down_since Nullable(DateTime64(6, 'UTC')),
    acknowledged_at Nullable(DateTime64(6, 'UTC')),
    acknowledged_by String,
    interventions UInt32,
    version UInt64,
    stored_at DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (service, incident_id)
SETTINGS ttl_only_drop_parts = 1;

-- Where all of its alerts are marked as false, `counts` is false. The mean of `seconds_to_repair` is the MTTR.
CREATE OR REPLACE VIEW incidents AS
SELECT
    incident_id AS id, * EXCEPT (incident_id, stored_at),
    false_positives < length(alerts) AS counts,
    if(end_time IS NULL, NULL, dateDiff('second', start_time, assumeNotNull(end_time))) AS seconds_to_repair
FROM incident_rows FINAL
WHERE status != 'withdrawn';
