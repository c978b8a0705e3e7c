"""The configuration: what users write in YAML, and the same as records of the config topic.

Native files have sections at their top level, each a list of things with a name (or a mapping that is one thing); files
may also hold OpenSLO documents. `SECTIONS` says which there are: a new one is its model and a line there.

Needs pydantic and PyYAML; a service that embeds a producer does not load this.
"""

from tailrace_schemas.config.base import ConfigModel, Duration, Name, duration_text, parse_duration
from tailrace_schemas.config.load import Config, Record, load, model_of, record_of
from tailrace_schemas.config.source import ConfigError, Document, Item, Key, Problem

__all__ = [
    "Config", "ConfigError", "ConfigModel", "Document", "Duration", "Item", "Key", "Name", "Problem", "Record",
    "duration_text", "load", "model_of", "parse_duration", "record_of",
]  # fmt: skip
