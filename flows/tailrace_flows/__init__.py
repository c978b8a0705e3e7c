"""The dataflows: pure state machines in `core`, wired to Kafka and ClickHouse with Bytewax."""
