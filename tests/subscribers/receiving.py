"""Real receivers on loopback, a webhook server and an SMTP server, which keep what they get; a notifier process."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, Session
from confluent_kafka import Producer
from tailrace_flows.config_topic import publish
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.cloudevents import notification_message
from tailrace_schemas.config import load, record_of
from tailrace_schemas.notifications import Notification
from tailrace_schemas.topics import Topics
from tailrace_sinks.kafka import KafkaWriter

from tests.infra.waiting import eventually
from tests.schemas.examples import example

TOPICS = Topics()
EXAMPLE = Notification.model_validate(example("Notification")["datum"])


def notification(number: int, receiver: str = "hook", **changes: Any) -> Notification:
    """One of many, each of a group of its own."""
    update = {"id": f"{number:016x}", "receiver": receiver, "group_key": f"group-{number}", **changes}
    return EXAMPLE.model_copy(update=update)


@dataclass
class Hook:
    """A webhook server's address, and what it got: path, headers, body."""

    url: str
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answer: Callable[[str], tuple[int, Mapping[str, str], bytes]] = lambda _path: (200, {}, b"")
    """By path: code, headers, body."""

    def bodies(self, path: str = "") -> list[Any]:
        return [json.loads(body) for where, _, body in list(self.got) if where.startswith(path)]

    def ids(self, path: str = "") -> list[str]:
        """Of what came with one."""
        got = [headers.get("Idempotency-Key") for where, headers, _ in list(self.got) if where.startswith(path)]
        return [one for one in got if one]


@contextmanager
def webhook_server() -> Iterator[Hook]:
    hook = Hook("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code, headers, said = hook.answer(self.path)
            hook.got.append((self.path, dict(self.headers), body))
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hook.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hook
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Mailbox:
    """An SMTP server's port, and what it took."""

    port: int = 0
    got: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    answer: Callable[[], str] = lambda: "250 OK"
    refused: frozenset[str] = frozenset()
    goodbye: str = "221 Bye"
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - its name
        self, _server: Any, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_QUIT(self, _server: Any, _session: Session, _envelope: Envelope) -> str:  # noqa: N802 - its name
        return self.goodbye

    async def handle_DATA(self, _server: Any, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        answer = self.answer()
        if answer.startswith("2"):
            assert isinstance(envelope.content, bytes)
            message = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(message, EmailMessage)
            self.got.append(message)
            self.recipients.append(list(envelope.rcpt_tos))
        return answer


class _AnyPort(Controller):
    """Whose own first connection goes to the port that the system chose."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def smtp_server(tls: ssl.SSLContext | None = None, *, starttls: bool = True) -> Iterator[Mailbox]:
    """With TLS it wants a login."""
    mailbox = Mailbox()

    def log_in(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        mailbox.logins.append((data.login, data.password))
        return AuthResult(success=True)

    options: dict[str, Any] = {}
    if tls is not None:
        options = {"authenticator": log_in, "auth_require_tls": starttls}
        options |= {"tls_context": tls, "require_starttls": True} if starttls else {"ssl_context": tls}
    controller = _AnyPort(mailbox, hostname="127.0.0.1", port=0, ready_timeout=20, **options)
    controller.start()
    mailbox.port = controller.port
    try:
        yield mailbox
    finally:
        controller.stop()


def apply(bootstrap_servers: str, text: str, topics: Topics = TOPICS) -> None:
    """Puts a configuration in force."""
    ensure_topics({"bootstrap.servers": bootstrap_servers}, topics, partitions=1)
    records = [record_of(item) for item in load([("test.yaml", text)]).items]
    publish(KafkaWriter({"bootstrap.servers": bootstrap_servers}), topics.config, records)


def produce(bootstrap_servers: str, notifications: list[Notification], topics: Topics = TOPICS) -> None:
    """As the dispatcher's flow does."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "partitioner": "murmur2_random", "log_level": 0})
    for one in notifications:
        message = notification_message(one)
        producer.produce(topics.notifications, message.value, message.key, headers=message.headers)
        producer.poll(0)
    assert producer.flush(10) == 0


@dataclass
class Running:
    """`tailrace notify` as a process."""

    process: subprocess.Popen[bytes]
    out: Path

    def output(self) -> str:
        return self.out.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def until(self, attempt: Callable[[], object], timeout_s: float = 30) -> None:
        def look() -> bool:
            assert self.process.poll() is None, self.output()
            return bool(attempt())

        eventually(look, timeout_s)


@contextmanager
def notifier(bootstrap_servers: str, out: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """What it writes goes to `out`, stdout and stderr."""
    with out.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tailrace_infra.cli", "notify", *arguments],
            env={
                **os.environ,
                "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
                # So that a notifier which was killed leaves the group soon.
                "TAILRACE_KAFKA__PROPERTIES": '{"session.timeout.ms": 6000}',
                **environment,
            },
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        yield Running(process, out)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def hooks(hook: Hook, *names: str) -> str:
    """Receivers of a webhook server, each at a path of its own name."""
    return yaml.safe_dump({"receivers": [{"name": name, "webhook": {"url": f"{hook.url}/{name}"}} for name in names]})
