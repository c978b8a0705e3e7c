"""Dead letters: what a flow could not use, from where, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_schemas.deadletter import (
    DEAD_LETTER,
    MAX_PAYLOAD_BYTES,
    DeadLetter,
    decode_dead_letter,
    encode_dead_letter,
)
from tailrace_schemas.samples import Reason

from tests.schemas.examples import example

LONGS = st.integers(-(1 << 63), (1 << 63) - 1)
LETTERS = st.builds(
    DeadLetter,
    topic=st.text(max_size=20),
    partition=st.integers(0, (1 << 31) - 1),
    offset=LONGS,
    record_time_us=LONGS,
    service=st.text(max_size=20),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=50),
    samples=LONGS,
    payload_bytes=LONGS,
    payload=st.binary(max_size=200),
)


def test_example() -> None:
    content = example("DeadLetter")
    letter = DeadLetter(**content["datum"] | {"payload": bytes.fromhex(content["datum"]["payload"])})
    message = bytes.fromhex(content["hex"])
    assert encode_dead_letter(letter) == message
    assert decode_dead_letter(message) == letter
    assert Reason(letter.reason) is Reason.NOT_FINITE


@given(LETTERS)
def test_a_letter_is_read_as_it_was_written(letter: DeadLetter) -> None:
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_record_from_beyond_all_time_can_be_a_dead_letter(sign: int) -> None:
    """A record's timestamp is its producer's word: 64 bits of milliseconds."""
    letter = DeadLetter("t", 0, 0, sign * (1 << 63) * 1000, "", Reason.MALFORMED, "", 0, 0, b"")
    assert abs(decode_dead_letter(encode_dead_letter(letter)).record_time_us) >= (1 << 63) - 1


def test_a_payload_is_carried_to_its_last_byte() -> None:
    payload = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
    letter = DeadLetter("t", 0, 0, 0, "", Reason.MALFORMED, "", 0, len(payload), payload)
    assert decode_dead_letter(encode_dead_letter(letter)).payload == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_a_letter_or_a_value_error(body: bytes) -> None:
    for message in (body, DEAD_LETTER.header + body):
        try:
            letter = decode_dead_letter(message)
        except ValueError:
            continue
        # One datum may have several encodings (an integer may be longer than it need be), one encoding one datum.
        assert decode_dead_letter(encode_dead_letter(letter)) == letter


def test_another_message_is_refused() -> None:
    with pytest.raises(ValueError, match="not a DeadLetter"):
        decode_dead_letter(bytes.fromhex(example("SampleBatch")["hex"]))
