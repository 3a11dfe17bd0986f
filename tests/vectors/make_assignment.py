"""Makes assignment.json: `python -m tests.vectors.make_assignment` rewrites it.

Owns an independent writing of who gets what: buckets, variants, layers, holdout, stamps.
Looks every range at by plain loops, and imports neither the sidecar nor the control plane.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import xxhash

ASSIGNMENT: Final = Path(__file__).parent / "assignment.json"
KEY: Final = bytes(range(32))
BUCKETS: Final = 1_000_000
PROVENANCE: Final = (
    "made by tests/vectors/make_assignment.py from the words of the contract, with the xxhash and "
    "hashlib that hashing.json proves; checked by tests/vectors/checker in Go"
)
UNITS: Final = (
    *(b"user-%d" % number for number in range(24)),
    *(b"u", b"0", b"\xff\xfe\xc3(", b"nul\0inside", b" blank ", "\u00dcnit".encode(), b"x" * 256),
)
Ranges = list[list[int]]


def bucket(salt: str, unit: bytes) -> int:
    """xxh3_64(salt + NUL + unit) mod 1,000,000."""
    return int(xxhash.xxh3_64_intdigest(salt.encode() + b"\0" + unit) % BUCKETS)


def within(ranges: Ranges, place: int) -> bool:
    """Whether a bucket is in one of the ranges."""
    return any(start <= place < end for start, end in ranges)


def variant_of(variants: dict[str, Ranges], place: int) -> str:
    """The variant that owns a bucket."""
    [owner] = [name for name, ranges in variants.items() if within(ranges, place)]
    return owner


def variants_world(name: str, salt: str, variants: dict[str, Ranges]) -> dict[str, Any]:
    """Who gets which variant."""
    cases = []
    for unit in UNITS:
        place = bucket(salt, unit)
        owner = variant_of(variants, place)
        cases.append({"unit": unit.hex(), "bucket": place, "variant": owner})
    return {"name": name, "salt": salt, "variants": variants, "cases": cases}


def worlds() -> list[dict[str, Any]]:
    """Splits: halves, none, all, scattered, and with edges at a unit's own bucket."""
    place = bucket("edge", b"user-7")
    return [
        variants_world("halves", "s", {"control": [[500_000, BUCKETS]], "v2": [[0, 500_000]]}),
        variants_world("nobody", "s", {"control": [[0, BUCKETS]], "v2": []}),
        variants_world("everybody", "s", {"control": [], "v2": [[0, BUCKETS]]}),
        variants_world(
            "scattered",
            "\u00a7 salt",
            {
                "control": [[100_000, 300_000], [900_000, BUCKETS]],
                "v2": [[0, 100_000], [300_000, 400_000]],
                "v3": [[400_000, 900_000]],
            },
        ),
        variants_world(
            "one_bucket",
            "edge",
            {"control": [[0, place], [place + 1, BUCKETS]], "v2": [[place, place + 1]]},
        ),
        variants_world("edge_below", "edge", {"control": [[place, BUCKETS]], "v2": [[0, place]]}),
    ]


def layer() -> dict[str, Any]:
    """Experiments of one layer, and units that fall in none of them."""
    experiments: dict[str, Ranges] = {
        "first": [[0, 250_000]],
        "second": [[250_000, 300_000], [600_000, 800_000]],
        "third": [[300_000, 600_000]],
    }
    cases = []
    for unit in UNITS:
        place = bucket("layer-salt", unit)
        owners = [name for name, ranges in experiments.items() if within(ranges, place)]
        cases.append({"unit": unit.hex(), "bucket": place, "experiment": "".join(owners)})
    return {"salt": "layer-salt", "experiments": experiments, "cases": cases}


def holdout() -> dict[str, Any]:
    """Units that no experiment may have."""
    ranges = [[0, 50_000], [400_000, 450_000]]
    cases = [
        {
            "unit": unit.hex(),
            "bucket": bucket("hold", unit),
            "held": within(ranges, bucket("hold", unit)),
        }
        for unit in UNITS
    ]
    return {"salt": "hold", "ranges": ranges, "cases": cases}


def percentages() -> list[dict[str, Any]]:
    """Shares of the units by another salt: the bucket is below `buckets`."""
    limits = (0, 1, 250_000, bucket("share", b"user-3"), bucket("share", b"user-3") + 1, BUCKETS)
    return [
        {
            "salt": "share",
            "buckets": limit,
            "cases": [{"unit": unit.hex(), "in": bucket("share", unit) < limit} for unit in UNITS],
        }
        for limit in limits
    ]


def experiment(name: str, epoch: int, layer_name: str, **more: Any) -> dict[str, Any]:
    """One experiment of the stamps' world."""
    return {
        "name": name,
        "epoch": epoch,
        "layer": layer_name,
        "layer_salt": f"{layer_name}-salt",
        "layer_ranges": [],
        "holdout_salt": "hold",
        "holdout_ranges": [],
        "salt": f"{name}-salt",
        "variants": {"control": [[500_000, BUCKETS]], "v2": [[0, 500_000]]},
    } | more


def stamps() -> dict[str, Any]:
    """Whole stamps on one target: `models` first, then the layers by name."""
    experiments = [
        experiment("alpha", 3, "zeta"),
        experiment("beta", 1, "models", layer_ranges=[[0, 400_000]]),
        experiment(
            "delta",
            18_446_744_073_709_551_615,
            "models",
            layer_ranges=[[400_000, 900_000]],
            holdout_ranges=[[0, 200_000]],
            variants={
                "control": [[300_000, BUCKETS]],
                "v2": [[0, 100_000]],
                "v3": [[100_000, 300_000]],
            },
        ),
        experiment("omega", 7, "eta", holdout_ranges=[[0, 200_000]]),
    ]
    cases = []
    for unit in UNITS:
        entries = []
        digest = hashlib.blake2b(unit, key=KEY, digest_size=8).digest()
        digits = f"{int.from_bytes(digest, 'little'):016x}"
        for one in sorted(experiments, key=lambda e: (e["layer"] != "models", e["layer"])):
            if within(one["holdout_ranges"], bucket(one["holdout_salt"], unit)):
                continue
            if one["layer_ranges"] and not within(
                one["layer_ranges"], bucket(one["layer_salt"], unit)
            ):
                continue
            variant = variant_of(one["variants"], bucket(one["salt"], unit))
            entries.append(f"{one['name']};{one['epoch']};{variant};0;{digits}")
        cases.append({"unit": unit.hex(), "stamp": ",".join(entries)})
    return {"key": KEY.hex(), "experiments": experiments, "cases": cases}


def made() -> dict[str, Any]:
    """The whole file."""
    said = {"provenance": PROVENANCE}
    return {
        "encoding": "key and unit are hex of the bytes; salts are text, as UTF-8; ranges are "
        "[start, end) of 1,000,000 buckets",
        "variants": said | {"worlds": worlds()},
        "layer": said | layer(),
        "holdout": said | holdout(),
        "percentage": said | {"worlds": percentages()},
        "stamps": said | stamps(),
    }


def file_text() -> str:
    """The file's text."""
    return json.dumps(made(), indent=1) + "\n"


if __name__ == "__main__":
    ASSIGNMENT.write_text(file_text())
