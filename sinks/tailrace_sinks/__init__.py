"""Writers to ClickHouse and Kafka."""
