"""Peers that are no Turnout control plane: said in one line, with a remedy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from tests.control.clirunning import Done, turnout

COMMANDS = ("get experiments", "status x", "wait x --for=ended", "start x", "sidecars")


class Quiet(BaseHTTPRequestHandler):
    """Keeps its log to itself: standard error is looked at."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def other_grpc() -> Iterator[str]:
    """A gRPC server of somebody else."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def web_server() -> Iterator[str]:
    """Something that speaks HTTP/1.1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def one_line(done: Done) -> str:
    """What was said, which must be one line and no traceback."""
    assert done.out == ""
    (line,) = done.err.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_stranger_is_named_when_it_speaks_grpc_and_knows_no_turnout(
    command: str, other_grpc: str
) -> None:
    done = turnout(*command.split(), "--control", other_grpc)
    assert done.code == 7
    assert f"no Turnout control plane at {other_grpc}, or an older one" in one_line(done)


def test_offline_way_is_named_when_explain_meets_a_stranger(other_grpc: str) -> None:
    done = turnout("explain", "x", "--control", other_grpc)
    assert done.code == 7
    assert one_line(done).endswith("or an older one; say --snapshot FILE")


@pytest.mark.parametrize("command", [*COMMANDS, "explain x"])
def test_remedy_is_named_when_the_peer_speaks_no_grpc(command: str, web_server: str) -> None:
    done = turnout(*command.split(), "--control", web_server)
    assert done.code == 6
    assert one_line(done).startswith(f"control plane at {web_server}: ")
    assert "Say --control HOST:PORT" in done.err
