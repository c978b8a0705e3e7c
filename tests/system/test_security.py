"""TLS, passwords and rights, on a real Kafka with ACLs and on ClickHouse's engine behind TLS; and where secrets go."""

import re
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AclOperation, ResourceType
from tailrace_flows.config_follower import ConfigFollower
from tailrace_flows.config_topic import read_config
from tailrace_flows.settings import Settings
from tailrace_infra.check import check_kafka, run_checks
from tailrace_infra.errors import reason
from tailrace_producers.replay import ReplayError, replay
from tailrace_producers.telemetry import Telemetry
from tailrace_schemas.clock import now_us
from tailrace_schemas.topics import Topics
from tailrace_sinks.clickhouse import ClickHouseWriter, TlsFiles, WriteRejectedError, connect
from tailrace_sinks.kafka import KafkaWriter

from tests.infra.canaries import canary, shows_canary
from tests.infra.secure_kafka import secure_kafka
from tests.infra.tls_clickhouse import tls_clickhouse
from tests.infra.waiting import eventually
from tests.subscribers.receiving import smtp_server, webhook_server
from tests.system.secured import PROCESSES, Secured, documented_rights

pytestmark = pytest.mark.kafka

S = 1_000_000
CONFIG = """
groups:
- name: host
  interval: 10s
  rules:
  - {{alert: Busy, severity: error, metric: cpu, aggregate: mean, window: 10s, by: [service], op: gt, threshold: 0.9}}
routing:
  receiver: hook
  group_wait: 0s
  routes:
  - {{receiver: mail, continue: true}}
  - {{receiver: app, continue: true}}
  - {{receiver: dead, continue: true}}
  - {{receiver: deadapp, continue: true}}
  - {{receiver: hook}}
receivers:
- {{name: hook, webhook: {{url: "{hook}/hook", headers: {{Authorization: "Bearer ${{env:HOOK_TOKEN}}"}}}}}}
- {{name: app, apprise: {{url: "json://{address}/app?+X-Key=${{env:APPRISE_KEY}}"}}}}
- {{name: dead, webhook: {{url: "http://127.0.0.1:9/${{env:DEAD_TOKEN}}"}}}}
- {{name: deadapp, apprise: {{url: "json://me:${{env:DEAD_TOKEN}}@127.0.0.1:9/?+X-Key=${{env:APPRISE_KEY}}"}}}}
- name: mail
  email: {{to: [a@example.org], from: b@example.org, host: localhost, port: {smtp}, username: me,
    password: "${{env:SMTP_PASSWORD}}", ca_file: {ca}}}
"""
SECRETS = {
    "HOOK_TOKEN": canary("hook"), "APPRISE_KEY": canary("apprise"), "DEAD_TOKEN": canary("dead"),
    "SMTP_PASSWORD": canary("smtp"),
}  # fmt: skip


@pytest.fixture(scope="module")
def secured(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    pytest.importorskip("chdb")
    directory = tmp_path_factory.mktemp("secured")
    passwords = {user: canary(f"kafka-{user}") for user in PROCESSES}
    with (
        secure_kafka(directory / "kafka") as kafka,
        tls_clickhouse(directory / "clickhouse", kafka.certificates, {"tailrace": canary("clickhouse")}) as url,
    ):
        for user, rights in documented_rights().items():
            kafka.set_password(user, passwords[user])
            kafka.allow(user, rights)
        found = Secured(kafka, url, directory, passwords, canary("clickhouse"))
        found.say("topics", "topics")
        found.say("topics", "migrate")
        yield found


def telemetry(secured: Secured, service: str) -> Telemetry:
    """The SDK, with librdkafka's own names for what it needs."""
    client = secured.kafka_settings("sdk").client()
    properties = {name: value for name, value in client.items() if name != "bootstrap.servers"}
    return Telemetry(service, bootstrap_servers=client["bootstrap.servers"], properties=properties)


def send(secured: Secured, values: list[float], start_us: int, service: str) -> None:
    """A gauge, once a second."""
    with telemetry(secured, service) as sdk:
        cpu = sdk.gauge("cpu", "1")
        for second, value in enumerate(values):
            cpu.set(value, None, start_us + second * S)
        assert sdk.flush(30)


def counted(secured: Secured, service: str) -> int:
    """Samples in the stored 10 s windows."""
    with connect(secured.clickhouse_settings()) as client:
        query = "SELECT sum(count) FROM windows WHERE service = {service:String} AND metric = 'cpu'"
        return int(client.query(query, parameters={"service": service}).first_row[0])


def test_everything_works_with_the_rights_of_the_docs_and_shows_no_secret(secured: Secured, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*secured.kafka.certificates.issue("smtp", "localhost"))
    csv = tmp_path / "samples.csv"
    csv.write_text("time,metric,value,service\n" + "".join(f"{1_767_225_600 + n},m,{n},old\n" for n in range(50)))
    looking = threading.Event()

    def look() -> None:
        while not looking.wait(0.5):  # it costs
            secured.look()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with webhook_server() as hook, smtp_server(context) as mailbox:
            config = tmp_path / "config.yaml"
            config.write_text(
                CONFIG.format(
                    hook=hook.url,
                    address=hook.url.removeprefix("http://"),
                    smtp=mailbox.port,
                    ca=secured.kafka.certificates.ca,
                )
            )
            assert "ok" in secured.say("topics", "check")
            secured.say("apply", "apply", str(config))
            with (
                secured.start("windows", "run", "windows", TAILRACE_WINDOWS__IDLE_S="3") as windows,
                secured.start("alerts", "run", "alerts,slo,health,anomaly") as alerts,
                secured.start("notify", "notify", **SECRETS) as notify,
                secured.start("sdk", "agent", "--interval", "0.5"),
            ):
                secured.say("sdk", "exec", "--", "true")
                secured.say("replay", "replay", str(csv))
                with telemetry(secured, "web") as web:
                    cpu, sent = web.gauge("cpu", "1"), 0
                    while not (hook.bodies("/hook") and hook.bodies("/app") and mailbox.got):
                        cpu.set(0.95)  # now: an alert judges no past
                        sent += 1
                        assert not looking.wait(0.1)
                        assert sent < 1200, windows.output() + alerts.output() + notify.output()
                eventually(lambda: counted(secured, "web") == sent, 60)
                alert = hook.bodies("/hook")[0]["alerts"][0]["alert"]["id"]
                assert "acknowledged: Busy" in secured.say("ack", "alerts", "ack", alert)
                past = ("--rules", str(config), "--topic", Topics().aggregates, "--from", "1", "--to", "4102444800")
                assert '"rule": "host/Busy"' in secured.say("backtest", "backtest", *past)
                assert "lag_records" in secured.say("status", "status")
                assert "host" in secured.say("status", "sql", "SELECT DISTINCT service FROM windows")
    finally:
        looking.set()
        watcher.join()
    # They were used: so it is no accident that they are nowhere.
    [_, headers, _] = next(one for one in hook.got if one[0] == "/hook")
    assert headers["Authorization"] == f"Bearer {SECRETS['HOOK_TOKEN']}"
    assert any(one[1].get("X-Key") == SECRETS["APPRISE_KEY"] for one in hook.got)
    assert mailbox.logins[0][1] == SECRETS["SMTP_PASSWORD"].encode()
    assert any("run alerts,slo,health,anomaly" in one for one in secured.arguments)
    secured.assert_no_secret()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"password": canary("wrong")}, r"invalid credentials .* look at kafka\.username and kafka\.password"),
        ({"ca_file": "other"}, r"certificate verify failed.* look at kafka\.ca_file"),
        ({"bootstrap_servers": "127.1"}, r"whether kafka\.bootstrap_servers, .* are names in their certificates"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, r"Unsupported SASL mechanism.* look at kafka\.sasl_mechanism"),
        (
            {"security_protocol": "PLAINTEXT"},
            r"is it kafka\.bootstrap_servers or kafka\.security_protocol that is wrong",
        ),
        ({"bootstrap_servers": "ssl", "security_protocol": "SSL"}, r"wants? .*kafka\.certificate_file|or wants one"),
    ],
)
def test_a_wrong_setting_of_kafka_is_named(secured: Secured, changes: dict[str, Any], told: str) -> None:
    if "ca_file" in changes:
        changes = {"ca_file": secured.kafka.certificates.other_ca}
    if changes.get("bootstrap_servers") == "127.1":  # the same address, by a name that no certificate has
        changes = {"bootstrap_servers": secured.kafka.sasl_ssl.replace("127.0.0.1", "127.1")}
    if changes.get("bootstrap_servers") == "ssl":
        changes = changes | {"bootstrap_servers": secured.kafka.ssl}
    found = check_kafka(Settings(kafka=secured.kafka_settings("windows", **changes)))
    assert not found.ok
    assert re.search(told, found.detail), found.detail
    assert not shows_canary(found.detail.encode())


def test_a_client_certificate_is_who_one_is(secured: Secured) -> None:
    certificate, key = secured.kafka.certificates.issue("sdk")
    settings = secured.kafka_settings(
        "sdk", bootstrap_servers=secured.kafka.ssl, security_protocol="SSL", certificate_file=certificate, key_file=key
    )
    writer = KafkaWriter(settings.client())
    writer.write(Topics().samples, b"web", b"no batch")
    writer.flush()

    def write_elsewhere() -> None:
        writer.write(Topics().config, b"rule_group/x", b"{}")  # which fails itself where the broker's answer is fast
        writer.flush()

    with pytest.raises(KafkaException, match=r"topic tailrace\.config: .*Topic authorization failed") as caught:
        write_elsewhere()
    assert "docs/security.md" in reason(caught.value)


def test_a_missing_right_is_named(secured: Secured, tmp_path: Path) -> None:
    csv = tmp_path / "samples.csv"
    csv.write_text("time,metric,value\n1767225600,m,1\n")
    sdk, topics = secured.kafka_settings("sdk").client(), Topics()
    told = r"topic tailrace\.config: .*docs/security\.md has all"
    for read in (read_config, ConfigFollower):  # of `apply` and the flows, and of `notify`
        with pytest.raises(KafkaException) as caught:
            read(sdk, topics.config)
        assert re.search(told, reason(caught.value))
    with pytest.raises(ReplayError, match=r"topic 'tailrace\.samples' .*docs/security\.md has all"):
        replay(str(csv), bootstrap_servers=secured.kafka.sasl_ssl, properties=secured.kafka_settings("notify").client())
    said = secured.say("status", "run", "windows", code=1)
    assert re.search(r"topic tailrace\.samples: .*docs/security\.md has all", said), said


def test_rights_that_are_revoked_and_given_back_lose_nothing(secured: Secured) -> None:
    quick = {
        "TAILRACE_WINDOWS__IDLE_S": "1",
        "TAILRACE_WINDOWS__LATENESS_S": "3600",  # however long it takes until it may read again
        "TAILRACE_RECOVERY__DIRECTORY": str(secured.directory / "revoked"),
    }
    start_us = (now_us() // (10 * S) - 5) * 10 * S
    right = (ResourceType.TOPIC, Topics().samples, AclOperation.READ)
    with secured.start("windows", "run", "windows", **quick) as flow:
        send(secured, [1.0] * 5, start_us, "revoked")
        eventually(lambda: counted(secured, "revoked") == 5)
        secured.kafka.revoke_password("windows")
        eventually(lambda: re.search(r"waits: .*invalid credentials.* look at kafka\.username", flow.output()))
        send(secured, [1.0] * 5, start_us + 5 * S, "revoked")
        secured.kafka.set_password("windows", secured.passwords["windows"])
        eventually(lambda: counted(secured, "revoked") == 10)
        secured.kafka.forbid("windows", [right])
        assert flow.process.wait(60) == 1
        assert re.search(r"topic tailrace\.samples: .*docs/security\.md has all", flow.output()), flow.output()
    send(secured, [1.0] * 5, start_us + 10 * S, "revoked")
    secured.kafka.allow("windows", [right])
    with secured.start("windows", "run", "windows", **quick) as flow:
        eventually(lambda: counted(secured, "revoked") == 15)
    assert counted(secured, "revoked") == 15
    assert flow.process.returncode == 0
    secured.assert_no_secret()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"password": canary("wrong")}, r"Authentication failed.* look at clickhouse\.user and clickhouse\.password"),
        ({"user": "nobody"}, r"nobody: Authentication failed"),
        ({"ca_file": None}, r"certificate verify failed.* look at clickhouse\.ca_file"),
        ({"url": "127.0.0.1"}, r"certificate verify failed.* look at clickhouse\.url"),
        ({"url": "http"}, r"ClickHouse does not answer"),
    ],
)
def test_a_wrong_setting_of_clickhouse_is_named(secured: Secured, changes: dict[str, Any], told: str) -> None:
    if "url" in changes:  # the certificate is localhost's
        old = "localhost" if changes["url"] == "127.0.0.1" else "https"
        changes = {"url": secured.clickhouse_url.replace(old, changes["url"])}
    settings = Settings(kafka=secured.kafka_settings("topics"), clickhouse=secured.clickhouse_settings(**changes))
    found = next(one for one in run_checks(settings) if one.name == "clickhouse")
    assert not found.ok
    assert re.search(told, found.detail), found.detail
    assert not shows_canary(found.detail.encode())


def test_clickhouse_takes_a_client_certificate_and_the_writer_refuses_a_wrong_password(secured: Secured) -> None:
    certificate, key = secured.kafka.certificates.issue("tailrace")
    with connect(secured.clickhouse_settings(password="", certificate_file=certificate, key_file=key)) as client:
        assert client.query("SELECT 1").first_row == (1,)
    with pytest.raises(ClickHouseError):
        connect(secured.clickhouse_settings(password=""))
    both = secured.clickhouse_settings(certificate_file=certificate, key_file=key)
    with connect(both) as client:
        assert client.query("SELECT 1").first_row == (1,)
    settings = secured.clickhouse_settings()
    tls = TlsFiles(settings.ca_file)
    writer = ClickHouseWriter(settings.url, user="tailrace", password=canary("wrong"), tls=tls)
    with pytest.raises(WriteRejectedError, match="Authentication failed") as caught:
        writer.write("event_rows", [pa.RecordBatch.from_pydict({"x": [1]})])
    assert not shows_canary(str(caught.value).encode())
