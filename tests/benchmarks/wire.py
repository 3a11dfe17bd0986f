"""What the HTTP/2 and gRPC layer costs of a request: `python -m tests.benchmarks.wire`.

Owns the micro-benchmark of `sidecar.wire` in one process, without sockets: requests as Envoy 1.40
writes them, and the resets of the requests before, so many in one read; the handler does nothing.
Refuses to say what a request costs in all: `dataplane` does.

The best of many short runs is told: what others do on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

from sidecar.wire import frames
from sidecar.wire.connection import Connection
from sidecar.wire.frames import END_HEADERS, ErrorCode, FrameType

CAPTURE: Final = Path(__file__).parents[1] / "sidecar" / "wire" / "envoy_1_40.json"
BATCHES: Final = (1, 4, 8, 32)
REQUESTS: Final = 2_000
ROUNDS: Final = 40
# As large as one with three headers.
ANSWER: Final = b"x" * 140
_DATA_AT: Final = 9


def learned() -> tuple[Connection, bytes, bytes]:
    """A connection that has seen Envoy's first requests; one request's block and message."""
    connection = Connection(
        lambda _: ANSWER, lambda: True, lambda *_: None, strict=False, now_s=0.0
    )
    reads = [bytes.fromhex(read) for read in json.loads(CAPTURE.read_text())["process"]]
    for read in reads:
        connection.receive(read, 0.0)
    connection.data_to_send()
    # Room for all answers of a run.
    connection.receive(frames.window_update(0, 2**30), 0.0)
    block, message = _last_request(b"".join(reads)[len(frames.PREFACE) :])
    return connection, block, message


def _last_request(stream: bytes) -> tuple[bytes, bytes]:
    block = message = b""
    while stream:
        length = int.from_bytes(stream[:3], "big")
        payload = stream[_DATA_AT : _DATA_AT + length]
        if stream[3] == FrameType.HEADERS:
            block = payload
        elif stream[3] == FrameType.DATA:
            message = payload
        stream = stream[_DATA_AT + length :]
    return block, message


def reads_of(block: bytes, message: bytes, batch: int, first_id: int) -> list[bytes]:
    """REQUESTS requests, `batch` in a read, each read with the resets of the one before."""
    reads: list[bytes] = []
    before: list[int] = []
    for start in range(first_id, first_id + 2 * REQUESTS, 2 * batch):
        ids = list(range(start, start + 2 * batch, 2))
        parts = [frames.rst_stream(i, ErrorCode.INTERNAL_ERROR) for i in before]
        for i in ids:
            parts.append(frames.frame(FrameType.HEADERS, END_HEADERS, i, block))
            parts.append(frames.frame(FrameType.DATA, 0, i, message))
        reads.append(b"".join(parts))
        before = ids
    return reads


def cost_us(batch: int, rounds: int = ROUNDS) -> float:
    """CPU microseconds per request, at best."""
    best_s = float("inf")
    for _ in range(rounds):
        connection, block, message = learned()
        reads = reads_of(block, message, batch, 100_001)
        began_s = time.process_time()
        for read in reads:
            connection.receive(read, 0.0)
            connection.data_to_send()
        best_s = min(best_s, time.process_time() - began_s)
        assert not connection.closed, "the benchmark is not what it seems"
    return best_s / (len(reads) * batch) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print("requests in a read   us per request")
    for batch in BATCHES:
        print(f"{batch:18}   {cost_us(batch, options.rounds):14.2f}")


if __name__ == "__main__":
    main()
