"""The wire micro-benchmark measures what it says: whole answers, on the fast path."""

from __future__ import annotations

from tests.benchmarks.wire import ANSWER, REQUESTS, cost_us, learned, reads_of


def test_benchmark_gets_an_answer_for_every_request() -> None:
    connection, block, message = learned()
    sent = b""
    for read in reads_of(block, message, 8, 100_001):
        connection.receive(read, 0.0)
        sent += connection.data_to_send()
    assert sent.count(ANSWER) == REQUESTS
    assert cost_us(8, rounds=1) > 0
