"""The notifier: from the notifications topic to people."""
