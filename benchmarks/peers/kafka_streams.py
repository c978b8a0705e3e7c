"""Kafka Streams: jars from Maven Central, once, and a program that is compiled at each run."""

import subprocess
from pathlib import Path

from tailrace_infra.kafka import KAFKA_VERSION, KafkaServerError, cache, copy_dependencies, find_java

from benchmarks.common import say
from benchmarks.peers.bench import Bench, Measured, MissingError, run_child

SKETCHES_VERSION = "0.8.3"
_HERE = Path(__file__).parent
JVM_OPTIONS = ("-Xms1g", "-Xmx4g", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
"""One core: the serial collector has no threads that compete for it."""


def measure(bench: Bench, samples: int, *, how: str) -> Measured:
    """Runs KafkaStreamsPeer.java: see there for `how`."""
    try:
        java, jars = find_java(), _jars()
        classes = bench.directory / "classes"
        subprocess.run(
            [Path(java).with_name("javac"), "-d", classes, "-cp", f"{jars}/*", _HERE / "KafkaStreamsPeer.java"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (KafkaServerError, FileNotFoundError) as error:
        raise MissingError(f"Kafka Streams needs a JDK and Maven: {error}") from error
    topic = bench.topic("binary_each", samples)
    out = bench.directory / "kafka_streams.csv"
    command = [
        "taskset", "-c", "0", java, *JVM_OPTIONS, "-cp", f"{classes}:{jars}/*", "KafkaStreamsPeer",
        how, bench.bootstrap_servers, topic, str(bench.directory / f"streams-{how}-{bench.series}"), str(out),
    ]  # fmt: skip
    return run_child(command), out


def _jars() -> Path:
    jars = cache() / f"kafka-streams-{KAFKA_VERSION}"
    if not jars.is_dir():
        say(f"fetching Kafka Streams {KAFKA_VERSION} with Maven (90 MB, once) into {jars} ...")
        versions = {"kafka.version": KAFKA_VERSION, "sketches.version": SKETCHES_VERSION}
        copy_dependencies(f"Kafka Streams {KAFKA_VERSION}", _HERE / "kafka_streams.pom.xml", jars, versions)
    return jars
