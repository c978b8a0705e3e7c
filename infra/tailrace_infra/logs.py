"""Logging of every Tailrace process: one line an event, on stderr."""

import logging
import os
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

from tailrace_infra.visible import visible

__all__ = ["configure_logging"]


def configure_logging(level: str | None = None) -> None:
    """Standard logging through structlog: coloured on a terminal, logfmt elsewhere. `TAILRACE_LOG` sets the level."""
    chosen = (level or os.environ.get("TAILRACE_LOG", "")).upper()
    if chosen not in logging.getLevelNamesMapping():
        chosen = "INFO"
    renderer = (
        structlog.dev.ConsoleRenderer(pad_event_to=0)
        if sys.stderr.isatty()
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "logger", "event"])
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _visible, renderer],
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
        )
    )
    logging.basicConfig(level=chosen, handlers=[handler], force=True)
    # librdkafka reports every reconnect; what matters of it reaches the flow as an error.
    logging.getLogger("tailrace.librdkafka").setLevel(logging.CRITICAL)
    # They report what they raise, too.
    for name in ("urllib3", "clickhouse_connect"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _visible(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """No text of others reaches the terminal's controls or begins a line of its own; tracebacks keep their lines."""
    return {
        name: visible(value, one_line=sys.stderr.isatty() and name != "exception") if isinstance(value, str) else value
        for name, value in event.items()
    }
