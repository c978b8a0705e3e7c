"""Rows on stdout, for people and for programs."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tailrace_infra.visible import json_visible, visible

__all__ = ["TABLE_ROWS_MAX", "Format", "write_rows"]

TABLE_ROWS_MAX = 10_000
"""A table is laid out as a whole, and nobody reads more."""


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    """An array of objects; NaN and infinities become null."""
    CSV = "csv"


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], format: Format) -> None:
    """Prints rows on stdout: as JSON and CSV one by one, as a table `TABLE_ROWS_MAX` at most.

    In JSON and CSV numbers keep every digit, and times are RFC 3339. Without columns there is nothing to print,
    but JSON has its empty array.
    """
    if format is Format.JSON:
        _write_json(columns, rows)
    elif not columns:
        return
    elif format is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        shown = visible if sys.stdout.isatty() else str  # a file or a program gets every character as it is
        writer.writerow(map(shown, columns))
        writer.writerows([shown(_text(value)) for value in row] for row in rows)
    else:
        _write_table(columns, rows)


def _write_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """An object a line, inside one array."""
    before = "\n"
    sys.stdout.write("[")
    for row in rows:
        one = dict(zip(columns, map(_plain, row), strict=True))
        sys.stdout.write(before + json_visible(json.dumps(one, ensure_ascii=False, allow_nan=False)))
        before = ",\n"
    sys.stdout.write("\n]\n" if before == ",\n" else "]\n")


def _write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    iterator = iter(rows)
    shown = list(islice(iterator, TABLE_ROWS_MAX))
    table = Table()
    for number, column in enumerate(columns):
        numbers = bool(shown) and all(_is_number(row[number]) for row in shown)
        table.add_column(escape(visible(column)), justify="right" if numbers else "left")
    for row in shown:
        table.add_row(*(escape(f"{v:.6g}" if isinstance(v, float) else visible(_text(v))) for v in row))
    # Piped, a table keeps its whole width rather than 80 columns.
    Console(width=None if sys.stdout.isatty() else 10_000, soft_wrap=True).print(table)
    if next(iterator, None) is not None:
        sys.stderr.write(f"only the first {TABLE_ROWS_MAX:,} rows; --format csv or json prints all\n")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, datetime):
        # A time without a zone is UTC: ClickHouse's driver leaves out no other.
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _text(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
