"""What folding one access-log entry costs: `python -m tests.benchmarks.folding [--json FILE]`.

Entries are as Envoy wrote them in a run with the product's bootstrap, 500 bytes each, all of
different requests; `slow` reads each of them whole, as every entry was once. `sent up` is what
follows for each: a worker's encoding, the supervisor's decoding and merge, and its encoding. A
figure is the least of the rounds, as what disturbs a measurement only ever adds to it; the two ways
take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.accesslog import read_message
from sidecar.deltas import decode, encode
from sidecar.fold import Fold
from sidecar.logfold import fold_message
from sidecar.plan import EpochFacts
from turnout.contract import ACCESS_LOG_SERVED

ENTRIES: Final = 10_000
ENTRIES_A_MESSAGE: Final = 500
ROUNDS: Final = 9
GOAL_US: Final = 5.0
_EPOCHS: Final = {(f"layer-{n}", 1): EpochFacts(0, 200.0, frozenset({1, 2})) for n in range(4)}
# Envoy's entry in two parts: before and after the request's own. The addresses, times and sizes are
# in fields that nobody reads.
_COMMON: Final = bytes.fromhex(
    "2a0b088ff98bd80610f0d1e964520510a79dfc06620510d6c0fc067a167475726e6f75742e62656e63682e63"
    "303963636632349a01157475726e6f75742f62656e63682f7374616d706564b201060a0163120130ba010510"
    "cdcefc06c0010112110a0f12093132372e302e302e3118b8d2031a110a0f12093132372e302e302e3118f7ac"
    "03320410fcaa023a05108dbbb306420510fbbbb3064a0510cbd7fa065a0510dddffb066a110a0f1209313237"
    "2e302e302e311897980372110a0f12093132372e302e302e3118a6d003a201110a0f12093132372e302e302e"
    "3118b8d203d2012432653332366333312d353065392d343937362d393261632d336366343433353135343737"
    "e801bd01f00142f801f901800277880206"
)
_RESPONSE: Final = bytes.fromhex(
    "221d0a0308c801320c7669615f757073747265616d1099011803385d40a7011002"
)


class Figures(NamedTuple):
    """Microseconds per entry."""

    name: str
    fold_us: float
    slow_us: float
    sent_up_us: float


def _field(number: int, value: bytes) -> bytes:
    tag = _varint(number << 3 | 2)
    return tag + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _entry(number: int, layers: int) -> bytes:
    request_id = f"{number * 2_654_435_761 % 2**32:08x}-1111-4222-8333-{number:012x}".encode()
    arm = "second" if number % 2 else "first"
    unit = f"{number % 4096 * 0x9E3779B97F4A7C15 % 2**64:016x}"
    stamp = ",".join(f"layer-{n};1;{arm};0;{unit}" for n in range(layers)).encode()
    headers = ((b"x-request-id", request_id), (b"x-turnout", stamp))
    request = _field(3, b"127.0.0.1:54903") + _field(5, b"/bench") + _field(9, request_id)
    request += b"".join(_field(13, _field(1, key) + _field(2, value)) for key, value in headers)
    return _field(1, _COMMON) + _field(3, request + b"\x08\x01X\xec\x01p\xe2\x01") + _RESPONSE


def messages(layers: int) -> list[bytes]:
    """All entries, in messages as Envoy sends them under load."""
    entries = [_field(1, _entry(number, layers)) for number in range(ENTRIES)]
    return [
        _field(2, b"".join(entries[start : start + ENTRIES_A_MESSAGE]))
        for start in range(0, ENTRIES, ENTRIES_A_MESSAGE)
    ]


def _quickly(fold: Fold, found: Sequence[bytes]) -> None:
    for message in found:
        for _ in fold_message(fold, message, ACCESS_LOG_SERVED)[1]:
            pass


def _slowly(fold: Fold, found: Sequence[bytes]) -> None:
    for message in found:
        for entry in read_message(message)[1]:
            fold.add(entry, shadow=False)


def _timed(way: Callable[[Fold, Sequence[bytes]], None], found: Sequence[bytes]) -> float:
    fold = Fold()
    fold.know(_EPOCHS)
    start = time.perf_counter()
    way(fold, found)
    taken = time.perf_counter() - start
    assert sum(counts.requests for counts in fold.take().counts.values()) % ENTRIES == 0
    return taken


def _sent_up(found: Sequence[bytes]) -> float:
    fold, merged = Fold(), Fold()
    _quickly(fold, found)
    delta = fold.take()
    start = time.perf_counter()
    merged.merge(decode(encode(delta)))
    encode(merged.take())
    return time.perf_counter() - start


def measure(rounds: int) -> list[Figures]:
    """One assignment a stamp, and four."""
    figures = []
    for name, layers in (("1 assignment", 1), ("4 assignments", 4)):
        found = messages(layers)
        taken = [
            (_timed(_quickly, found), _timed(_slowly, found), _sent_up(found))
            for _ in range(rounds)
        ]
        least = [min(column) / ENTRIES * 1e6 for column in zip(*taken, strict=True)]
        figures.append(Figures(name, *least))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    figures = measure(options.rounds)
    for one in figures:
        print(
            f"{one.name}: {one.fold_us:.2f} us an entry ({one.slow_us:.2f} the slow way), "
            f"{one.sent_up_us:.2f} us sent up"
        )
    reached = "reached" if figures[0].fold_us <= GOAL_US else "NOT reached"
    print(f"goal: {figures[0].name} <= {GOAL_US:g} us: {reached}")
    if options.json is not None:
        options.json.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
