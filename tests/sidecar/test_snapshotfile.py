"""A snapshot file is whole or refused."""

from __future__ import annotations

import hashlib

import pytest

from sidecar.snapshotfile import CorruptSnapshot, decode, encode


def test_file_begins_with_magic_and_digest_when_encoded() -> None:
    payload = b"payload"
    data = encode(payload)
    assert data == b"TURNOUT\x01" + hashlib.blake2b(payload, digest_size=32).digest() + payload
    assert decode(data) == payload
    assert decode(encode(b"")) == b""


def test_every_flipped_bit_is_noticed() -> None:
    data = encode(b"some payload")
    for index in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(CorruptSnapshot):
            decode(bytes(flipped))


def test_every_cut_is_noticed() -> None:
    data = encode(b"some payload")
    for length in range(len(data)):
        with pytest.raises(CorruptSnapshot):
            decode(data[:length])
    with pytest.raises(CorruptSnapshot):
        decode(data + b"\0")


def test_payload_is_refused_when_larger_than_the_limit() -> None:
    limit = 16 * 1024 * 1024
    assert len(decode(encode(b"x" * limit))) == limit
    with pytest.raises(ValueError, match="at most"):
        encode(b"x" * (limit + 1))
    with pytest.raises(CorruptSnapshot, match="at most"):
        decode(b"TURNOUT\x01" + bytes(32) + b"x" * (limit + 1))
