-- Users of a ClickHouse server for Tailrace: one that owns the tables, one for the flows, one for people. An administrator
-- runs it once; the hashes of the passwords are parameters, so that no password is in a file, an argument or a log:
--
--   clickhouse-client --param_owner="$(hash < owner)" --param_flows="$(hash < flows)" --param_people="$(hash < people)" \
--     --queries-file users.sql        with: hash() { tr -d '\n' | sha256sum | cut -d' ' -f1; }
--
-- All statements were parsed by ClickHouse's own parser; they were never run on a server (see docs/security.md).

-- `tailrace migrate`
CREATE USER IF NOT EXISTS tailrace_owner IDENTIFIED WITH sha256_hash BY {owner:String};
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP VIEW, ALTER, SELECT, INSERT ON tailrace.* TO tailrace_owner;
GRANT CREATE FUNCTION, DROP FUNCTION ON *.* TO tailrace_owner;

-- `tailrace run`, `replay`: they insert rows, and read what they stored
CREATE USER IF NOT EXISTS tailrace_flows IDENTIFIED WITH sha256_hash BY {flows:String};
GRANT SELECT, INSERT ON tailrace.* TO tailrace_flows;

-- People: `tailrace sql`, `alerts list`, `status`, Grafana, curl. `readonly = 2`: settings may be changed, within the limits
-- below, and nothing else. Without the rights URL, REMOTE, FILE and S3 no query reaches beyond the tables.
CREATE SETTINGS PROFILE IF NOT EXISTS tailrace_people SETTINGS
    readonly = 2,
    max_execution_time = 30 MAX 300,
    max_memory_usage = 2000000000 MAX 8000000000,
    max_threads = 4 MAX 16,
    max_result_bytes = 1000000000 MAX 4000000000;
CREATE ROLE IF NOT EXISTS tailrace_reader SETTINGS PROFILE 'tailrace_people';
GRANT SELECT ON tailrace.* TO tailrace_reader;
CREATE USER IF NOT EXISTS tailrace_people IDENTIFIED WITH sha256_hash BY {people:String} DEFAULT ROLE tailrace_reader;
GRANT tailrace_reader TO tailrace_people;
CREATE QUOTA IF NOT EXISTS tailrace_people FOR INTERVAL 1 minute MAX queries = 600, execution_time = 600 TO tailrace_reader;
