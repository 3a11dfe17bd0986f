"""Clients of other makers are served on the Unix socket: grpc-go's (grpcurl, ghz), nghttp2's."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.json_format import MessageToJson

from tests.conformance.frames import message
from tests.conformance.servers import HERE, ROOT, TOOLS, Server
from tests.integration.extproc import ACCESS_LOGS, CHECK, PROCESS, entry_of, request_of
from turnout.contract import HEADER_VARIANT

PROTO: Final = ("ext_proc.proto", "access_log.proto", "health.proto")
IMPORTS: Final = (HERE / "protos", ROOT / "proto")
TIMEOUT_S: Final = 60.0
CALLS: Final = 400
NAMES: Final = {  # of methods, as these tools want them, and their description
    PROCESS: ("ext_proc.proto", PROCESS.removeprefix("/")),
    ACCESS_LOGS: ("access_log.proto", ACCESS_LOGS.removeprefix("/")),
    CHECK: ("health.proto", CHECK.removeprefix("/")),
}
REQUEST: Final = {
    "requestHeaders": {
        "headers": {
            "headers": [
                {"key": one.key, "rawValue": base64.b64encode(one.raw_value).decode()}
                for one in request_of("u1").request_headers.headers.headers
            ]
        }
    }
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("wire") as one:
        yield one
        assert one.alive, one.output()
        assert one.output() == ""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def grpcurl(server: Server, method: str, given: str) -> list[dict[str, Any]]:
    """All answers of one call."""
    proto, name = NAMES[method]
    where = [part for path in IMPORTS for part in ("-import-path", path)]
    text = run(
        *(TOOLS / "bin" / "grpcurl", "-plaintext", *where, "-proto", proto),
        *("-d", given, f"unix://{server.address.path}", name),
    )
    answers, decoder, at = [], json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        answer, at = decoder.raw_decode(text, at)
        answers.append(answer)
        at += len(text[at:]) - len(text[at:].lstrip())
    return answers


def ghz(server: Server, method: str, given: object, *more: str) -> dict[str, Any]:
    """The report of CALLS calls."""
    proto, name = NAMES[method]
    report: dict[str, Any] = json.loads(
        run(
            *(TOOLS / "bin" / "ghz", "--insecure", "--format", "json"),
            *("--proto", IMPORTS[0] / proto, "--import-paths", ",".join(map(str, IMPORTS))),
            *("--call", name.replace("/", "."), "--data", json.dumps(given)),
            *("--total", str(CALLS), "--concurrency", "20", "--connections", "4", *more),
            f"unix://{server.address.path}",
        )
    )
    return report


def test_grpcurl_is_stamped_when_it_asks(server: Server) -> None:
    (answer,) = grpcurl(server, PROCESS, json.dumps(REQUEST))
    mutation = answer["requestHeaders"]["response"]["headerMutation"]
    assert HEADER_VARIANT in [one["header"]["key"] for one in mutation["setHeaders"]]


def test_grpcurl_hears_serving_when_it_checks(server: Server) -> None:
    assert grpcurl(server, CHECK, "{}") == [{"status": "SERVING"}]


def test_grpcurl_may_log_when_it_streams(server: Server) -> None:
    entry = MessageToJson(entry_of("fraud-v2;1;v2;0;0123456789abcdef"))
    assert grpcurl(server, ACCESS_LOGS, entry * 3) == [{}]


@pytest.mark.parametrize(
    ("method", "given", "more"),
    [
        (CHECK, {}, ()),
        (PROCESS, [REQUEST], ()),
        (ACCESS_LOGS, [{"identifier": {"logName": "turnout"}}] * 5, ()),
        (PROCESS, [REQUEST], ("--rps", "2000")),
    ],
)
def test_ghz_is_served_whenever_it_calls(
    server: Server, method: str, given: object, more: tuple[str, ...]
) -> None:
    report = ghz(server, method, given, *more)
    assert report["statusCodeDistribution"] == {"OK": CALLS}, report.get("errorDistribution")


def h2load(server: Server, path: str, body: bytes, directory: Path, *more: str) -> tuple[int, ...]:
    """How many requests were made, and how many of each fate: done, succeeded, failed, errored."""
    file = directory / "body"
    file.write_bytes(body)
    text = run(
        *("h2load", "-B", f"unix:{server.address.path}", "-n", str(CALLS), *more),
        *("-H", "content-type: application/grpc", "-H", "te: trailers", "-d", file),
        f"http://localhost{path}",
    )
    found = re.search(
        r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, "
        r"(\d+) errored",
        text,
    )
    assert found, text
    assert f"status codes: {CALLS} 2xx" in text, text
    return tuple(map(int, found.groups()))


@pytest.mark.parametrize("path", [PROCESS, CHECK])
@pytest.mark.parametrize(
    "more",
    [
        ("-c", "1", "-m", "1"),
        ("-c", "4", "-m", "100"),
        # Windows of 2^10-1 and header tables of its own.
        ("-c", "2", "-m", "10", "-w", "10", "-W", "16"),
        ("-c", "2", "-m", "10", "--header-table-size", "0"),
        ("-c", "2", "-m", "10", "--encoder-header-table-size", "8192"),
    ],
)
def test_h2load_is_served_whatever_its_settings(
    server: Server, path: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    body = request_of("u1").SerializeToString() if path == PROCESS else b""
    assert h2load(server, path, message(body), tmp_path, *more) == (CALLS, CALLS, CALLS, 0, 0)
