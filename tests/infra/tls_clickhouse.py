"""chDB behind https, with users: what stands in for a ClickHouse server that operators have secured.

The engine and its HTTP interface are the product's own; TLS, passwords and client certificates are real, and are
checked here, since the embedded interface has none of them. `python -m tests.infra.tls_clickhouse` is the process.
"""

import argparse
import base64
import json
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tailrace_infra.chdb_engine import ClickHouseError
from tailrace_infra.child import announce_ready, exit_with_parent, start_child
from tailrace_infra.clickhouse import ClickHouseServer, _Handler
from tailrace_infra.signals import StopSignal

from tests.infra.secure_kafka import Certificates

__all__ = ["tls_clickhouse"]


class _Guarded(_Handler):
    """Asks who it is before anything else."""

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server looks for
        scheme, _, coded = self.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(coded).decode().partition(":") if scheme == "Basic" else ("", "", "")
        if self.headers.get("X-ClickHouse-SSL-Certificate-Auth") == "on":
            user = self.headers.get("X-ClickHouse-User", "")
            certificate: Any = self.connection.getpeercert()  # type: ignore[attr-defined]
            names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
            known = user in names
        else:
            known = bool(password) and json.loads(os.environ["USERS"]).get(user) == password
        if known:
            super().do_GET()
        else:
            text = f"{user}: Authentication failed: password is incorrect, or there is no user with such name."
            self._fail(ClickHouseError(516, "AUTHENTICATION_FAILED", text), None)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the same


class _Server(ClickHouseServer):
    context: ssl.SSLContext

    def get_request(self) -> Any:
        connection, address = super().get_request()
        # The handshake is its thread's business: a client that does not do it holds up nobody.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def watched(self, *_: Any) -> Any:
        return nullcontext()  # it peeks at the connection, which TLS does not allow


@contextmanager
def tls_clickhouse(directory: Path, certificates: Certificates, users: Mapping[str, str]) -> Iterator[str]:
    """Its URL. `users`: name -> password; a client certificate of the authority is its common name's."""
    certificate, key = certificates.issue("clickhouse", "localhost")
    child = start_child(
        "tests.infra.tls_clickhouse", str(directory), str(certificate), str(key), str(certificates.ca),
        environment={"USERS": json.dumps(users)}, log=directory.with_suffix(".log"), timeout_s=60,
    )  # fmt: skip
    try:
        yield f"https://localhost:{child.ready['port']}"
    finally:
        child.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("directory", "certificate", "key", "ca"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    with StopSignal() as stop:
        exit_with_parent()
        server = _Server(options.directory)
        server.RequestHandlerClass = _Guarded
        server.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.ca)
        server.context.load_cert_chain(options.certificate, options.key)
        server.context.verify_mode = ssl.CERT_OPTIONAL
        threading.Thread(target=server.serve_forever, args=(0.5,), daemon=True).start()
        announce_ready(port=server.port)
        stop.wait()
        server.stop()


if __name__ == "__main__":
    main()
