"""Avro single-object encoding: `C3 01`, the schema's CRC-64-AVRO fingerprint (little-endian), the datum.

Source: Avro 1.12 specification, "Single-object encoding" and "Schema Fingerprints".
A Confluent-framed message begins with 00, so the first byte will tell the two apart.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

__all__ = ["MAGIC", "MALFORMED", "Codec"]

MAGIC = b"\xc3\x01"

MALFORMED = (EOFError, ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError)
"""What fastavro raises on bytes that are not of the schema (UnicodeDecodeError is a ValueError)."""


class Codec:
    """Encodes and decodes one schema of `avro/`, read once at import."""

    def __init__(self, name: str) -> None:
        definition = json.loads(files(__package__).joinpath("avro", f"{name}.avsc").read_text())
        self.name = name
        self.schema: Any = fastavro.parse_schema(definition)
        self.fingerprint = bytes.fromhex(fingerprint(to_parsing_canonical_form(definition), "CRC-64-AVRO"))
        self.header = MAGIC + self.fingerprint

    def encode(self, datum: Mapping[str, Any]) -> bytes:
        """The message: header and datum.

        Raises:
            ValueError, TypeError, OverflowError: the datum does not fit the schema.
        """
        out = BytesIO()
        out.write(self.header)
        fastavro.schemaless_writer(out, self.schema, datum)
        return out.getvalue()

    def encode_bare(self, datum: Mapping[str, Any]) -> bytes:
        """The datum alone, for nesting in another message."""
        out = BytesIO()
        fastavro.schemaless_writer(out, self.schema, datum)
        return out.getvalue()

    def decode_bare(self, payload: bytes, start: int = 0) -> Any:
        """The datum that fills `payload` from `start` to its end. A length in it is checked before it is used.

        Raises:
            one of MALFORMED: the bytes are not exactly one datum of the schema.
        """
        source = BytesIO(payload)
        source.seek(start)
        datum = fastavro.schemaless_reader(source, self.schema, None)
        if source.tell() != len(payload):
            raise ValueError(f"{len(payload) - source.tell()} bytes follow the {self.name}")
        return datum

    def decode(self, payload: bytes) -> Any:
        """The datum of a message with this codec's header.

        Raises:
            one of MALFORMED: as for `decode_bare`, or the header is another one.
        """
        if not payload.startswith(self.header):
            raise ValueError(f"not a {self.name}: the header is {payload[:10].hex()}")
        return self.decode_bare(payload, len(self.header))
