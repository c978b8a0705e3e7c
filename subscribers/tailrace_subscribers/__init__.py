"""What reads the alert topic and ClickHouse. Empty as yet: its place among the imports is settled already."""
