"""Mutated input for everything that decodes: nothing crashes, and dead letters are exactly what is bad.

Each target has valid messages, which are damaged in one to four places; each damaged message comes between good ones,
as it would on a topic. A decoder may refuse by its own error, and by no other; what a topic's feed puts into dead
letters is what its decoder refused, and everything else has been taken.
"""

import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, BytesIO
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tailrace_flows.config_topic import decode_change
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record, TopicFeed
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.shard import Shard
from tailrace_infra.chdb_engine import ClickHouseError, Statement, split_insert
from tailrace_infra.http_bodies import Body, Decompressed, take_text
from tailrace_producers.replay.model import BadLines, Catalogue, ReplayError, ReplayOptions
from tailrace_producers.replay.readers import read_blocks
from tailrace_producers.replay.source import FileBytes
from tailrace_schemas.cloudevents import read_command, read_event, read_notification
from tailrace_schemas.config import load, record_of
from tailrace_schemas.config.source import ConfigError
from tailrace_schemas.deadletter import decode_dead_letter
from tailrace_schemas.rows import WindowRows, decode_window_rows, encode_window_rows
from tailrace_schemas.samples import Rejection, decode

from tests.flows.alerting.rows import Row, batch_of
from tests.reliability.alerts import CPU, OBJECTIVE, ROUTING
from tests.reliability.attack import Figure, Result, Run, attack
from tests.schemas.examples import example
from tests.schemas.test_total import mutate, seeds

__all__ = ["TARGETS", "batches", "found_before"]

NOW_US = 1_767_614_400_000_000
BATCH = 200
"""Messages that are read together; every second one is good, or a feed would rightly refuse the whole stream."""
FILE_LINES = 50
LEFT_MB_MAX = 2048
"""What may be left behind in the heap, touched or not; Arrow alone takes 1,024 MB of addresses at a time."""

CONFIGS = (
    OBJECTIVE,
    ROUTING,
    "groups: [{name: g, rules: [{alert: A, metric: m, aggregate: p99, op: gt, threshold: 1, description: '{value}'}]}]",
    "detectors: [{name: d, metric: m, aggregate: mean, by: [host]}]",
    """
apiVersion: openslo/v1
kind: SLO
metadata: {name: it}
spec:
  service: web
  indicator: {metadata: {name: i}, spec: {ratioMetric: {counter: true, good: {metricSource: {type: Tailrace,
    spec: {metric: ok}}}, total: {metricSource: {type: Tailrace, spec: {metric: all}}}}}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{target: 0.99}]
""",
)
CSV = b"""time,metric,value,kind,service,host
2026-01-05T12:00:00Z,latency,0.25,distribution,web,a
1767614400.5,orders,1,counter,shop,"b ""quoted"", and more"
1767614401,memory,1e300,gauge,db,\xc3\xa9
"""
INSERT = b'INSERT INTO db.t (a, `b c`) SETTINGS x = 1 FORMAT CSV\n1,"a"\n2,b\n'
LOG = (
    b'127.0.0.1 - - [05/Jan/2026:12:00:00 +0000] "GET /cart/1 HTTP/1.1" 200 512 "-" "curl/8"\n'
    b'::1 - ann [05/Jan/2026:12:00:01 +0100] "POST /\\x22 HTTP/1.1" 503 - "https://a/b" "x \\"y\\""\n'
)


def _parquet_file() -> bytes:
    sink = pa.BufferOutputStream()
    columns = {
        "time": pa.array([1_767_614_400.5, 1_767_614_401.0]), "metric": ["latency", "orders"], "value": [0.25, 1.0],
        "kind": ["distribution", "counter"], "host": ["a", None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


PARQUET = _parquet_file()
ITEMS_OF = {text.encode(): len(load([("a.yaml", text)]).items) for text in CONFIGS}
"""How many each of CONFIGS has."""


@dataclass(frozen=True)
class Target:
    """What is attacked. `take` judges one batch of messages and returns outcomes; it raises what must not be."""

    name: str
    good: tuple[bytes, ...]
    take: Callable[[list[bytes], Path], Counter[str]]
    batch: int = BATCH


# -- the topics ------------------------------------------------------------------------------------------


def _samples(messages: list[bytes], _: Path) -> Counter[str]:
    """Partition and shards take everything; counts, letters and rows add up."""
    config = WindowConfig(max_future_s=60)
    partition = Partition(0, "samples", config, NOW_US, hold=True, cluster_id="one", start=0)
    decoded = [decode(message) for message in messages]
    records = [Record(offset, NOW_US + offset * 1_000_000, one) for offset, one in enumerate(messages)]
    items, letters = partition.read(records, NOW_US)
    whole = {offset for offset, one in enumerate(decoded) if isinstance(one, Rejection)}
    assert {letter.offset for letter in letters if letter.samples == 0} == whole
    outputs = []
    shards: dict[str, Shard] = {}
    for name, item in items:
        outputs.append(shards.setdefault(name, Shard(config, NOW_US)).on_items([item], NOW_US))
    outputs += [shard.on_end(NOW_US) for shard in shards.values()]
    found: dict[tuple[str, str, str, str], int] = {}
    for counters in (partition.counter_rows(NOW_US), *(output.counters for output in outputs)):
        for row in [] if counters is None else counters.to_pylist():
            key = (row["scope"], row["service"], row["stream"], row["name"])
            found[key] = max(row["value"], found.get(key, 0))
    counted = {"samples", "late_samples", "duplicate_samples"}
    taken = sum(value for (*_, name), value in found.items() if name in counted)
    refused = sum(letter.samples for letter in letters)
    sent = sum(one.samples for one in decoded if not isinstance(one, Rejection))
    assert taken + refused == sent, (taken, refused, sent, found)
    return Counter({"taken": len(messages) - len(whole), "dead letters": len(letters)})


def _feed(decoder: Callable[[bytes | None, bytes], Any]) -> Callable[[list[bytes], Path], Counter[str]]:
    """A topic whose messages are read by `decoder`: its letters are what it refused."""

    def take(messages: list[bytes], _: Path) -> Counter[str]:
        refused = set()
        for offset, message in enumerate(messages):
            try:
                decoder(b"rule_group/g", message)
            except ValueError as error:
                str(error).encode()
                refused.add(offset)
        feed = TopicFeed(0, "t", decoder, cluster_id="one", start=0)
        records = [Record(offset, NOW_US, message, b"rule_group/g") for offset, message in enumerate(messages)]
        items, letters = feed.read(records, NOW_US)
        assert {letter.offset for letter in letters} == refused
        assert len(items) == len(messages) - len(refused)
        return Counter({"taken": len(items), "dead letters": len(letters)})

    return take


# -- files -----------------------------------------------------------------------------------------------


def _config(messages: list[bytes], _: Path) -> Counter[str]:
    """Each is a file of its own: what is whole is taken, all of it, and a refusal names the file."""
    done: Counter[str] = Counter()
    for message in messages:
        try:
            items = load([("a.yaml", message.decode(errors="replace"))]).items
        except ConfigError as error:
            refusal = str(error)
            done["refused with file and line"] += 1
        else:
            refusal = ""
            assert len(items) == ITEMS_OF.get(message, len(items))
            done["taken"] += 1
        assert not refusal or (refusal.startswith("a.yaml") and message not in ITEMS_OF), refusal
    return done


def _lines(form: str) -> Callable[[list[bytes], Path], Counter[str]]:
    """A file of damaged lines: every line is a sample, or counted as bad."""

    def take(messages: list[bytes], directory: Path) -> Counter[str]:
        path = directory / "file"
        path.write_bytes((CSV.splitlines(keepends=True)[0] if form == "csv" else b"") + b"".join(messages))
        bad, catalogue = BadLines(str(path), 1.0), Catalogue(str(path))
        series: list[int] = []
        try:
            for reading in read_blocks(FileBytes.of(str(path)), ReplayOptions(format=form), catalogue, bad):
                series += reading.block.series.tolist()
        except ReplayError as error:
            str(error).encode(errors="surrogateescape")
            return Counter({"refused files": 1})
        # Of a request there are other samples, too.
        taken = sum(form == "csv" or catalogue.series[one].metric == "http.server.requests" for one in series)
        lines = sum(1 for line in b"".join(messages).split(b"\n") if line not in (b"", b"\r"))
        assert taken + bad.total == bad.lines == lines, (taken, bad.counts, bad.lines, lines)
        return Counter({"samples": len(series), "bad lines": bad.total})

    return take


def _parquet(messages: list[bytes], directory: Path) -> Counter[str]:
    """Each is a file of its own: every row of one that is read is a sample, or counted as bad."""
    done: Counter[str] = Counter()
    path = directory / "file.parquet"
    for message in messages:
        path.write_bytes(message)
        bad = BadLines(str(path), 1.0)
        samples = 0
        try:
            for reading in read_blocks(FileBytes.of(str(path)), ReplayOptions(), Catalogue(str(path)), bad):
                samples += len(reading.block.value)
        except ReplayError as error:
            str(error).encode(errors="surrogateescape")
            done["refused files"] += 1
        else:
            rows = pq.read_metadata(path).num_rows
            assert samples + bad.total == bad.lines == rows, (samples, bad.counts, bad.lines, rows)
            done += Counter({"samples": samples, "bad rows": bad.total})
        assert message != PARQUET or samples == 2
    return done


def _body(codec: str) -> Callable[[list[bytes], Path], Counter[str]]:
    """A chunked body of a request to the embedded ClickHouse, and the statement in it."""

    def take(messages: list[bytes], _: Path) -> Counter[str]:
        done: Counter[str] = Counter()
        for message in messages:
            body: Any = Body(BufferedReader(BytesIO(message)), chunked=True, length=0)  # type: ignore[arg-type]
            source = Decompressed(body, codec) if codec else body
            try:
                text = take_text(source)
                if split_insert(text) is None:
                    Statement.parse(text)
                done["taken"] += 1
            except (ClickHouseError, ConnectionError) as error:
                done[type(error).__name__] += 1
        return done

    return take


def _chunked(data: bytes) -> bytes:
    middle = len(data) // 2
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:middle], data[middle:], b""))


def _change(key: bytes, _: bytes | None, value: bytes) -> Any:
    return decode_change(key, value)


def _json_of(name: str) -> bytes:
    return json.dumps(example(name)["datum"] if "datum" in example(name) else example(name)).encode()


def _targets() -> Iterator[Target]:
    yield Target("samples", tuple(seeds()), _samples)
    block = WindowRows("web", "", 10, NOW_US, batch_of([Row("web", CPU[0], NOW_US // 1_000_000 // 10 * 10, (0.5,))]))
    yield Target("window rows", (encode_window_rows(block),), _feed(lambda _, value: decode_window_rows(value)))
    yield Target("alert events", (_json_of("AlertEvent"),), _feed(lambda _, value: read_event(value)))
    yield Target("commands", (_json_of("Command"),), _feed(lambda _, value: read_command(value)))
    yield Target("notifications", (_json_of("Notification"),), _feed(lambda _, value: read_notification(value)))
    letters = bytes.fromhex(example("DeadLetter")["hex"])
    yield Target("dead letters", (letters,), _feed(lambda _, value: decode_dead_letter(value)))
    records = [record_of(item) for text in CONFIGS for item in load([("a.yaml", text)]).items]
    for record in records:
        good, read = (json.dumps(record.value).encode(),), partial(_change, record.key.encode())
        yield Target(f"configuration {record.key}", good, _feed(read))
    yield Target("configuration files", tuple(text.encode() for text in CONFIGS), _config, 20)
    yield Target("CSV files", tuple(CSV.splitlines(keepends=True)[1:]), _lines("csv"), FILE_LINES)
    yield Target("Parquet files", (PARQUET,), _parquet, FILE_LINES)
    for codec in ("", "gzip", "zstd", "lz4", "brotli"):
        good = tuple(
            _chunked(pa.Codec(codec).compress(text, asbytes=True) if codec else text)
            for text in (INSERT, b"SELECT 'a\\'b' FROM t -- c\n WHERE x = `y` /* z */ FORMAT JSON")
        )
        yield Target(f"HTTP bodies{codec and f', {codec}'}", good, _body(codec))
    yield Target("access logs", tuple(LOG.splitlines(keepends=True)), _lines("access_log"), FILE_LINES)


TARGETS = {target.name: target for target in _targets()}
FOUND = Path(__file__).parent / "found_inputs.txt"


def found_before() -> list[tuple[str, bytes]]:
    """Target and message of what ever was found: a line `target: hex  # what it did` each."""
    lines = [text.split("#")[0].rpartition(":") for text in FOUND.read_text().splitlines()]
    return [(name, bytes.fromhex(text)) for name, _, text in lines if name]


def batches(target: Target, random: Random) -> Iterator[list[bytes]]:
    """Damaged messages between good ones, for ever."""
    good = list(target.good)
    while True:
        yield [
            random.choice(good) if number % 2 else mutate(random, random.choice(good), good)
            for number in range(target.batch)
        ]


@attack(
    name="inputs",
    promise="Bad input never stops the good: what cannot be read becomes a dead letter with a reason, or an error that "
    "names file and line",
    what="Messages damaged in one to four places, between good ones, for every topic, configuration files, CSV files, "
    "Parquet files, access logs and HTTP bodies",
    unit="damaged messages",
    short=20_000,
    long=1_000_000,
)
def inputs(run: Run) -> Result:
    """As many messages for each target; whole files cost more, and get a tenth."""
    figures: dict[str, Figure] = {}
    result = Result(seeds=[run.seed], figures=figures)
    heap_mb = _heap_mb()
    per_target = run.size / sum(1 if target.batch == BATCH else 0.1 for target in TARGETS.values())
    for target in TARGETS.values():
        random = Random(f"{run.seed} {target.name}")
        wanted = per_target if target.batch == BATCH else per_target / 10
        done: Counter[str] = Counter()
        for messages in islice(batches(target, random), 1 + int(wanted / (target.batch / 2))):
            try:
                done += target.take(messages, run.directory)
            except Exception:  # noqa: BLE001 - a crash is what is looked for
                text = f"{target.name}: {traceback.format_exc()}\n{[one.hex() for one in messages[::2]]}"
                result.failures.append(run.failure(text[:20_000]))
                break
            result.runs += target.batch // 2
        figures[target.name] = ", ".join(f"{count:,} {what}" for what, count in sorted(done.items()))
        run.say(f"  {target.name}: {figures[target.name]}")
    figures["left in memory, MB of addresses"] = left_mb = round(_heap_mb() - heap_mb)
    if left_mb > LEFT_MB_MAX:
        result.failures.append(run.failure(f"{left_mb} MB of addresses are still taken when all is done"))
    return result


def _heap_mb() -> float:
    return psutil.Process().memory_info().data / 2**20
