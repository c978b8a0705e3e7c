"""Alerts, objectives, health and what is told of them: pure state machines. See docs/alerting.md."""
