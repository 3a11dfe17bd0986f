"""A client in a namespace of its own: asks, and prints what it was answered as JSON.

    python ask.py HOST PORT < [{"path": ..., "headers": {...}}, ...]

One connection for each header set would be slow: each of a few connections asks its share in turn.
"""

from __future__ import annotations

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CONNECTIONS = 8
TIMEOUT_S = 20


def ask(host: str, port: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask one after the other on one connection."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    answers = []
    for request in requests:
        connection.request("GET", request["path"], headers=request["headers"])
        response = connection.getresponse()
        body = response.read()
        answers.append(
            {
                "status": response.status,
                "headers": {name.lower(): value for name, value in response.getheaders()},
                "body": json.loads(body) if response.status == 200 else body.decode(),
            }
        )
    connection.close()
    return answers


if __name__ == "__main__":
    host, port = sys.argv[1], int(sys.argv[2])
    asked = json.load(sys.stdin)
    found: list[Any] = [None] * len(asked)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        shares = [range(i, len(asked), CONNECTIONS) for i in range(CONNECTIONS)]
        results = pool.map(lambda share: ask(host, port, [asked[i] for i in share]), shares)
        for share, answers in zip(shares, results, strict=True):
            for index, answer in zip(share, answers, strict=True):
                found[index] = answer
    json.dump(found, sys.stdout)
