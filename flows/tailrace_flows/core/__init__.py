"""Pure state machines. Time is an argument; no Bytewax, Kafka or ClickHouse here."""
