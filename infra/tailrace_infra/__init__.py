"""What runs Tailrace: settings, the `tailrace` command, the embedded stack, a real Kafka for development."""
