"""`DeadLetter`: what a flow could not use, from where, and why."""

from typing import NamedTuple

from tailrace_schemas.codec import FlatCodec

__all__ = ["DEAD_LETTER", "MAX_PAYLOAD_BYTES", "DeadLetter", "decode_dead_letter", "encode_dead_letter"]

DEAD_LETTER = FlatCodec("DeadLetter")
MAX_PAYLOAD_BYTES = 64 * 1024


class DeadLetter(NamedTuple):
    """Provenance, reason, and the record's value cut at 64 KiB."""

    topic: str
    partition: int
    offset: int
    record_time_us: int
    service: str
    """Empty where it could not be read."""
    reason: str
    detail: str
    samples: int
    """How many samples were left out; 0 where the record could not be read at all."""
    payload_bytes: int
    payload: bytes


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The message. A timestamp beyond 64 bits of microseconds, which only a made-up record has, becomes the nearest."""
    record_time_us = min(max(letter.record_time_us, -(1 << 63)), (1 << 63) - 1)
    return DEAD_LETTER.encode(letter._asdict() | {"record_time_us": record_time_us})


def decode_dead_letter(message: bytes) -> DeadLetter:
    """The dead letter of a message.

    Raises:
        ValueError: the bytes are no dead letter.
    """
    return DeadLetter(**DEAD_LETTER.decode(message))
