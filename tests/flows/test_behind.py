"""What ClickHouse does not take at once: it is kept on disk, comes in order, and survives the process."""

import os
import stat
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows import behind as module
from tailrace_flows.behind import Behind, RowWriter, Spool, SpoolError
from tailrace_flows.directory_lock import lock
from tailrace_sinks.clickhouse import StoppedError, WriteRejectedError

from tests.infra.waiting import eventually, logged

MB = 1_000_000


class Table:
    """ClickHouse as a writer meets it: while it is away, writes wait."""

    def __init__(self, *, away: bool = False) -> None:
        self.is_there = threading.Event()
        self.fails_with: BaseException | None = None
        self.asked = 0
        self.stored: list[tuple[str, list[int]]] = []
        if not away:
            self.is_there.set()

    def write(self, table: str, batches: list[Any]) -> None:
        self.asked += 1
        self.is_there.wait(60)
        if self.fails_with is not None:
            raise self.fails_with
        self.stored.append((table, [value for batch in batches for value in batch["n"].to_pylist()]))

    @property
    def numbers(self) -> list[int]:
        return [number for _, numbers in self.stored for number in numbers]


def rows(*numbers: int) -> list[Any]:
    return [pa.RecordBatch.from_pydict({"n": [number]}) for number in numbers]


def behind(table: RowWriter, root: Path, *, spool_mb: float = 1.0, patience_s: float = 0.0, **options: Any) -> Behind:
    """With no patience: what is not stored at once is on disk."""
    return Behind(table, Spool(root, int(spool_mb * MB)), patience_s=patience_s, **options)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.arrow"))


def test_while_clickhouse_takes_rows_nothing_is_put_on_disk(tmp_path: Path) -> None:
    table = Table()
    writes = behind(table, tmp_path / "spool", patience_s=60)
    for number in range(10):
        writes.write("a", rows(number))
    writes.wait()
    assert table.numbers == list(range(10))
    assert not (tmp_path / "spool").exists()


def test_the_flow_goes_on_while_clickhouse_is_away_and_all_comes_in_order_afterwards(tmp_path: Path) -> None:
    table = Table(away=True)
    writes = behind(table, tmp_path)
    for number in range(20):
        writes.write("a" if number % 2 else "b", rows(number, 100 + number))
        writes.wait()
    assert table.stored == []
    assert len(files(tmp_path)) == 20
    assert files(tmp_path)[0].stat().st_mode & 0o077 == 0

    table.is_there.set()
    eventually(lambda: len(table.stored) == 20)
    assert table.stored == [("a" if n % 2 else "b", [n, 100 + n]) for n in range(20)]
    eventually(lambda: not files(tmp_path))

    writes = behind(table, tmp_path, patience_s=60)
    writes.write("a", rows(20))
    writes.wait()
    assert table.numbers[-1] == 20


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_what_a_killed_process_left_is_stored_by_the_next_before_its_own(tmp_path: Path, patience_s: float) -> None:
    dead = Spool(tmp_path, MB)
    for number in range(3):
        assert dead.add("a", rows(number))
    dead._held.close()  # as the kernel does with its lock
    (dead._own or tmp_path).joinpath("new").write_bytes(b"torn")

    table = Table()
    writes = behind(table, tmp_path, patience_s=patience_s, stopping=lambda: True)
    writes.write("a", rows(3))
    writes.wait()
    eventually(lambda: table.numbers == [0, 1, 2, 3])
    eventually(lambda: not files(tmp_path))


def test_what_a_living_process_has_on_disk_is_left_to_it(tmp_path: Path) -> None:
    living = Spool(tmp_path, MB)
    living.add("a", rows(1))
    table = Table()
    writes = behind(table, tmp_path, patience_s=60)
    writes.write("a", rows(2))
    writes.wait()
    assert table.numbers == [2]
    assert len(files(tmp_path)) == 1


def test_small_writes_count_as_what_they_take_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "fsync", lambda _: None)
    spool = Spool(tmp_path, MB)
    while spool.add("a", rows(1)):
        pass
    assert MB - 4096 <= sum(path.stat().st_blocks * 512 for path in files(tmp_path)) <= MB + 4096
    assert spool.size == 4096 * len(files(tmp_path))
    adopted = Spool(tmp_path, MB)
    spool._held.close()  # as the kernel does with its lock
    names = adopted.adopt()
    assert adopted.size == spool.size
    for name in names:
        adopted.remove(name)
    assert adopted.size == 0
    assert not files(tmp_path)


def test_what_waits_on_disk_for_days_takes_hardly_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "fsync", lambda _: None)
    writes = behind(Table(away=True), tmp_path, spool_mb=100)
    batches = rows(1)

    def pass_time(epochs: int) -> None:
        for _ in range(epochs):
            writes.write("counter_rows", batches)
            writes.wait()

    pass_time(100)
    tracemalloc.start()
    try:
        pass_time(1000)
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    assert len(files(tmp_path)) == 1100


def test_with_a_full_spool_the_flow_waits_for_clickhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(away=True)
    said = logged(monkeypatch, module)
    writes = behind(table, tmp_path, spool_mb=0.0)
    writes.write("a", rows(1))
    waited = threading.Event()
    waiting = threading.Thread(target=lambda: (writes.wait(), waited.set()))
    waiting.start()
    eventually(lambda: "recovery.spool_mb, so the flow waits" in "".join(said))
    assert not waited.is_set()
    table.is_there.set()
    waiting.join(10)
    assert (waited.is_set(), table.numbers) == (True, [1])


def test_with_a_full_disk_the_flow_waits_for_clickhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    said = logged(monkeypatch, module)
    table = Table(away=True)
    writes = behind(table, tmp_path)
    writes.write("a", rows(1))
    waiting = threading.Thread(target=writes.wait)
    waiting.start()
    eventually(lambda: "No space left on device, so the flow waits" in "".join(said))
    table.is_there.set()
    waiting.join(10)
    assert table.numbers == [1]
    assert not files(tmp_path)


def test_a_write_whose_directory_is_not_durable_leaves_no_copy_at_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a full disk, or where directories cannot be synced: it is tried again five times a second."""
    refused: list[int] = []

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(28, "No space left on device")

    table = Table(away=True)
    monkeypatch.setattr(module.os, "fsync", only_files)
    writes = behind(table, tmp_path)
    writes.write("a", rows(1))
    waiting = threading.Thread(target=writes.wait)
    waiting.start()
    eventually(lambda: len(refused) > 4)
    assert len(files(tmp_path)) <= 1
    table.is_there.set()
    waiting.join(10)
    assert table.numbers == [1]
    assert not files(tmp_path)


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_disk_without_room_for_the_lock_is_not_littered_with_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    @contextmanager
    def no_room(directory: Path) -> Iterator[int]:
        with lock(directory) as held:  # its file is there, but takes no process id
            if step == "write":
                raise OSError(28, "No space left on device")
            directory.with_name(directory.name[1:]).write_bytes(b"")  # in the way
            yield held

    monkeypatch.setattr(module, "lock", no_room)
    spool = Spool(tmp_path, MB)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(OSError, match=r"No space left|Not a directory"):
            spool.add("a", rows(1))
    assert not [one for one in tmp_path.iterdir() if one.is_dir()]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    monkeypatch.undo()
    assert spool.add("a", rows(1))
    assert len(files(tmp_path)) == 1


def test_rows_that_clickhouse_refuses_stop_the_flow_and_stay_on_disk(tmp_path: Path) -> None:
    table = Table(away=True)
    writes = behind(table, tmp_path)
    writes.write("a", rows(1))
    writes.wait()
    table.fails_with = WriteRejectedError("no such table")
    table.is_there.set()
    with pytest.raises(WriteRejectedError, match=rf"no such table .*wait in {files(tmp_path)[0]}"):
        eventually(writes.wait)  # it returns None until the refusal is known
    assert len(files(tmp_path)) == 1


def test_a_process_that_ends_while_clickhouse_is_away_keeps_its_rows_for_the_next(tmp_path: Path) -> None:
    table = Table()
    table.fails_with = StoppedError("the process is to end")
    writes = behind(table, tmp_path, patience_s=60)
    writes.write("a", rows(1))
    writes.wait()
    assert len(files(tmp_path)) == 1


def test_a_process_that_ends_waits_for_what_clickhouse_still_takes(tmp_path: Path) -> None:
    dead = Spool(tmp_path, MB)
    for number in range(5):
        dead.add("a", rows(number))
    dead._held.close()
    table = Table()
    writes = behind(table, tmp_path, patience_s=60, stopping=lambda: True)
    writes.wait()
    assert table.numbers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", [lambda all: all[:200], lambda all: b"", lambda all: all[:-9] + b"?" + all[-8:]])
def test_a_damaged_file_stops_the_flow_and_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    dead = Spool(tmp_path, MB)
    dead.add("a", rows(*range(100)))
    dead._held.close()
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    writes = behind(Table(), tmp_path, patience_s=60, stopping=lambda: True)
    with pytest.raises(SpoolError, match=rf"{path.name} holds rows for ClickHouse and is damaged: .*move it away"):
        writes.wait()
