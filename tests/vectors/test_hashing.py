"""The hashes that both sides, and any other client, must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import xxhash

from control import ingest
from sidecar.hashing import UnitHasher, bucket, bucket_after, request_hash, salt_prefix, unit_hash
from turnout.contract import BUCKET_COUNT, HASH_VERSION

VECTORS: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "hashing.json").read_bytes())


def hexed(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def test_vectors_are_of_this_version_and_say_where_they_come_from() -> None:
    assert VECTORS["hash_version"] == HASH_VERSION
    for kind in ("xxh3_64", "unit_hash", "bucket", "request_hash"):
        assert VECTORS[kind]["provenance"]
        assert VECTORS[kind]["cases"]


def test_xxh3_is_the_reference_hash_when_given_its_self_test() -> None:
    """The library under `bucket` and `request_hash`, against xxHash's own values."""
    longest = max(case["length"] for case in VECTORS["xxh3_64"]["cases"])
    buffer, state = bytearray(), 2654435761
    for _ in range(longest):
        buffer.append(state >> 56)
        state = state * 11400714785074694797 % 2**64
    for case in VECTORS["xxh3_64"]["cases"]:
        data = bytes(buffer[: case["length"]])
        assert xxhash.xxh3_64_intdigest(data) == case["hash"], case["length"]


def test_bucket_is_the_vectors_bucket() -> None:
    for case in VECTORS["bucket"]["cases"]:
        salt, unit = hexed(case, "salt"), hexed(case, "unit")
        assert bucket(salt, unit) == bucket_after(salt_prefix(salt), unit) == case["bucket"]
        assert 0 <= case["bucket"] < BUCKET_COUNT


def test_bucket_differs_when_salt_and_unit_are_cut_elsewhere() -> None:
    assert bucket(b"a", b"bc") != bucket(b"ab", b"c")


def test_unit_hash_is_the_vectors_hash() -> None:
    for case in VECTORS["unit_hash"]["cases"]:
        key, unit = hexed(case, "key"), hexed(case, "unit")
        hasher = UnitHasher(key)
        assert unit_hash(key, unit) == case["hash"]
        assert hasher.digest(unit) == hexed(case, "digest")
        assert int(hasher.hex_digits(unit), 16) == case["hash"]
        assert len(hasher.hex_digits(unit)) == 16


def test_request_hash_is_the_vectors_hash_on_both_sides() -> None:
    """Exposures come from the sidecar, labels and spans from elsewhere: here they must meet."""
    for case in VECTORS["request_hash"]["cases"]:
        request_id = hexed(case, "request_id")
        assert request_hash(request_id) == case["hash"]
        if request_id:
            assert ingest.request_hash(request_id) == case["hash"]


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_unit_hash_is_refused_when_the_key_has_the_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes, must have 32"):
        unit_hash(b"k" * length, b"u")
