"""Access logs of Apache and nginx: one regular expression for a whole block of lines.

Each line gives `http.server.requests` (counter, {request}), and where the log has them
`http.server.request.duration` (distribution, s) and `http.server.response.body.size` (distribution, By).
Attributes: `http.request.method`, `http.response.status_code`, and `url.path`, of which only the leading segments
are kept and at most 100 distinct ones of a file, for a scanner asks for as many paths as it likes. Never the query.
Source: nginx ngx_http_log_module and ngx_http_core_module, Apache mod_log_config, OpenTelemetry's HTTP semantic
conventions.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tailrace_schemas.samples import MAX_TIME_US, MIN_TIME_US, Series

from tailrace_producers.http_server import METHODS, OTHER
from tailrace_producers.replay.columns import KeyColumn, distinct_rows, key_column, times_of, values_of
from tailrace_producers.replay.model import (
    F8,
    I4,
    I8,
    REASONS,
    BadLine,
    BadLines,
    BadReason,
    Block,
    Catalogue,
    Mask,
    ReplayError,
    ReplayOptions,
)
from tailrace_producers.replay.source import LineBlock

__all__ = ["LogFormat", "access_log_blocks", "log_format", "looks_like_access_log"]

MAX_PATHS: Final = 100
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}  # fmt: skip
_DIVISOR: Final = {"s": 1.0, "ms": 1e3, "us": 1e6}

_QUOTED: Final = r'(?:[^"\\\n]|\\.)*'
_CLF_TIME: Final = r"[0-9]{2}/[A-Za-z]{3}/[0-9]{4}(?::[0-9]{2}){3} [+-][0-9]{4}"


class LogFormat(NamedTuple):
    """A compiled format. Groups of the pattern: time, method, path, status, size, duration, those that it has."""

    pattern: str
    groups: frozenset[str]
    duration_unit: str


# -- formats to patterns ------------------------------------------------------------------------------------


def log_format(options: ReplayOptions) -> LogFormat:
    """The pattern of a file's lines.

    Raises:
        ReplayError: the format has no time, or not the duration field that is asked for.
    """
    if options.log_format in ("", "combined", "common"):
        return _combined(options)
    return _compiled(options)


def looks_like_access_log(line: bytes) -> bool:
    """Whether a line is of the common or combined format, whatever follows."""
    return re.match(_combined(ReplayOptions()).pattern.encode(), line.rstrip(b"\r\n") + b"\n") is not None


def _combined(options: ReplayOptions) -> LogFormat:
    """Common and combined, with anything after it, and before it (`%v:%p` of vhost_combined)."""
    field = options.duration_field
    if not field:
        trailing = ""
    elif field.isascii() and field.isdigit() and field != "0":
        trailing = rf'(?: (?:"{_QUOTED}"|[^ "\n]+)){{{int(field) - 1}}}(?: "?(?P<duration>[0-9.]+))?'
    elif re.fullmatch(r"[A-Za-z_][\w.-]*", field):
        trailing = rf'(?:[^\n]*[ ,;"]{re.escape(field)}"?[=:] ?"?(?P<duration>[0-9.]+))?'
    else:
        raise ReplayError(f"duration_field {field!r} is neither a position (1, 2, ...) nor the name of a field")
    pattern = (
        rf'^[^\[\n]*\[(?P<time>{_CLF_TIME})\] "{_request(options.path_segments)}" (?P<status>[0-9]{{3}}|-) '
        rf'(?P<size>[0-9]+|-)(?: "{_QUOTED}" "{_QUOTED}")?{trailing}[^\n]*\n'
    )
    return _format(pattern, options.duration_unit or "s")


def _request(segments: int) -> str:
    # What is no request line (a TLS hello on a plain port, a timeout's "-") still is a request, of method _OTHER.
    path = rf"(?P<path>(?:/[^/?#; \"\\\n]*){{0,{segments}}})" if segments else ""
    return rf"(?:(?P<method>[A-Za-z]+) (?:[a-z]+://[^/ \"\\\n]*)?{path})?{_QUOTED}"


_NGINX: Final = {
    "time_local": rf"(?P<time>{_CLF_TIME})",
    "time_iso8601": r"(?P<time>[0-9T:+-]+)",
    "msec": r"(?P<time>[0-9]+\.[0-9]+)",
    "request_method": r"(?P<method>[A-Za-z]+|-)",
    "status": r"(?P<status>[0-9]{3}|-)",
    "body_bytes_sent": r"(?P<size>[0-9]+|-)",
}
_APACHE: Final = {
    "t": rf"\[(?P<time>{_CLF_TIME})\]",
    "{sec}t": r"(?P<time>[0-9]+)",
    "m": r"(?P<method>[A-Za-z]+|-)",
    "s": r"(?P<status>[0-9]{3}|-)",
    "b": r"(?P<size>[0-9]+|-)",
    "B": r"(?P<size>[0-9]+|-)",
}
_DURATION_UNITS: Final = {"request_time": "s", "D": "us", "T": "s", "{s}T": "s", "{ms}T": "ms", "{us}T": "us"}

_TOKEN: Final = re.compile(
    r"\$\{(?P<braced>\w+)\}|\$(?P<nginx>\w+)"
    r"|%(?:!?\d{3}(?:,\d{3})*)?[<>]?(?P<apache>(?:\{[^}]*\})?(?:\^[A-Za-z]{2}|[A-Za-z]))|(?P<percent>%%)"
)


def _compiled(options: ReplayOptions) -> LogFormat:
    """A format string, token by token. A variable of which nothing is known is skipped up to what follows it."""
    text = options.log_format.replace('\\"', '"')
    wanted = options.duration_field.lstrip("$%<>")
    pattern = "^"
    seen: set[str] = set()
    unit = ""
    position = 0
    for token in _TOKEN.finditer(text):
        pattern += re.escape(text[position : token.start()])
        position = token.end()
        if token["percent"]:
            pattern += "%"
            continue
        name = token["braced"] or token["nginx"] or token["apache"]
        known = _APACHE if token["apache"] else _NGINX
        rest = text[position:]
        piece = known.get(name, "")
        if name in ("request", "r"):
            piece = _request(options.path_segments)
        elif name in ("request_uri", "uri", "U") and options.path_segments:
            piece = rf"(?P<path>(?:/[^/?#; \"\\\n]*){{0,{options.path_segments}}}){_filler(rest)}"
        elif name == wanted or (not wanted and name in _DURATION_UNITS):
            piece = rf"(?:(?P<duration>[0-9.]+)|{_filler(rest)})"
            unit = unit or _DURATION_UNITS.get(name, "s")
        groups = set(re.findall(r"\(\?P<(\w+)>", piece))
        if not piece or groups & seen:
            piece = _filler(rest)
        seen |= groups
        pattern += piece
    pattern += re.escape(text[position:]) + r"[^\n]*\n"
    for group, what in (("time", "a time"), ("duration", f"the field {wanted!r}")):
        if group not in seen and (group == "time" or wanted):
            raise ReplayError(f"the log format {options.log_format!r} does not have {what}")
    return _format(pattern, options.duration_unit or unit or "s")


def _filler(rest: str) -> str:
    """What a variable may hold, judged by the text after it."""
    if rest.startswith('"'):
        return _QUOTED
    if rest.startswith(" ["):
        return r"[^\[\n]*"
    return rf"[^{re.escape(rest[0])}\n]*" if rest else r"[^\n]*"


def _format(pattern: str, unit: str) -> LogFormat:
    return LogFormat(pattern, frozenset(re.findall(r"\(\?P<(\w+)>", pattern)), unit)


# -- lines to samples -----------------------------------------------------------------------------------------


def access_log_blocks(
    lines: Iterator[LineBlock], options: ReplayOptions, service: str, catalogue: Catalogue, bad: BadLines, path: str
) -> Iterator[tuple[Block, int]]:
    """(samples, bytes read) of each block of lines. The format is checked before this returns.

    Raises:
        ReplayError: here: the format cannot be used; while iterating: too many bad lines, or a duration is asked
            for and the first block has none.
    """
    form = log_format(options)
    requests = _Requests(service, catalogue, form, options.path_segments > 0)

    def blocks() -> Iterator[tuple[Block, int]]:
        for number, block in enumerate(lines):
            text = _lines(block)
            fields = pc.extract_regex(text, form.pattern)
            time_us, understood = _times(fields.field("time"))
            reasons = np.zeros(len(text), np.int8)
            reasons[(time_us < MIN_TIME_US) | (time_us > MAX_TIME_US)] = 1 + REASONS.index(BadReason.TIME_RANGE)
            reasons[~understood] = 1 + REASONS.index(BadReason.TIME)
            reasons[pc.is_null(fields).to_numpy(zero_copy_only=False)] = 1 + REASONS.index(BadReason.PATTERN)

            rows = np.flatnonzero(block.filled)

            def describe(
                place: int, text: Any = text, reasons: Any = reasons, rows: I8 = rows, first: int = block.first_line
            ) -> BadLine:
                row = int(rows[place])
                quoted = text[row].as_py().decode("utf-8", "replace").rstrip("\r\n")[:200]
                return BadLine(first + row, REASONS[reasons[row] - 1], quoted)

            bad.add_rows(reasons[rows], describe)
            good = reasons == 0
            samples, durations = requests.samples(fields, time_us, good)
            if number == 0 and options.duration_field and good.any() and not durations:
                raise ReplayError(
                    f"{path}: no line has the duration field {options.duration_field!r}: give its position among the "
                    "fields after the combined format (1, 2, ...), the name in name=value, or the log format"
                )
            yield samples, block.position

    return blocks()


def _lines(block: LineBlock) -> Any:
    """The lines of a block as an Arrow array over the same memory, each with its line end."""
    offsets = np.concatenate(([0], block.ends + 1)).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(block.ends), buffers)


def _times(column: Any) -> tuple[I8, Mask]:
    """Each distinct text once: a busy server writes many lines a second."""
    stamps = pc.dictionary_encode(pc.fill_null(column, b""))
    texts = stamps.dictionary
    codes = stamps.indices.to_numpy(zero_copy_only=False)
    clf = [_clf_time_us(text) for text in texts.to_pylist()]
    if any(time is None for time in clf):
        other, understood = times_of(texts, "s")
        known = understood | np.array([time is not None for time in clf])
        time_us = np.array([o if time is None else time for time, o in zip(clf, other.tolist(), strict=True)], np.int64)
    else:
        time_us, known = np.array(clf, np.int64), np.ones(len(clf), bool)
    return time_us[codes], known[codes]


def _clf_time_us(text: bytes) -> int | None:
    """`17/May/2015:10:05:03 +0000`; not by strptime, whose month names depend on the locale."""
    if len(text) != 26 or text[2:3] != b"/":
        return None
    try:
        zone = int(text[21:24]) * 60 + int(text[21:22] + text[24:26])
        moment = datetime(
            int(text[7:11]), _MONTHS[text[3:6].decode()], int(text[:2]),
            int(text[12:14]), int(text[15:17]), int(text[18:20]), tzinfo=timezone(timedelta(minutes=zone)),
        )  # fmt: skip
    except (ValueError, KeyError):
        return None
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class _Requests:
    """The samples of parsed lines; remembers the paths and the series seen so far."""

    METRICS: Final = (
        ("http.server.request.duration", "distribution", "s"),
        ("http.server.response.body.size", "distribution", "By"),
        ("http.server.requests", "counter", "{request}"),
    )

    def __init__(self, service: str, catalogue: Catalogue, form: LogFormat, paths: bool) -> None:
        self._service = service
        self._catalogue = catalogue
        self._form = form
        self._paths: set[str] | None = set() if paths else None
        self._seen: dict[tuple[str, ...], list[int]] = {}

    def samples(self, fields: Any, time_us: I8, good: Mask) -> tuple[Block, int]:
        """(samples of the good lines, line by line, how many of them are durations)."""
        rows = np.flatnonzero(good)
        if not len(rows):
            return Block(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)), 0
        if len(rows) < len(good):
            fields = fields.filter(pa.array(good))
            time_us = time_us[good]
        duration, has_duration = self._measured(fields, "duration", len(rows))
        size, has_size = self._measured(fields, "size", len(rows))
        value = np.column_stack((duration / _DIVISOR[self._form.duration_unit], size, np.ones(len(rows))))
        present = np.column_stack((has_duration, has_size, np.ones(len(rows), bool)))
        series = self._series(fields, present)
        times = np.broadcast_to(time_us[:, None], value.shape)
        return Block(times[present], series[present], value[present]), int(has_duration.sum())

    def _measured(self, fields: Any, name: str, rows: int) -> tuple[F8, Mask]:
        if name not in self._form.groups:
            return np.zeros(rows), np.zeros(rows, bool)
        column = fields.field(name)
        if name == "size":
            # In the common log format a dash stands for no bytes.
            column = pc.if_else(pc.equal(column, b"-"), b"0", column)
        value, known = values_of(column)
        return value, known & np.isfinite(value)

    def _series(self, fields: Any, present: Any) -> I4:
        columns = [
            key_column(fields.field(name))
            if name in self._form.groups
            else KeyColumn(np.zeros(len(present), np.int32), [""])
            for name in ("method", "status", "path")
        ]
        first, place = distinct_rows(columns, len(present))
        # By first appearance, which decides the paths that are kept, however the file was cut into blocks.
        found = np.zeros((len(first), 3), np.int32)
        seen = self._seen
        lowest = np.full(len(first), len(present), np.int64)
        np.minimum.at(lowest, place, np.arange(len(present)))
        for i in np.argsort(lowest).tolist():
            key = tuple(c.values[c.codes[first[i]]] or "" for c in columns)
            if key not in seen:
                numbers = self._numbers(*key)
                if len(seen) < 100_000:
                    seen[key] = numbers
            else:
                numbers = seen[key]
            found[i] = numbers
        return found[place]

    def _numbers(self, method: str, status: str, path: str) -> list[int]:
        attributes = {"http.request.method": method if method in METHODS else OTHER}
        if status.isdigit():
            attributes["http.response.status_code"] = status
        if self._paths is not None and path:
            if path not in self._paths and len(self._paths) < MAX_PATHS and len(path) <= 255:
                self._paths.add(path)
            attributes["url.path"] = path if path in self._paths else OTHER
        pairs = tuple(sorted(attributes.items()))
        return [self._catalogue.number(self._service, Series(*metric, pairs)) for metric in self.METRICS]
