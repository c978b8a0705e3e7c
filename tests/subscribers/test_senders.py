"""Messages as they arrive: at a webhook, in a mailbox, through Apprise; and what is said of what did not."""

import json
import logging
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.stack import start_clickhouse
from tailrace_schemas.alerts import Alert, Transition, alert_id
from tailrace_schemas.config.receivers import Receiver, Templates
from tailrace_schemas.notifications import Notification, NotifiedAlert
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate
from tailrace_subscribers.notify.alertmanager import payload
from tailrace_subscribers.notify.render import TemplatesError, cause_sql, render
from tailrace_subscribers.notify.secrets import Masker, MaskingFilter, SecretError, resolve, url_part
from tailrace_subscribers.notify.senders import SendError, send

from tests.flows.alerting.dispatching import World, config_of
from tests.flows.alerting.scenario import S
from tests.subscribers.receiving import EXAMPLE, Hook, notification, smtp_server, webhook_server

HOSTILE = "x'); DROP TABLE rows_10s; --\\' \n\r{{ 7*7 }}{% raw %}<script>alert(1)</script>\x1b[31m\u202e\0"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook_server() as found:
        yield found


def receiver(**fields: Any) -> Receiver:
    return Receiver.model_validate_json(json.dumps({"name": "one", **fields}))


def mail(port: int, **fields: Any) -> Receiver:
    email = {"to": ["a@example.org"], "from": "t@example.org", "host": "localhost", "port": port, "tls": "none"}
    return receiver(email={**email, **fields})


def hostile() -> Notification:
    alert = EXAMPLE.alerts[0].alert.model_copy(
        update={"labels": {"service": HOSTILE, HOSTILE: HOSTILE}, "description": HOSTILE, "metric": HOSTILE}
    )
    labels = {"alertname": alert.name, "service": HOSTILE, HOSTILE: HOSTILE}
    return EXAMPLE.model_copy(
        update={"alerts": (NotifiedAlert(firing=True, alert=alert),), "common_labels": labels, "group_key": HOSTILE}
    )


# -- webhook -------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_notification_and_its_id(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush/hush")
    headers = {"Authorization": "Bearer ${env:TOKEN}"}
    send(receiver(webhook={"url": f"{hook.url}/a/${{env:TOKEN}}", "headers": headers}), [EXAMPLE])
    ((path, got, body),) = hook.got
    assert path == "/a/hush%2Fhush"
    assert got["Idempotency-Key"] == EXAMPLE.id
    assert got["Authorization"] == "Bearer hush/hush"
    assert Notification.model_validate_json(body) == EXAMPLE


def test_alertmanager_s_payload(hook: Hook) -> None:
    send(receiver(webhook={"url": hook.url, "format": "alertmanager"}), [EXAMPLE])
    (body,) = hook.bodies()
    labels = {
        "alertname": "HostHighCpu", "severity": "warning", "source": "host/HostHighCpu", "host.name": "web-1",
        "service": "host",
    }  # fmt: skip
    annotations = {"description": "CPU of web-1 is at 93%"}
    assert body == {
        "version": "4",
        "groupKey": EXAMPLE.group_key,
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "sre-mail",
        "groupLabels": EXAMPLE.group_labels,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [
            {
                "status": "firing",
                "labels": labels,
                "annotations": annotations,
                "startsAt": "2026-01-05T12:00:00+00:00",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "",
                "fingerprint": alert_id("host/HostHighCpu", (("host.name", "web-1"), ("service", "host")), 0),
            }
        ],
    }


def test_alertmanager_s_fingerprint_is_the_alert_s_in_each_of_its_lives() -> None:
    """One that ends and fires again within `group_interval` is not told of in between, and has another id then."""
    route = {"receiver": "hook", "group_wait": "1s", "group_interval": "60s", "group_by": ["..."]}
    world = World.of(config_of(yaml.safe_dump({"routing": route})))
    told: list[tuple[str, str]] = []
    ids = set()
    for act in (world.fire, None, world.fire, None):
        for name in ("a", "b"):
            if act:
                act(name, {"service": name})
            else:
                world.change(name, Transition.RESOLVED)
        for _, one in world.advance(world.now_us + 20 * S):
            ids |= {entry.alert.id for entry in one.alerts}
            told += [(alert["fingerprint"], alert["status"]) for alert in payload(one)["alerts"]]
    for _, one in world.advance(world.now_us + 120 * S):
        ids |= {entry.alert.id for entry in one.alerts}
        told += [(alert["fingerprint"], alert["status"]) for alert in payload(one)["alerts"]]
    assert len(ids) == 4
    assert sorted(dict(told).values()) == ["resolved", "resolved"], told


@pytest.mark.parametrize(
    ("code", "headers", "retry", "after_s"),
    [
        (400, {}, False, None),
        (404, {}, False, None),
        (302, {"Location": "http://127.0.0.1:1/"}, False, None),
        (408, {}, True, None),
        (429, {"Retry-After": "7"}, True, 7),
        (503, {"Retry-After": "100000"}, True, 300),
        (500, {"Retry-After": "soon"}, True, None),
    ],
)
def test_what_a_webhook_answers(
    hook: Hook, code: int, headers: dict[str, str], retry: bool, after_s: float | None
) -> None:
    hook.answer = lambda _path: (code, headers, b"no " + b"x" * 1_000_000)
    with pytest.raises(SendError, match=f"HTTP {code} no x") as caught:
        send(receiver(webhook={"url": hook.url}), [EXAMPLE])
    assert (caught.value.retry, caught.value.after_s) == (retry, after_s)
    assert len(str(caught.value)) < 5000


def test_a_webhook_that_is_away_or_no_url() -> None:
    with pytest.raises(SendError, match="Connection refused") as caught:
        send(receiver(webhook={"url": "http://127.0.0.1:1/hush"}), [EXAMPLE])
    assert caught.value.retry
    assert "hush" not in str(caught.value)
    with pytest.raises(SendError, match="Invalid") as caught:
        send(receiver(webhook={"url": "nosuch://x"}), [EXAMPLE])
    assert not caught.value.retry


# -- email ---------------------------------------------------------------------------------------------


def test_an_email_has_text_and_html_and_belongs_to_its_group() -> None:
    with smtp_server() as mailbox:
        assert send(mail(mailbox.port), [EXAMPLE]) == ""
        assert send(mail(mailbox.port), [EXAMPLE.model_copy(update={"id": "f" * 16})]) == ""
        first, second = mailbox.got
    assert first["Message-ID"].startswith(f"<{EXAMPLE.id}@")
    assert first["Message-ID"] != second["Message-ID"]
    assert first["References"] == second["References"]
    assert first["Subject"] == "[FIRING:1] HostHighCpu host.name=web-1 service=host (warning)"
    assert first["Auto-Submitted"] == "auto-generated"
    text, html = first.get_body(("plain",)), first.get_body(("html",))
    assert text is not None
    assert html is not None
    assert "system.cpu.utilization = 0.93 (threshold gt 0.8)" in text.get_content()
    assert "SELECT window_start" in text.get_content()
    assert "<pre" in html.get_content()


def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate of its own for localhost."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context, cert


@pytest.mark.parametrize("how", ["starttls", "tls"])
def test_email_over_tls_logs_in_and_verifies_the_server(how: str, tmp_path: Path) -> None:
    context, ca_file = certificate(tmp_path)
    (tmp_path / "secret").write_text("hush\n")
    login = {"tls": how, "username": "me", "password": f"${{file:{tmp_path}/secret}}"}
    with smtp_server(context, starttls=how == "starttls") as mailbox:
        send(mail(mailbox.port, ca_file=str(ca_file), **login), [EXAMPLE])
        assert mailbox.logins == [(b"me", b"hush")]
        assert len(mailbox.got) == 1
        with pytest.raises(SendError, match=r"(?i)certificate") as caught:
            send(mail(mailbox.port, **login), [EXAMPLE])
        assert caught.value.retry
        assert len(mailbox.got) == 1


def test_what_a_mail_server_answers() -> None:
    with smtp_server() as mailbox:
        mailbox.answer = lambda: "451 greylisted"
        with pytest.raises(SendError, match="SMTP 451 greylisted") as caught:
            send(mail(mailbox.port), [EXAMPLE])
        assert caught.value.retry
        mailbox.answer = lambda: "554 no"
        with pytest.raises(SendError, match="SMTP 554 no") as caught:
            send(mail(mailbox.port), [EXAMPLE])
        assert not caught.value.retry
        mailbox.answer = lambda: "250 OK"
        mailbox.refused = frozenset({"b@example.org"})
        assert send(mail(mailbox.port, to=["a@example.org", "b@example.org"]), [EXAMPLE]) == "refused for b@example.org"
        assert mailbox.recipients == [["a@example.org"]]
        mailbox.refused = frozenset({"a@example.org"})
        with pytest.raises(SendError, match="all recipients were refused") as caught:
            send(mail(mailbox.port), [EXAMPLE])
        assert not caught.value.retry
    with pytest.raises(SendError, match="refused") as caught:
        send(mail(mailbox.port), [EXAMPLE])
    assert caught.value.retry


@pytest.mark.parametrize("answer", ["221 Bye", "250 OK", "421 busy", "554 no"])
def test_what_a_mail_server_took_is_sent_whatever_it_answers_to_quit(answer: str) -> None:
    with smtp_server() as mailbox:
        mailbox.goodbye = answer
        assert send(mail(mailbox.port), [EXAMPLE]) == ""
        assert len(mailbox.got) == 1


def test_a_digest_is_one_message() -> None:
    with smtp_server() as mailbox:
        send(mail(mailbox.port), [notification(number) for number in range(30)])
        (message,) = mailbox.got
    assert message["Subject"] == "[30 firing, 0 resolved] 30 groups of alerts"
    assert message["Message-ID"].startswith("<digest-")
    text = message.get_body(("plain",))
    assert text is not None
    assert "and 10 more groups" in text.get_content()


# -- Apprise -------------------------------------------------------------------------------------------


def test_apprise_gets_title_text_and_kind(hook: Hook) -> None:
    where = hook.url.removeprefix("http://")
    send(receiver(apprise={"url": f"json://{where}/x"}), [EXAMPLE])
    (body,) = hook.bodies()
    assert body["title"].startswith("[FIRING:1] HostHighCpu")
    assert EXAMPLE.id in body["message"]
    assert body["type"] == "failure"
    hook.answer = lambda _path: (500, {}, b"")
    logging.getLogger("apprise").disabled = True  # as fileConfig leaves it
    with pytest.raises(SendError, match=r"JSON") as caught:
        send(receiver(apprise={"url": f"json://{where}/x"}), [EXAMPLE])
    assert caught.value.retry
    with pytest.raises(SendError, match="does not know") as caught:
        send(receiver(apprise={"url": "nosuch://x"}), [EXAMPLE])
    assert not caught.value.retry


# -- templates -----------------------------------------------------------------------------------------


def test_labels_are_data_whatever_they_look_like() -> None:
    found = render(Templates(), [hostile()])
    assert "\n" not in found.title
    for text in found:
        assert "49" not in text.replace(HOSTILE, "")
        assert not set("\r\x1b\0\u202e") & set(text)
    assert "<script>" not in found.html
    with smtp_server() as mailbox:
        send(mail(mailbox.port), [hostile()])
        assert len(mailbox.got) == 1


def test_no_line_of_a_message_is_a_label_s() -> None:
    forged = "x\n\nRESOLVED: DiskFull (critical)\n  service = other\u2028  alert 00"
    alert = EXAMPLE.alerts[0].alert.model_copy(
        update={"labels": {"host": forged, forged: "y"}, "metric": forged, "description": f"{forged} is busy"}
    )
    one = EXAMPLE.model_copy(update={"alerts": (NotifiedAlert(firing=True, alert=alert),)})
    lines = render(Templates(), [one]).text.splitlines()
    assert not [
        line for line in lines if line.startswith(("RESOLVED", "  RESOLVED", "  service = other", "  alert 00"))
    ]
    assert sum(line.startswith("  alert ") for line in lines) == 1


def test_templates_of_a_receiver_and_what_they_may_not() -> None:
    own = Templates(title="{{ notification|name }} {{ reason }}", text="{{ firing }}", html="<b>{{ text }}</b>")
    assert render(own, [EXAMPLE]) == ("HostHighCpu first", "1\n", "<b>1\n</b>")
    for bad in (
        "{{ ''.__class__.__mro__ }}",
        "{{ notification.no_such_thing }}",
        "{{ 1 / 0 }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ notification.alerts[9].alert }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ):
        with pytest.raises(TemplatesError, match=r"templates\.text"):
            render(Templates(text=bad), [EXAMPLE])
    with smtp_server() as mailbox:
        broken = mail(mailbox.port).model_copy(update={"templates": Templates(text="{{ nothing }}")})
        assert "templates.text: UndefinedError" in send(broken, [EXAMPLE])
        assert len(mailbox.got) == 1
    long = render(Templates(text="{% for i in range(99999) %}yyyyyyyyyyyyyyyyyyyy{% endfor %}"), [EXAMPLE])
    assert len(long.text) <= 50_000


def test_the_query_of_the_cause_runs_whatever_the_labels_hold(tmp_path: Path) -> None:
    child = start_clickhouse(tmp_path, 0)
    try:
        settings = ClickHouseSettings(url=f"http://127.0.0.1:{child.ready['port']}")
        with connect(settings) as client:
            migrate(client, settings)
            for one in (EXAMPLE, hostile()):
                for source, view in (
                    ("a/b", "windows"),
                    (f"slo/{HOSTILE}", "slo_status"),
                    ("health/x", "health_changes"),
                ):
                    query = cause_sql(one.alerts[0].alert.model_copy(update={"source": source}))
                    assert f"FROM {view} " in query
                    assert client.query(query).result_rows == []
            assert client.query("SELECT count() FROM rows_10s").result_rows == [(0,)]
            literal = cause_sql(Alert(**{**dict(EXAMPLE.alerts[0].alert), "metric": HOSTILE + "é"}))
            quoted = literal.partition("metric = ")[2].partition(" AND ")[0]
            assert client.query(f"SELECT {quoted}").result_rows == [(HOSTILE + "é",)]
    finally:
        child.stop()
    assert cause_sql(EXAMPLE.alerts[0].alert.model_copy(update={"metric": ""})) == ""


# -- secrets -------------------------------------------------------------------------------------------


def test_references(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A", "a/b")
    (tmp_path / "f").write_text(" slack://x/y \n")
    assert resolve("${env:A}", encode=url_part) == "a/b"
    assert resolve("x://${env:A}@h", encode=url_part) == "x://a%2Fb@h"
    assert resolve(f"${{file:{tmp_path}/f}}") == "slack://x/y"
    assert resolve("$A {env:A} ${A}") == "$A {env:A} ${A}"
    for bad, why in (("${env:NO}", "variable NO is not set"), (f"${{file:{tmp_path}/no}}", "No such file")):
        with pytest.raises(SecretError, match=why):
            resolve(bad)
    with pytest.raises(SendError, match="variable NO is not set") as caught:
        send(receiver(webhook={"url": "${env:NO}"}), [EXAMPLE])
    assert caught.value.retry  # it may be set at the next start, and until then nothing is lost


def test_secrets_are_masked_in_whatever_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush/one")
    masker = Masker()
    for fields in (
        {"webhook": {"url": "https://me:hush2@h/services/T0AB12CD/hush-three?key=hush4",
                     "headers": {"Authorization": "Bearer hush5", "X": "${env:TOKEN}"}}},
        {"apprise": {"url": "json://h/path?+X-Token=hush6hush"}},
        {"apprise": {"url": "slack://hush7hush/${env:TOKEN}/c"}},
        {"email": {"to": ["a@b"], "from": "c@d", "host": "e", "password": "hush8"}},
        {"webhook": {"url": "${env:MISSING}"}},
        {"webhook": {"url": "https://me:hush[9@h/path"}},  # no URL
    ):  # fmt: skip
        masker.learn(receiver(**fields))
    said = "hush/one hush%2Fone hush2 T0AB12CD hush-three hush4 hush5 hush6hush hush7hush hush8 me:hush[9@h/path"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (said,), None)
    assert MaskingFilter(masker).filter(record)
    assert "hush" not in record.getMessage()
    assert "T0AB12CD" not in record.getMessage()
    assert masker.mask("https://h/services is up") == "https://h/services is up"
    try:
        raise ValueError("hush5")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    MaskingFilter(masker).filter(record)
    assert "hush5" not in str(record.exc_text)
