"""Avro single-object encoding: `C3 01`, the schema's CRC-64-AVRO fingerprint (little-endian), the datum.

fastavro writes; reading is our own, since what is read may be anybody's bytes. fastavro takes a negative length as
"all that is left", an enum's index -1 as its last symbol, and builds whatever a block count says; here a length is
checked before it is used, and what the specification does not allow is an error.

Source: Avro 1.12 specification, "Binary Encoding", "Single-object encoding" and "Schema Fingerprints".
A Confluent-framed message begins with 00, so the first byte will tell the two apart.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from struct import unpack_from
from typing import Any, Final

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

__all__ = [
    "FLAT_TYPES", "MAGIC", "Codec", "FlatCodec", "TruncatedError", "read_double", "read_long", "read_size", "read_text",
]  # fmt: skip

MAGIC: Final = b"\xc3\x01"
FLAT_TYPES: Final = ("boolean", "int", "long", "bytes", "string")


class TruncatedError(ValueError):
    """The bytes end before the datum does."""


class Codec:
    """Encodes one schema of `avro/`, read once at import."""

    def __init__(self, name: str) -> None:
        definition = json.loads(files(__package__).joinpath("avro", f"{name}.avsc").read_text())
        self.name = name
        self.definition: dict[str, Any] = definition
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
        """The datum alone, for nesting in another message. Raises as `encode`."""
        out = BytesIO()
        fastavro.schemaless_writer(out, self.schema, datum)
        return out.getvalue()


class FlatCodec(Codec):
    """A `Codec` that decodes too: for a record all of whose fields are of a type in FLAT_TYPES."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._fields: list[tuple[str, str]] = [(one["name"], one["type"]) for one in self.definition["fields"]]
        if not all(kind in FLAT_TYPES for _, kind in self._fields):
            raise TypeError(f"{name} has fields of other types than {', '.join(FLAT_TYPES)}")

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The datum of a message with this codec's header.

        Cost: 0.3 us a field. Memory: the payload's size, and up to 4 times that of its text.

        Raises:
            ValueError: another header, or the bytes after it are not exactly one datum of the schema.
            TruncatedError: a ValueError too; they end before the datum does.
        """
        datum = self.read(payload)
        for name, kind in self._fields:
            if kind == "bytes":
                datum[name] = payload[datum[name]]
        return datum

    def read(self, payload: bytes) -> dict[str, Any]:
        """As `decode`, but a `bytes` field is given as the slice of the payload that it is: nothing is copied."""
        if not payload.startswith(self.header):
            raise ValueError(f"not a {self.name}: the header is {payload[:10].hex()}")
        try:
            return self._read(payload, len(self.header))
        except IndexError:
            raise TruncatedError(f"the {self.name} ends before its last field") from None

    def _read(self, payload: bytes, at: int) -> dict[str, Any]:
        datum: dict[str, Any] = {}
        for name, kind in self._fields:
            if kind == "boolean":
                if payload[at] > 1:
                    raise ValueError(f"{name}: {payload[at]} is no boolean")
                datum[name] = payload[at] == 1
                at += 1
                continue
            # As read_long, in place: the calls would double the cost of a message.
            number, shift = payload[at], 7
            at += 1
            if number >= 0x80:
                number &= 0x7F
                while (byte := payload[at]) >= 0x80 and shift < 63:
                    number |= (byte & 0x7F) << shift
                    shift += 7
                    at += 1
                number |= byte << shift
                at += 1
            number = _signed(number) if number >> 63 or number & 1 else number >> 1
            if kind == "long":
                datum[name] = number
            elif kind == "int":
                if not -(1 << 31) <= number < 1 << 31:
                    raise ValueError(f"{name}: {number} is no 32-bit integer")
                datum[name] = number
            else:
                end = at + number
                if number < 0:
                    raise ValueError(f"{name}: the length {number} is negative")
                if end > len(payload):
                    raise TruncatedError(f"{name}: {number} bytes are announced, {len(payload) - at} are left")
                datum[name] = slice(at, end) if kind == "bytes" else payload[at:end].decode()
                at = end
        if at != len(payload):
            raise ValueError(f"{len(payload) - at} bytes follow the {self.name}")
        return datum


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """The `long` at a place, and where it ends: a zig-zag varint of at most 64 bits.

    Raises (all that follow):
        ValueError: it is not what the specification allows.
        TruncatedError or IndexError: the data ends within it.
    """
    number, shift = data[at], 7
    at += 1
    if number >= 0x80:
        number &= 0x7F
        while (byte := data[at]) >= 0x80 and shift < 63:
            number |= (byte & 0x7F) << shift
            shift += 7
            at += 1
        number |= byte << shift
        at += 1
    return _signed(number), at


def read_size(data: bytes, at: int) -> tuple[int, int]:
    """A length: a `long` that is not negative."""
    size, at = read_long(data, at)
    if size < 0:
        raise ValueError(f"the length {size} is negative")
    return size, at


def read_text(data: bytes, at: int) -> tuple[str, int]:
    """A `string`: a length in bytes, and so much UTF-8."""
    size = data[at]
    if size & 0x81:  # more than one byte, or negative
        size, at = read_size(data, at)
    else:
        size >>= 1
        at += 1
    end = at + size
    if end > len(data):
        raise TruncatedError(f"{size} bytes are announced, {len(data) - at} are left")
    return data[at:end].decode(), end


def read_double(data: bytes, at: int) -> tuple[float, int]:
    """A `double`: eight bytes, little-endian."""
    if at + 8 > len(data):
        raise TruncatedError("a number is cut off")
    number: float = unpack_from("<d", data, at)[0]
    return number, at + 8


def _signed(number: int) -> int:
    """Zig-zag: 0, -1, 1, -2, ..."""
    if number >> 64:
        raise ValueError("an integer of more than 64 bits")
    return (number >> 1) ^ -(number & 1)
