-- An alert that has ended has ended: after a crash its end may have the number of an event that was told before.
CREATE OR REPLACE VIEW alerts AS
SELECT
    alert_id AS id, name, description, severity, status, source, service, metric, labels,
    operator, threshold, duration_s, current_value,
    started_at, time AS changed_at, acknowledged_at, acknowledged_by, resolved_at, resolved_by, false_positive,
    tags, annotations, sequence
FROM alert_event_rows FINAL
WHERE transition NOT IN ('rejected', 'silenced', 'unsilenced') AND alert_id != ''
ORDER BY alert_id, status = 'resolved' DESC, sequence DESC
LIMIT 1 BY alert_id;
