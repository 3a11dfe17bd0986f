"""All of h2spec's cases, the strict ones too, against a worker on a TCP port."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.conformance.servers import TOOLS, Server
from tests.integration.waiting import LOOPBACK

H2SPEC: Final = TOOLS / "bin" / "h2spec"
CASES: Final = 146
PATH: Final = "/healthz"
TIMEOUT_S: Final = 180.0
# What it waits for an answer, in seconds; also how long it looks for a close.
WAIT_S: Final = 2
_TOTAL: Final = re.compile(r"^(\d+) tests?, (\d+) passed, (\d+) skipped, (\d+) failed$", re.M)


class Report(NamedTuple):
    """What h2spec says at its end."""

    tests: int
    passed: int
    skipped: int
    failed: int
    text: str


def h2spec(port: int) -> Report:
    where = ["-h", LOOPBACK, "-p", str(port), "-P", PATH]
    command = [str(H2SPEC), *where, "-o", str(WAIT_S), "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    found = _TOTAL.search(done.stdout)
    assert found, done.stdout + done.stderr
    _, _, failures = done.stdout.partition("Failures:")
    tests, passed, skipped, failed = map(int, found.groups())
    return Report(tests, passed, skipped, failed, failures)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("wire", tcp=True) as one:
        yield one


@pytest.mark.parametrize("run", [1, 2, 3])
def test_server_passes_all_of_h2spec_when_run_again(server: Server, run: int) -> None:
    report = h2spec(server.address.port)
    assert report[:4] == (CASES, CASES, 0, 0), report.text
    assert server.alive, server.output()
    assert server.output() == ""
