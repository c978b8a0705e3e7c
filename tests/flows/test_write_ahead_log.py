"""Logs that lost what was committed, against what SQLite itself then reads of them."""

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from shutil import copy

from tailrace_flows.write_ahead_log import is_torn

COMMITS = 30


def written(path: Path, random: Random, checkpoints: tuple[int, ...]) -> list[Path]:
    """Copies of a database as a kill after each of COMMITS rows would leave it."""
    copies = []
    with closing(sqlite3.connect(path)) as database:
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (n, blob)"):
            database.execute(statement)
        for number in range(COMMITS):
            if number in checkpoints:
                database.execute("PRAGMA wal_checkpoint").fetchall()
            database.execute("INSERT INTO t VALUES (?, ?)", [number, random.randbytes(random.choice((9, 9_000)))])
            database.commit()
            copies.append(path.with_name(f"{number}.sqlite3"))
            for end in ("", "-wal", "-shm"):
                copy(f"{path}{end}", f"{copies[-1]}{end}")
    return copies


def rows(path: Path) -> int | None:
    """How many SQLite finds; None: it cannot read the file."""
    try:
        with closing(sqlite3.connect(path)) as database:
            whole = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return int(database.execute("SELECT count(*) FROM t").fetchone()[0]) if whole else None
    except sqlite3.DatabaseError:
        return None


def test_what_a_kill_leaves_is_not_torn(tmp_path: Path) -> None:
    for number, path in enumerate(written(tmp_path / "db", Random(1), (7, 8, 20))):
        assert not is_torn(path)
        assert rows(path) == number + 1
        assert not is_torn(path)  # the log is gone, all of it was copied


def test_a_log_is_torn_if_sqlite_finds_less_than_was_committed(tmp_path: Path) -> None:
    random = Random(2)
    found = {True: 0, False: 0}
    for number, path in enumerate(written(tmp_path / "db", random, (7, 20))):
        log = Path(f"{path}-wal")
        whole, kept = log.read_bytes(), {end: Path(f"{path}{end}").read_bytes() for end in ("", "-shm")}
        for _ in range(12):
            for end, contents in kept.items():
                Path(f"{path}{end}").write_bytes(contents)
            damaged = bytearray(whole)
            at = random.randrange(len(whole) if random.random() < 0.9 else 32)
            if random.random() < 0.4:
                del damaged[at:]
            else:
                damaged[at] ^= 1 << random.randrange(8)
            log.write_bytes(damaged)
            torn = is_torn(path)
            assert torn == (rows(path) != number + 1), (number, at, len(damaged), len(whole))
            found[torn] += 1
    assert min(found.values()) > 50


def test_a_log_that_is_gone_is_missed(tmp_path: Path) -> None:
    for number, path in enumerate(written(tmp_path / "db", Random(3), (7,))):
        Path(f"{path}-wal").unlink()
        assert is_torn(path) == (rows(path) != number + 1)


def test_nothing_is_said_without_the_shared_memory_or_with_that_of_another_log(tmp_path: Path) -> None:
    copies = written(tmp_path / "db", Random(4), (9,))
    path, later = copies[5], copies[20]
    log = Path(f"{path}-wal")
    log.write_bytes(log.read_bytes()[:9_000])
    assert is_torn(path)
    copy(f"{later}-shm", f"{path}-shm")
    assert not is_torn(path)
    Path(f"{path}-shm").unlink()
    assert not is_torn(path)
