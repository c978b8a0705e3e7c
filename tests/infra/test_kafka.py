"""A real Kafka on loopback: its life, and everything that can be missing or in the way.

What needs no Kafka runs with a `java` and an `mvn` that are small scripts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from tailrace_infra import kafka as kafka_server
from tailrace_infra.kafka import KafkaServerError
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.topics import Topics

from tests.infra.waiting import eventually, gone


def script(path: Path, code: str) -> None:
    """An executable Python script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -S\nimport os, pathlib, signal, sys\n{code}")
    path.chmod(0o755)


JAVA = """
if "-version" in sys.argv: sys.exit('openjdk version "17.0.1" 2021-10-19')
formats = "kafka.tools.StorageTool" in sys.argv
"""


@pytest.fixture
def no_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing of Kafka is there."""
    for name in ("KAFKA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAILRACE_KAFKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def pretended(no_kafka: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Java and the jars are there, as far as one can see; the fixture is the path of that `java`."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    (tmp_path / "cache" / f"kafka-{kafka_server.KAFKA_VERSION}").mkdir(parents=True)
    java = tmp_path / "jdk" / "bin" / "java"
    script(java, JAVA)
    return java


# With a real Kafka


@pytest.mark.kafka
def test_produce_and_consume(kafka: str) -> None:
    topics = Topics("produce-and-consume")
    ensure_topics({"bootstrap.servers": kafka}, topics)
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce(topics.samples, b"value", b"key")
    assert producer.flush(10) == 0
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "g", "auto.offset.reset": "earliest"})
    consumer.subscribe([topics.samples])
    message = eventually(lambda: consumer.poll(0.1), 60)
    assert (message.key(), message.value()) == (b"key", b"value")
    consumer.close()


@pytest.mark.kafka
def test_topics_are_not_created_by_accident(kafka: str) -> None:
    metadata = AdminClient({"bootstrap.servers": kafka}).list_topics("no-such-topic", timeout=5)
    assert metadata.topics["no-such-topic"].error is not None
    assert "no-such-topic" not in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=5).topics


@pytest.mark.kafka
def test_it_keeps_its_data_through_a_stop_and_a_kill(kafka_jars: None, tmp_path: Path) -> None:
    said: list[str] = []
    first = kafka_server.start(tmp_path, 0, progress=said.append)
    try:
        assert said[0] == f"starting Kafka on {first.bootstrap_servers}"  # on a busy machine also that it waits
        assert kafka_server.status(tmp_path) == first
        assert kafka_server.start(tmp_path, 0) == first
        with pytest.raises(KafkaServerError, match=rf"is already served on {first.bootstrap_servers}"):
            kafka_server.start(tmp_path, 1)
        ensure_topics({"bootstrap.servers": first.bootstrap_servers}, Topics(), partitions=1)
        assert kafka_server.stop(tmp_path)
        assert gone(first.pid)
        assert kafka_server.status(tmp_path) is None
        assert not kafka_server.stop(tmp_path)

        second = kafka_server.start(tmp_path, int(first.bootstrap_servers.rpartition(":")[2]))
        assert second.bootstrap_servers == first.bootstrap_servers
        os.kill(second.pid, signal.SIGKILL)
        eventually(lambda: kafka_server.status(tmp_path) is None)

        third = kafka_server.start(tmp_path, 0)
        states = ensure_topics({"bootstrap.servers": third.bootstrap_servers}, Topics(), partitions=1)
        assert {state.state for state in states} == {"exists"}
    finally:
        kafka_server.stop(tmp_path)


@pytest.mark.kafka
def test_two_starts_at_a_time_start_one_server(kafka_jars: None, tmp_path: Path) -> None:
    try:
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(lambda _: kafka_server.start(tmp_path, 0), range(2))
        assert one == other
    finally:
        kafka_server.stop(tmp_path)


@pytest.mark.kafka
def test_it_runs_from_an_installation_with_properties_and_cleans_up(
    kafka_jars: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jars = kafka_server.find_jars()
    assert jars is not None
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "libs").symlink_to(jars)
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path / "home"))
    data_dir = tmp_path / "data"
    with kafka_server.running_kafka(data_dir, {"auto.create.topics.enable": "true"}) as running:
        producer = Producer({"bootstrap.servers": running.bootstrap_servers, "log_level": 0})
        producer.produce("new-topic", b"value")
        assert producer.flush(20) == 0
        sockets = psutil.Process(running.pid).net_connections()
        listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert gone(running.pid)
    assert sorted(path.name for path in data_dir.iterdir()) == ["kafka.log", "server.properties", "start.lock"]


@pytest.mark.kafka
def test_kafka_itself_refuses_a_property(kafka_jars: None, tmp_path: Path) -> None:
    with pytest.raises(KafkaServerError, match=r"(?s)Kafka could not format .*num\.partitions"):
        kafka_server.start(tmp_path, 0, {"num.partitions": "many"})


# Without


@pytest.mark.usefixtures("no_kafka")
def test_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaServerError, match="Kafka needs Java 17 or later; there is no java on PATH"):
        kafka_server.start(tmp_path / "data", 0)
    monkeypatch.setenv("JAVA_HOME", "/no/jdk")
    with pytest.raises(KafkaServerError, match=r"there is no java in JAVA_HOME \(/no/jdk\)"):
        kafka_server.start(tmp_path / "data", 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('java version \"1.8.0_392\"')", 'says: java version "1.8.0_392"'),
        ("sys.exit('openjdk version \"11.0.2\" 2019-01-15')", 'Java 17 or later; .*openjdk version "11.0.2"'),
        ("", "says: nothing"),
    ],
)
def test_another_java(pretended: Path, tmp_path: Path, code: str, message: str) -> None:
    script(pretended, code)
    with pytest.raises(KafkaServerError, match=message):
        kafka_server.start(tmp_path / "data", 0)


def test_a_java_that_does_not_run(pretended: Path, tmp_path: Path) -> None:
    pretended.write_text("#!/no/such/interpreter\n")
    with pytest.raises(KafkaServerError, match="does not run: "):
        kafka_server.start(tmp_path / "data", 0)


@pytest.mark.usefixtures("no_kafka")
def test_no_jars_and_no_maven(tmp_path: Path) -> None:
    assert kafka_server.find_jars() is None
    with pytest.raises(KafkaServerError, match="no mvn on PATH to fetch them: install Maven, or let KAFKA_HOME"):
        kafka_server.fetch_jars()


def test_a_kafka_home_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(KafkaServerError, match=r"which is no Kafka 4: there is no libs/kafka_2\.13-4"):
        kafka_server.fetch_jars()


@pytest.mark.usefixtures("no_kafka")
def test_jars_are_fetched_once_and_whole(tmp_path: Path) -> None:
    script(
        tmp_path / "bin" / "mvn",
        "target = pathlib.Path(next(a for a in sys.argv if a.startswith('-DoutputDirectory=')).partition('=')[2])\n"
        f"pathlib.Path({str(tmp_path / 'asked')!r}).write_text(' '.join(sys.argv[1:]))\n"
        "target.mkdir(); (target / 'kafka.jar').touch()",
    )
    said: list[str] = []
    jars = kafka_server.fetch_jars(said.append)
    assert jars == kafka_server.find_jars()
    assert [path.name for path in jars.iterdir()] == ["kafka.jar"]
    assert list(jars.parent.iterdir()) == [jars]
    assert len(said) == 1
    assert f"-Dkafka.version={kafka_server.KAFKA_VERSION}" in (tmp_path / "asked").read_text()
    (tmp_path / "bin" / "mvn").unlink()
    assert kafka_server.fetch_jars(said.append) == jars
    assert len(said) == 1


@pytest.mark.usefixtures("no_kafka")
def test_another_process_fetched_the_jars_meanwhile(tmp_path: Path) -> None:
    jars = tmp_path / "cache" / f"kafka-{kafka_server.KAFKA_VERSION}"
    script(
        tmp_path / "bin" / "mvn",
        "target = pathlib.Path(next(a for a in sys.argv if a.startswith('-DoutputDirectory=')).partition('=')[2])\n"
        f"other = pathlib.Path({str(jars)!r})\n"
        "for place in target, other: place.mkdir(); (place / 'kafka.jar').touch()",
    )
    assert kafka_server.fetch_jars() == jars
    assert list(jars.parent.iterdir()) == [jars]


@pytest.mark.usefixtures("no_kafka")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('[ERROR] no network'); sys.exit(1)", r"Maven could not fetch Kafka 4\S+:\n\[ERROR\] no network"),
        ("signal.pause()", r"Maven did not fetch Kafka 4\S+ within 0.5 s"),
        ("", "No such file or directory"),
    ],
)
def test_maven_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.setattr(kafka_server, "FETCH_TIMEOUT_S", 0.5)
    script(tmp_path / "bin" / "mvn", code)
    with pytest.raises((KafkaServerError, OSError), match=message):
        kafka_server.fetch_jars()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("pretended")
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(KafkaServerError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use"):
            kafka_server.start(tmp_path / "data", port)
    with pytest.raises(KafkaServerError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        kafka_server.start(tmp_path / "data", 99999)


@pytest.mark.usefixtures("pretended")
def test_a_port_that_a_killed_server_still_holds_for_a_moment(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        threading.Timer(0.3, taken.close).start()
        with pytest.raises(KafkaServerError) as raised:  # this Java is none, which is seen after the port
            kafka_server.start(tmp_path / "data", taken.getsockname()[1], timeout_s=0.5)
    assert "cannot listen" not in str(raised.value)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"listeners": "PLAINTEXT://0.0.0.0:9092"}, "listeners: set by Tailrace itself"),
        ({"num.partitions": "1\nlisteners=PLAINTEXT://0.0.0.0:9092"}, "'num.partitions': a property is one line"),
    ],
)
def test_properties_that_are_refused(tmp_path: Path, properties: dict[str, str], message: str) -> None:
    with pytest.raises(KafkaServerError, match=message):
        kafka_server.start(tmp_path / "data", 0, properties)


def test_a_path_that_kafka_would_misread(tmp_path: Path) -> None:
    with pytest.raises(KafkaServerError, match="a comma in the path"):
        kafka_server.start(tmp_path / "a,b", 0)


def test_storage_that_cannot_be_formatted(pretended: Path, tmp_path: Path) -> None:
    script(pretended, JAVA + "if formats: sys.exit('disk full')")
    with pytest.raises(KafkaServerError, match=r"Kafka could not format .*/data/logs:\ndisk full"):
        kafka_server.start(tmp_path / "data", 0)


def test_a_server_that_ends_at_once_is_quoted(pretended: Path, tmp_path: Path) -> None:
    script(pretended, JAVA + "if not formats: sys.exit('out of memory')")
    with pytest.raises(KafkaServerError, match="Kafka ended while it started; its log says:\nout of memory"):
        kafka_server.start(tmp_path / "data", 0)
    assert kafka_server.status(tmp_path / "data") is None
    assert not (tmp_path / "data" / "kafka.json").exists()


@pytest.mark.parametrize("ignore", [False, True])
def test_a_server_that_never_answers_is_stopped(
    pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignore: bool
) -> None:
    pid_file = tmp_path / "pid"
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if ignore else ""
    script(
        pretended,
        f"{JAVA}if formats: sys.exit()\n{deaf}print('thinking', flush=True)\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\nwhile True: signal.pause()",
    )
    monkeypatch.setattr(kafka_server.stop, "__defaults__", (0.2,))
    with pytest.raises(KafkaServerError, match=r"did not answer within 1\.5 s; its log says:\nthinking"):
        kafka_server.start(tmp_path / "data", 0, timeout_s=1.5)
    assert gone(int(pid_file.read_text()))


def test_a_stranger_with_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as stranger:
        (tmp_path / "kafka.json").write_text(json.dumps({"bootstrap_servers": "127.0.0.1:9092", "pid": stranger.pid}))
        assert kafka_server.status(tmp_path) is None
        assert not kafka_server.stop(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}', '{"pid": 1, "bootstrap_servers": "a:1", "more": 1}'])
def test_a_damaged_pid_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "kafka.json").write_text(text)
    with pytest.raises(KafkaServerError, match=r"kafka\.json is damaged"):
        kafka_server.status(tmp_path)


def test_no_server_was_ever_started(tmp_path: Path) -> None:
    assert kafka_server.status(tmp_path) is None
    assert not kafka_server.stop(tmp_path)
