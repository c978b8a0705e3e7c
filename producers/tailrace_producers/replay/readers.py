"""Files as blocks of samples: CSV and Parquet here, access logs in `access_log`. Bounded memory for any size."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tailrace_producers.replay.access_log import access_log_blocks, looks_like_access_log
from tailrace_producers.replay.columns import SeriesColumns, key_column, reasons_of, times_of, values_of
from tailrace_producers.replay.model import (
    REASONS,
    BadLine,
    BadLines,
    BadReason,
    Block,
    Catalogue,
    ReplayError,
    ReplayOptions,
    count_reasons,
)
from tailrace_producers.replay.source import BLOCK_BYTES, FileBytes, LineBlock, line_blocks, reading, stem_of

__all__ = ["Reading", "read_blocks"]

PARQUET_ROWS: Final = 65_536
MAX_BLOCK_SAMPLES: Final = 1_000_000
"""Of a block whose rows stand for many samples."""


class Reading(NamedTuple):
    """A block of samples, and how many bytes of the file have been read."""

    block: Block
    position: int


def read_blocks(
    source: FileBytes, options: ReplayOptions, catalogue: Catalogue, bad: BadLines, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[Reading]:
    """The samples of a file, in its order. The header is read and checked before this returns.

    Raises:
        ReplayError: here or while iterating: the file cannot be read, lacks a column, or has too many bad lines.
    """
    form = options.format if options.format != "auto" else _detected(source, options)
    if form == "parquet":
        return _parquet(source, options, catalogue, bad)
    lines = line_blocks(source, block_bytes=block_bytes)
    if form == "access_log":
        logs = access_log_blocks(lines, options, options.service or stem_of(source.path), catalogue, bad, source.path)
        return (Reading(block, position) for block, position in logs)
    return _csv(source, lines, options, catalogue, bad)


def _detected(source: FileBytes, options: ReplayOptions) -> str:
    with reading(source.path), open(source.path, "rb") as raw:
        head = source.reader(raw)(64 * 1024)
    if head.startswith(b"PAR1") or source.path.lower().endswith((".parquet", ".pq")):
        return "parquet"
    if options.log_format or options.duration_field:
        return "access_log"
    first = next((line for line in head.splitlines() if line.strip()), b"")
    return "access_log" if looks_like_access_log(first) else "csv"


# -- the columns of a file --------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Which columns of a file are read, and as what."""

    time: str
    value: str
    repeat: str
    """Column of counts; empty: none."""
    keys: tuple[str, ...]
    """The columns that name the series: those of `fields`, then the attributes."""
    fields: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        return list(dict.fromkeys((self.time, self.value, *filter(None, [self.repeat]), *self.keys)))


def layout_of(path: str, found: list[str], options: ReplayOptions) -> Layout:
    """What the columns of a file mean.

    Raises:
        ReplayError: one is missing or there twice; names the file, the columns found and those allowed.
    """
    roles = {
        "service": options.service_column,
        "metric": options.metric_column,
        "kind": "kind",
        "unit": "unit",
    }
    named = {options.time_column, options.value_column, options.count_column, *roles.values()} - {""}
    needed = [options.time_column, options.value_column]
    if options.count_column:
        needed.append(options.count_column)
    if not options.metric:
        needed.append(options.metric_column)
    if options.service_column != "service":
        needed.append(options.service_column)
    attributes = options.attribute_columns
    if attributes is None:
        attributes = tuple(name for name in found if name and name not in named)
    missing = [name for name in (*needed, *attributes) if name not in found]
    doubled = [name for name, times in Counter(found).items() if name and times > 1]
    if missing or doubled:
        fault = f"no column {missing[0]!r}" if missing else f"two columns {doubled[0]!r}"
        raise ReplayError(
            f"{path}: {fault}; found: {', '.join(found)[:500]}. A file of samples has the columns time, metric and "
            "value, may have kind, unit and service, and any other column is an attribute. Other names can be "
            "given for time, value, metric (or one metric for all rows), service, count and the attributes"
        )
    fields = tuple(role for role, column in roles.items() if column in found)
    return Layout(
        options.time_column,
        options.value_column,
        options.count_column,
        (*(roles[role] for role in fields), *attributes),
        fields,
        attributes,
    )


class Rows:
    """Turns column batches into blocks, for the formats that have columns."""

    def __init__(self, path: str, layout: Layout, options: ReplayOptions, catalogue: Catalogue) -> None:
        defaults = {
            "service": options.service or stem_of(path),
            "metric": options.metric,
            "kind": options.kind,
            "unit": options.unit,
        }
        self._layout = layout
        self._time_unit = options.time_unit
        self._series = SeriesColumns(catalogue, defaults, layout.fields, layout.attributes)

    def blocks(self, column: Callable[[str], Any], rows: int) -> tuple[npt.NDArray[np.int8], Iterator[Block]]:
        """(why each row is bad, the samples of the good ones); `column` gives an Arrow array by name.

        Raises:
            TypeError: a column's type cannot be used.
        """
        layout = self._layout
        times = times_of(column(layout.time), self._time_unit)
        values = values_of(column(layout.value))
        counts = values_of(column(layout.repeat)) if layout.repeat else None
        series = self._series.numbers([key_column(column(name)) for name in layout.keys], rows)
        reasons = reasons_of(times, values, series, counts)
        block = Block(times[0], series, values[0])
        repeats = None if counts is None else counts[0]
        if reasons.any():
            good = reasons == 0
            block = block.rows(good)
            repeats = None if repeats is None else repeats[good]
        return reasons, iter([block]) if repeats is None else _repeated(block, repeats)


def _repeated(block: Block, counts: npt.NDArray[np.float64]) -> Iterator[Block]:
    """Each row so many times, in blocks of a bounded size however great a count is."""
    ends = np.cumsum(counts.astype(np.int64))
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, MAX_BLOCK_SAMPLES):
        rows = np.searchsorted(ends, np.arange(start, min(start + MAX_BLOCK_SAMPLES, total)), side="right")
        yield block.rows(rows)


# -- CSV --------------------------------------------------------------------------------------------------


def _csv(
    source: FileBytes, lines: Iterator[LineBlock], options: ReplayOptions, catalogue: Catalogue, bad: BadLines
) -> Iterator[Reading]:
    """A row is a line: a line break inside quotes is not allowed, so that one stray quote costs one line."""
    first = next(lines, LineBlock.of(b"", 1, 0))
    text = first.data.removeprefix(b"\xef\xbb\xbf")
    header, _, body = text.lstrip(b"\r\n").partition(b"\n")
    start = first.first_line + text.count(b"\n", 0, len(text) - len(body))
    names = [name.strip() for name in _fields(header)]
    layout = layout_of(source.path, names, options)
    rows = Rows(source.path, layout, options, catalogue)

    def readings() -> Iterator[Reading]:
        for block in _with_first(LineBlock.of(body, start, first.position), lines):
            with reading(source.path):
                table, short, doubtful = _parsed(block, names, layout)

            def column(name: str, table: Any = table) -> Any:
                return table.column(name).chunk(0)

            # An empty table has no chunks.
            found, blocks = rows.blocks(column, len(table)) if len(table) else (np.zeros(0, np.int8), iter(()))
            counts = count_reasons(found)
            lines_in = int(np.count_nonzero(block.filled))
            lost = lines_in - len(table) - short - doubtful
            # Quotes can still make the parser join lines: what it swallowed is counted, never lost in silence.
            counts += Counter({BadReason.COLUMNS: short, BadReason.QUOTES: doubtful + max(0, lost)})
            bad.add(
                lines_in,
                +counts,
                lambda block=block, found=found: _csv_examples(block, found, len(names)),  # type: ignore[misc]
            )
            for samples in blocks:
                yield Reading(samples, block.position)

    return readings()


def _with_first(first: LineBlock, rest: Iterator[LineBlock]) -> Iterator[LineBlock]:
    yield first
    yield from rest


def _parsed(block: LineBlock, names: list[str], layout: Layout) -> tuple[Any, int, int]:
    """(table of the columns that are read, lines of another number of columns, lines with a lone quote)."""
    data, doubtful = _without_lone_quotes(block)
    data, short = _without_broken_lines(data, len(names))

    def skip(_: Any) -> str:
        nonlocal short
        short += 1
        return "skip"

    types = {name: pa.dictionary(pa.int32(), pa.binary()) for name in layout.keys}
    types |= {name: pa.binary() for name in (layout.time, layout.value, layout.repeat) if name}
    if not data or data.isspace():
        return pa.table({name: pa.array([], kind) for name, kind in types.items()}), 0, doubtful
    table = pa_csv.read_csv(
        pa.BufferReader(data),
        # One block: Arrow would cut it with less knowledge of lines than we have.
        read_options=pa_csv.ReadOptions(column_names=_unique(names), block_size=len(data) + 1),
        parse_options=pa_csv.ParseOptions(invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=types, include_columns=layout.columns, null_values=[], strings_can_be_null=False
        ),
    )
    return table, short, doubtful


def _unique(names: list[str]) -> list[str]:
    """Columns without a name, which are not read, still need one that is not another's."""
    return [name or f"\0{place}" for place, name in enumerate(names)]


def _without_lone_quotes(block: LineBlock) -> tuple[bytes, int]:
    """(the lines that have an even number of quotes, how many have not): a lone quote would swallow what follows."""
    if b'"' not in block.data:
        return block.data, 0
    octets = np.frombuffer(block.data, np.uint8)
    quotes = np.bincount(np.searchsorted(block.ends, np.flatnonzero(octets == 34)), minlength=len(block.ends))
    odd = quotes % 2 == 1
    if not odd.any():
        return block.data, 0
    kept = np.repeat(~odd, np.diff(block.starts, append=len(octets)))
    return octets[kept].tobytes(), int(np.count_nonzero(odd))


def _without_broken_lines(data: bytes, columns: int) -> tuple[bytes, int]:
    """(without the lines that Arrow would make something else of, how many those were).

    Arrow hands lines of another number of columns to its handler as text, and gives up on the file where they are none
    in UTF-8. A carriage return within a line ends one for it: what is before and after it would be two.
    """
    octets = np.frombuffer(data, np.uint8)
    inner = b"\r" in data and (octets[1:][octets[:-1] == 13] != 10).any()
    if not inner and _is_utf8(data):
        return data, 0
    lines = data.split(b"\n")
    kept = [
        line
        for line in lines
        if b"\r" not in line.rstrip(b"\r") and (_is_utf8(line) or len(_fields(line.rstrip(b"\r"))) == columns)
    ]
    return b"\n".join(kept), len(lines) - len(kept)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _csv_examples(block: LineBlock, reasons: npt.NDArray[np.int8], columns: int) -> Iterator[BadLine]:
    """The bad lines of a block, found again line by line: slow, and only done for the first few."""
    row = 0
    for number, raw in enumerate(block.data.split(b"\n"), block.first_line):
        raw = raw.rstrip(b"\r")
        if not raw:
            continue
        text = raw[:800].decode("utf-8", "replace")[:200]
        if raw.count(b'"') % 2:
            yield BadLine(number, BadReason.QUOTES, text)
        elif len(_fields(raw)) != columns:
            yield BadLine(number, BadReason.COLUMNS, text)
        else:
            if row < len(reasons) and reasons[row]:
                yield BadLine(number, REASONS[reasons[row] - 1], text)
            row += 1


def _fields(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8", "replace")]), [])
    except csv.Error:  # a field beyond 128 kB: no line of samples
        return []


# -- Parquet ----------------------------------------------------------------------------------------------


def _parquet(source: FileBytes, options: ReplayOptions, catalogue: Catalogue, bad: BadLines) -> Iterator[Reading]:
    with reading(source.path):
        file = pq.ParquetFile(source.path)
        schema = file.schema_arrow
        names = schema.names
    layout = layout_of(source.path, names, options)
    for name in layout.keys:
        if pa.types.is_nested(schema.field(name).type):
            raise ReplayError(
                f"{source.path}: column {name!r} is nested ({schema.field(name).type}) and cannot be an attribute: "
                "name the columns to keep as attributes"
            )
    rows = Rows(source.path, layout, options, catalogue)
    total = max(1, file.metadata.num_rows)

    def readings() -> Iterator[Reading]:
        done = 0
        with reading(source.path), file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=layout.columns):
                try:
                    reasons, blocks = rows.blocks(batch.column, len(batch))
                except (TypeError, pa.ArrowNotImplementedError) as error:
                    raise ReplayError(f"{source.path}: {error}") from error

                def describe(row: int, batch: Any = batch, reasons: Any = reasons, done: int = done) -> BadLine:
                    try:
                        text = str(batch.slice(row, 1).to_pylist()[0])[:200]
                    except UnicodeDecodeError:
                        text = "text that is no UTF-8"
                    return BadLine(done + row + 1, REASONS[reasons[row] - 1], text)

                bad.add_rows(reasons, describe)
                done += len(batch)
                for samples in blocks:
                    yield Reading(samples, os.path.getsize(source.path) * done // total)
            if done != file.metadata.num_rows:
                raise ReplayError(f"{source.path}: damaged, {done:,} of {file.metadata.num_rows:,} rows can be read")

    return readings()
