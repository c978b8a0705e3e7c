"""Rows on stdout, for people and for programs."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Format", "write_rows"]


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    """An array of objects; NaN and infinities become null."""
    CSV = "csv"


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], format: Format) -> None:
    """Prints rows on stdout."""
    if format is Format.JSON:
        objects = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
        sys.stdout.write(json.dumps(objects, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    elif format is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_text(value) for value in row] for row in rows)
    else:
        table = Table(*(escape(column) for column in columns))
        for row in rows:
            table.add_row(*(escape(f"{v:.6g}" if isinstance(v, float) else _text(v)) for v in row))
        # Piped, a table keeps its whole width rather than 80 columns.
        Console(width=None if sys.stdout.isatty() else 10_000, soft_wrap=True).print(table)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _text(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
