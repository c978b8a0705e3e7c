"""chDB, the ClickHouse engine as a library: one directory, many sessions at once, errors in ClickHouse's words.

What `tailrace_infra.clickhouse` serves over HTTP. Measured with chDB 4.4 on two cores: a connection costs 0.1 ms, so
each request gets its own, and whatever a statement sets ends with it; connections run in parallel.
"""

import fcntl
import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from tailrace_flows.private_files import open_private, private_directory

__all__ = ["ClickHouseError", "DataInsert", "Engine", "Session", "StartError", "Statement", "quote", "split_insert"]

FREE_BYTES_MIN = 64 << 20

# By default parts that were merged away are deleted by up to 128 threads as soon as there are 100 of them (of a table);
# the threads stay, and with them 65 MB. One is enough: a table has a few new parts a second.
CONFIG = b"""<clickhouse>
<merge_tree><concurrent_part_removal_threshold>1000000</concurrent_part_removal_threshold></merge_tree>
</clickhouse>"""

# In these a result is the sum of its blocks, without a header or footer around it: it can be sent as it is made.
STREAMED_FORMATS = frozenset(
    ("native", "rowbinary", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "csv", "jsoneachrow", "null")
)


class StartError(RuntimeError):
    """It cannot be served; one line that names the directory or port, and what to do."""


class ClickHouseError(Exception):
    """An error as ClickHouse words it, `Code: 62. DB::Exception: ... (SYNTAX_ERROR)`, and its code."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")
        self.code = code

    @classmethod
    def from_engine(cls, raw: str) -> "ClickHouseError":
        """The engine's text without what the embedding adds: repeated codes, names and versions, our file's name."""
        text = re.sub(r": \(in file/uri /dev/fd/\d+\)", "", raw)
        text = re.sub(r"^(?:Code: \d+\. DB::\w+: )+(?=Code: \d)", "", text)
        start = re.match(r"Code: (\d+)\. DB::\w+: ", text)
        tail = re.search(r"(?: \((?:[A-Z][A-Z0-9_]+|version [^()]*(?:\([^()]*\))?)\)\.?)+\s*$", text)
        name = re.search(r"\(([A-Z][A-Z0-9_]+)\)", tail[0]) if tail else None
        if start is None or tail is None or name is None:
            return cls(1001, "STD_EXCEPTION", raw)
        return cls(int(start[1]), name[1], text[start.end() : tail.start()])


@contextmanager
def _engine_errors() -> Iterator[None]:
    """The engine reports everything as RuntimeError; pybind, a text that is not UTF-8, as UnicodeError."""
    try:
        yield
    except (RuntimeError, UnicodeError) as error:
        raise ClickHouseError.from_engine(str(error)) from None


def quote(value: str) -> str:
    """A string literal of ClickHouse."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


# Statements, as far as they must be understood outside the engine

_TOKEN = re.compile(
    rb"(?P<word>[A-Za-z_][A-Za-z0-9_]*|;)|(?P<open>\()|(?P<close>\))"
    rb"|(?P<skip>--[^\n]*|\#[ !][^\n]*|/\*.*?\*/|\s+)"
    rb"|(?P<quoted>'(?:[^'\\]|\\.|'')*+'|\"(?:[^\"\\]|\\.|\"\")*+\"|`(?:[^`\\]|\\.|``)*+`"
    rb"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)"
    rb"|[^A-Za-z_();'\"`$\-#/\s]+|.",
    re.DOTALL,
)


class _Word(NamedTuple):
    """A keyword, name or `;`. `text` is in upper case, and empty for what is quoted; `dotted`: after a dot."""

    text: bytes
    start: int
    end: int
    depth: int
    dotted: bool
    joins: bool  # follows the word before it with nothing but space and comments between


def _words(text: bytes) -> Iterator[_Word]:
    """The words of a statement, lazily: who stops at an INSERT's data does not pay for it. 0.3 us each."""
    depth = 0
    dotted = joins = False
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "skip":
            continue
        is_word = kind in ("word", "quoted")
        if is_word:
            upper = token[0].upper() if kind == "word" else b""
            yield _Word(upper, token.start(), token.end(), depth, dotted, joins)
        elif kind in ("open", "close"):
            depth += 1 if kind == "open" else -1
        dotted = token[0].endswith(b".")
        joins = is_word


@dataclass(frozen=True)
class Statement:
    """The text of one statement and the format it asks for, if it does (`FORMAT x`)."""

    text: bytes
    format: str | None = None

    @classmethod
    def parse(cls, text: bytes) -> "Statement":
        """Raises `ClickHouseError` for what the embedded client would do here and a ClickHouse server would not."""
        words = list(_words(text))
        names = [word.text for word in words]
        insert = names[:1] == [b"INSERT"]
        pairs = set(itertools.pairwise(names[3:] if insert else names))  # 3: a table may be called `outfile`
        if (b"INTO", b"OUTFILE") in pairs:
            raise ClickHouseError(358, "INTO_OUTFILE_NOT_ALLOWED", "INTO OUTFILE is not allowed")
        if insert and (b"FROM", b"INFILE") in itertools.pairwise(names):
            raise ClickHouseError(78, "UNKNOWN_TYPE_OF_QUERY", "FROM INFILE is not allowed; send the data")
        if re.match(rb"(CREATE|ATTACH) (OR REPLACE )?TEMPORARY ", b" ".join(names[:5])):
            message = "Temporary tables are not supported by the embedded ClickHouse: each request is its own session"
            raise ClickHouseError(48, "NOT_IMPLEMENTED", f"{message}; use a subquery, or a table with ENGINE = Memory")
        if insert and any(w.text == b"INPUT" and text[w.end :].lstrip()[:1] == b"(" for w in words):
            message = "input() is not supported by the embedded ClickHouse; insert into a table, then INSERT ... SELECT"
            raise ClickHouseError(48, "NOT_IMPLEMENTED", message)
        return cls(text, _format_clause(words, text))


def _format_clause(words: list[_Word], text: bytes) -> str | None:
    """`x` of `FORMAT x` at the end of a statement, where only SETTINGS may follow."""
    end = _Word(b";", len(text), len(text), 0, False, True)
    for word, name, after in zip(words, words[1:], [*words[2:], end], strict=False):
        clause = word.text == b"FORMAT" and word.depth == 0 and not word.dotted and name.joins
        if clause and after.joins and after.text in (b";", b"SETTINGS"):
            return text[name.start : name.end].decode("utf-8", "replace")
    return None


@dataclass(frozen=True)
class DataInsert:
    """An INSERT that brings its data: what is around `FROM INFILE 'path'`, and where in the text the data starts."""

    head: bytes
    tail: bytes
    data_at: int

    def reading(self, file: IO[bytes]) -> Statement:
        """The statement with its data in an open file, which need not have a name."""
        return Statement(self.head + b" FROM INFILE '/dev/fd/%d' " % file.fileno() + self.tail)


def split_insert(text: bytes) -> DataInsert | None:
    """The parts of `INSERT INTO t [(...)] [SETTINGS ...] FORMAT f | VALUES data`; None for any other statement.

    Why not hand the engine the whole text: it then guesses where binary data ends, and guesses wrong; in `VALUES`
    it would go on with the next statement.
    """
    words = _words(text)
    first = next(words, None)
    if first is None or first.text != b"INSERT":
        return None
    name_follows = False
    settings_at: int | None = None
    for word in words:
        if word.depth or word.dotted:
            continue
        if name_follows:
            name_follows = word.text in (b"TABLE", b"FUNCTION")
        elif word.text == b"INTO":
            name_follows = True
        elif word.text == b"SETTINGS":
            settings_at = word.start
        elif word.text in (b"VALUES", b"FORMAT"):
            name = word if word.text == b"VALUES" else next(words, word)
            at = word.start if settings_at is None else settings_at
            tail = text[at : word.start] + b" FORMAT " + text[name.start : name.end]
            blank = re.compile(rb"[ \t\f]*(?:\r?\n)?").match(text, name.end)
            return DataInsert(text[:at], tail, blank.end() if blank else name.end)
        elif word.text in (b"SELECT", b"WITH", b"FROM", b";"):
            break
    return None


# The engine


class Session:
    """One connection to the engine, for one statement. Everything it sets ends with it."""

    def __init__(self, connection: Any, readonly: bool) -> None:
        self._connection = connection
        self._readonly = readonly

    def changes_nothing(self, statement: Statement) -> bool:
        """Whether it only reads, by the engine's own parser; 10 us.

        Raises `ClickHouseError`: what does not parse, several statements at once, anything but a read in a read-only
        session (the engine alone would let `INSERT INTO FUNCTION file()` pass).
        """
        report = self._connection.classify_query(statement.text.decode("utf-8", "replace"))
        if report["statement_count"] != 1:
            # To have it in the engine's words. Not by `query`, which would run the first of several.
            with _engine_errors():
                handle = self._connection.send_query(statement.text, "Null", params={})
                self._connection.streaming_cancel_query(handle)
            raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: not one statement")
        reads: bool = report["query_class"].name == "READ_ONLY"
        if self._readonly and not reads and not re.match(rb"\s*(SET|USE)\b", statement.text, re.IGNORECASE):
            message = "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. "
            raise ClickHouseError(164, "READONLY", message + "You should use method POST for modifying queries")
        return reads

    def run(
        self, statement: Statement, fmt: str, params: Mapping[str, str], *, reads: bool
    ) -> Generator[memoryview, None, None]:
        """The result of a statement that `changes_nothing` has seen, in pieces; raises `ClickHouseError`.

        It is in `fmt` unless the statement names a format; those in `STREAMED_FORMATS` come block by block in constant
        memory, any other whole. A piece is the engine's memory and gone when the next one is asked for. `params` are
        the values of `{name:Type}`, escaped as in TSV. Closing the generator cancels the statement.
        """
        with _engine_errors():
            if reads and (statement.format or fmt).lower() in STREAMED_FORMATS:
                try:
                    handle = self._connection.send_query(statement.text, fmt, params=dict(params))
                except RuntimeError as error:  # SHOW, EXPLAIN, ...; nothing has been run
                    if "Streaming query is not supported" not in str(error):
                        raise
                else:
                    yield from self._fetch(handle)
                    return
            result = self._connection.query(statement.text, fmt, params=dict(params))
            yield result.get_memview().view()

    def _fetch(self, handle: Any) -> Iterator[memoryview]:
        ended = False
        try:
            while not ended:
                result = self._connection.streaming_fetch_result(handle)
                ended = result.rows_read() == 0
                yield result.get_memview().view()
        except RuntimeError:
            ended = True
            raise
        finally:
            if not ended:
                self._connection.streaming_cancel_query(handle)


class Engine:
    """The engine on one directory, one per process. Raises `StartError` when the directory cannot be had.

    Costs a second and 250 MB.
    """

    def __init__(self, data_dir: Path, *, queries_max: int, queue_wait_s: float) -> None:
        self.data_dir = data_dir
        self._lock_file = _lock(data_dir)
        try:
            self._anchor = self._open()
        except BaseException:
            self._lock_file.close()
            raise
        row = self._anchor.query("SELECT version(), timezone()", "TabSeparated", params={}).bytes()
        self.version, self.timezone = row.decode().split()
        self._slots = threading.BoundedSemaphore(queries_max)
        self._queue_wait_s = queue_wait_s

    def _open(self) -> Any:
        """The first connection. It is held to the end: without any, the engine shuts down."""
        try:
            from chdb import _chdb  # here, because of its price
        except ImportError as error:
            raise StartError(f"chDB cannot be loaded ({error}); pip install 'tailrace[embedded]'") from None
        # Its public wrapper lacks classify_query.
        self._connect: Any = _chdb.connect  # type: ignore[attr-defined]
        if not hasattr(self._connect, "classify_query"):
            raise StartError("this chDB is too old; pip install --upgrade 'chdb>=4.4'")
        try:
            # By its number, for chDB does not find a file under every name that a directory may have.
            with tempfile.TemporaryFile(dir=self.data_dir, buffering=0) as file:
                file.write(CONFIG)
                file.seek(0)
                return self._connect(f"{self.data_dir}?config-file=/dev/fd/{file.fileno()}")
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StartError(f"ClickHouse cannot open the data directory {self.data_dir}: {reason}") from None

    @contextmanager
    def session(self, database: str, settings: Mapping[str, str], progress: dict[str, int]) -> Iterator[Session]:
        """A session with these settings. When all are busy it waits, then raises `ClickHouseError` 202.

        `progress` gets the figures of X-ClickHouse-Summary (read_rows, written_rows, ...), every 100 ms and at the end.
        """
        if not self._slots.acquire(timeout=self._queue_wait_s):
            message = f"Too many simultaneous queries: waited {self._queue_wait_s:g} s for one to end"
            raise ClickHouseError(202, "TOO_MANY_SIMULTANEOUS_QUERIES", message)
        try:
            with _engine_errors():
                connection = self._connect(str(self.data_dir))
            with closing(connection):
                with _engine_errors():
                    if database:
                        connection.query("USE `" + database.replace("`", "``") + "`", "Null", params={})
                    if settings:
                        pairs = (f"{name} = {quote(value)}" for name, value in settings.items())
                        connection.query("SET " + ", ".join(pairs), "Null", params={})
                connection.set_progress_callback(progress.update)
                yield Session(connection, settings.get("readonly", "0") != "0")
        finally:
            self._slots.release()

    def cancel(self, condition: str) -> None:
        """Kill the statements that meet a condition over system.processes; does not wait for their end."""
        with suppress(RuntimeError), closing(self._connect(str(self.data_dir))) as connection:
            connection.query(f"KILL QUERY WHERE {condition} ASYNC", "Null", params={})

    def close(self) -> None:
        """Shut the engine down and free the directory; no session may be open."""
        self._anchor.close()
        self._lock_file.close()


def _lock(data_dir: Path) -> IO[str]:
    """Make the directory ours. The kernel frees it with the process: a kill -9 leaves no stale lock."""
    if "?" in str(data_dir):
        raise StartError(f"the data directory {data_dir} has a '?' in its name, after which chDB expects options")
    try:
        private_directory(data_dir)
        file = open_private(data_dir / "tailrace.lock", "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = shutil.disk_usage(data_dir).free
            if free < FREE_BYTES_MIN:
                need = f"{free >> 20} MiB free, {FREE_BYTES_MIN >> 20} needed; free some space"
                raise StartError(f"cannot use the data directory {data_dir}: {need}, or use another one")
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            advice = "stop that one, or use another directory"
            raise StartError(f"the data directory {data_dir} is in use by process {holder}; {advice}") from None
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise StartError(f"cannot use the data directory {data_dir}: {error.strerror}; use another one") from None
    return file
