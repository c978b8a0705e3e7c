"""A real Kafka as operators secure one: TLS on every listener, SCRAM users, no right without an ACL."""

import base64
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trustme
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization
from tailrace_infra import kafka as kafka_server
from tailrace_infra.ports import free_port

from tests.infra.waiting import eventually

__all__ = ["ADMIN", "Acl", "Certificates", "SecureKafka", "secure_kafka"]

ADMIN: Final = ("admin", "admins-passw0rd")
SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"
REAUTH_MS: Final = 6_000
"""So often a connection proves again who it is: soon after a password is gone, so are its connections."""

Acl = tuple[ResourceType, str, AclOperation]


class Certificates:
    """An authority, and what it has signed, as PEM files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.other_ca = directory / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca)

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """(certificate, key); `name` is its common name, which Kafka and ClickHouse take for the user's."""
        issued = self._authority.issue_cert(*(hosts or (f"{name}.example.org",)), common_name=name)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        key.write_bytes(_pkcs8(issued.private_key_pem.bytes()))
        return certificate, key

    def keystore(self, name: str, *hosts: str) -> Path:
        """Key and certificate in one file, as Java's `PEM` key stores have it."""
        certificate, key = self.issue(name, *hosts)
        store = self._directory / f"{name}.keystore.pem"
        store.write_bytes(key.read_bytes() + certificate.read_bytes())
        return store


def _pkcs8(pem: bytes) -> bytes:
    """As Java wants it."""
    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass
class SecureKafka:
    """Where it listens, and its administrator."""

    sasl_ssl: str
    """`host:port` for users with passwords."""
    ssl: str
    """`host:port` for users with certificates."""
    certificates: Certificates
    admin: Any
    """An AdminClient that may do everything."""

    def client(self, user: str, password: str) -> dict[str, Any]:
        """librdkafka's configuration."""
        return {
            "bootstrap.servers": self.sasl_ssl, "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user, "sasl.password": password, "ssl.ca.location": str(self.certificates.ca),
            "log_level": 0,
        }  # fmt: skip

    def set_password(self, user: str, password: str) -> None:
        """Makes the user, or gives it another password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        self._alter(UserScramCredentialUpsertion(user, info, password.encode()))

    def revoke_password(self, user: str) -> None:
        self._alter(UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_512))

    def _alter(self, change: Any) -> None:
        for future in self.admin.alter_user_scram_credentials([change]).values():
            future.result(30)

    def allow(self, user: str, rights: Iterable[Acl]) -> None:
        for future in self.admin.create_acls([_binding(user, *right) for right in rights]).values():
            future.result(30)

    def forbid(self, user: str, rights: Iterable[Acl] | None = None) -> None:
        """Takes rights away; all of them by default."""
        bindings = [_binding(user, *right) for right in rights or []]
        filters = [
            AclBindingFilter(
                one.restype, one.name, one.resource_pattern_type, one.principal, one.host, one.operation,
                one.permission_type,
            )
            for one in bindings
        ] or [
            AclBindingFilter(
                ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{user}", None, AclOperation.ANY,
                AclPermissionType.ANY,
            )
        ]  # fmt: skip
        for future in self.admin.delete_acls(filters).values():
            future.result(30)


def _binding(user: str, kind: ResourceType, name: str, operation: AclOperation) -> AclBinding:
    literal = ResourcePatternType.LITERAL
    return AclBinding(kind, name, literal, f"User:{user}", "*", operation, AclPermissionType.ALLOW)


@contextmanager
def secure_kafka(directory: Path) -> Iterator[SecureKafka]:
    """One KRaft node on loopback for as long as the context lasts. About 5 s, most of it Java's."""
    certificates = Certificates(directory / "certificates")
    sasl, ssl, controller = (f"127.0.0.1:{free_port()}" for _ in range(3))
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "log.dirs": str(directory / "logs"),
        "listeners": f"SASL_SSL://{sasl},SSL://{ssl},CONTROLLER://{controller}",
        "advertised.listeners": f"SASL_SSL://{sasl},SSL://{ssl}",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "SSL",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.keystore("broker", "localhost", "127.0.0.1")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "ssl.client.auth": "required",  # Kafka does not ask those of SASL_SSL
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{SCRAM} required;",
        "connections.max.reauth.ms": str(REAUTH_MS),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:broker;User:{ADMIN[0]}",
    }
    config = directory / "server.properties"
    shipped = (Path(kafka_server.__file__).parent / "kafka_files" / "server.properties").read_text()
    config.write_text(shipped + "".join(f"{key}={value}\n" for key, value in properties.items()))
    java = [kafka_server.find_java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{kafka_server.fetch_jars()}/*"]
    cluster = base64.urlsafe_b64encode(secrets.token_hex(8).encode()).decode().rstrip("=")
    user = "SCRAM-SHA-512=[name={},password={}]".format(*ADMIN)
    tool = ["kafka.tools.StorageTool", "format", "-c", str(config), "-t", cluster, "--add-scram", user]
    subprocess.run([*java, *tool], check=True, capture_output=True)
    with (directory / "kafka.log").open("wb") as log:
        server = subprocess.Popen([*java, "kafka.Kafka", str(config)], stdout=log, stderr=log)
    try:
        running = SecureKafka(sasl, ssl, certificates, None)
        running.admin = AdminClient(running.client(*ADMIN) | {"reconnect.backoff.max.ms": 100})

        def answers() -> bool:
            assert server.poll() is None, (directory / "kafka.log").read_text()[-2000:]
            try:
                return bool(running.admin.list_topics(timeout=0.5).brokers)
            except KafkaException:
                return False

        eventually(answers, 180)  # usually 5
        yield running
    finally:
        server.terminate()
        server.wait(20)
