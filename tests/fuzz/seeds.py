"""Makes the corpus: `python -m tests.fuzz.seeds` writes what is not there yet.

Owns what is interesting by name. A crash that fuzzing finds becomes a file of its own beside these,
named for what it was; nothing here is ever rewritten.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

from tests.differential.generate import make_world
from tests.differential.traffic import make_request
from tests.fuzz.judge import PREFACE
from tests.fuzz.messages import log_message
from tests.fuzz.sessions import (
    CHECK,
    EXT_PROC,
    LOGS,
    WATCH,
    encoded,
    frame,
    prefixed,
    request_fields,
)
from tests.fuzz.sessions import session as any_session
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage

CORPUS: Final = Path(__file__).parent / "corpus"
SETTINGS: Final = frame(4, 0, 0)


def call(stream_id: int, path: bytes, *messages: bytes, end: int = 1) -> bytes:
    """HEADERS and one DATA frame with all messages."""
    head = frame(1, 4, stream_id, encoded(request_fields(path)))
    return head + frame(0, end, stream_id, b"".join(map(prefixed, messages)))


def sessions() -> dict[str, bytes]:
    """Client bytes behind the preface."""
    request = b"a request"
    block = encoded(request_fields(EXT_PROC))
    return {
        "one_call": SETTINGS + call(1, EXT_PROC, request),
        "calls_that_are_reset_when_answered": SETTINGS
        + b"".join(call(i, EXT_PROC, request, end=0) + frame(3, 0, i, bytes(4)) for i in (1, 3, 5)),
        "access_logs": SETTINGS + call(1, LOGS, b"log one", b"log two", end=0) + frame(0, 1, 1),
        "health_check_and_watch": SETTINGS + call(1, CHECK, b"") + call(3, WATCH, b"", end=0),
        "head_in_three_frames": SETTINGS
        + frame(1, 0, 1, block[:9])
        + frame(9, 0, 1, block[9:30])
        + frame(9, 4, 1, block[30:])
        + frame(0, 1, 1, prefixed(request)),
        "padded_data": SETTINGS
        + frame(1, 4, 1, block)
        + frame(0, 9, 1, b"\x05" + prefixed(request) + bytes(5)),
        "message_byte_by_byte": SETTINGS
        + frame(1, 4, 1, block)
        + b"".join(frame(0, 0, 1, bytes([octet])) for octet in prefixed(request)),
        "window_of_nothing_then_something": SETTINGS
        + frame(4, 0, 0, b"\0\4\0\0\0\0")
        + call(1, EXT_PROC, request)
        + frame(8, 0, 1, b"\0\0\0\7")
        + frame(4, 0, 0, b"\0\4\0\0\1\0"),
        # Found: the second message was answered too while the first answer waited for the window.
        "two_messages_while_an_answer_waits": frame(4, 0, 0, b"\0\4\0\0\0\1")
        + call(3, EXT_PROC, request, request, end=0),
        # Found: a stream that was never opened was reset, twice, and then served.
        "priority_on_itself_while_idle": SETTINGS
        + frame(2, 0, 1, b"\0\0\0\1\0") * 2
        + call(1, EXT_PROC, request),
        # Found: when the first of these failed, the second was given a window behind the GOAWAY.
        "large_logs_that_wait_when_the_connection_fails": SETTINGS
        + b"".join(
            frame(1, 4, i, encoded(request_fields(LOGS))) + frame(0, 0, i, b"\0\0\x40\0\0")
            for i in (1, 3)
        )
        + frame(3, 0, 1, b"\0"),
        # Found: a reset of a stream that only a server could open.
        "priority_of_one_byte_on_an_even_stream": SETTINGS + frame(2, 0, 2, b"\0"),
    }


def logs() -> dict[str, bytes]:
    """Access log messages."""
    random = Random(4)
    found = {f"message_{number}": log_message(random) for number in range(4)}
    shadow = StreamAccessLogsMessage.FromString(found["message_3"])
    shadow.identifier.log_name = "turnout_shadow"
    # Found: the lean message forgot the first of two identifiers, which protobuf merges.
    found["identifier_twice"] = shadow.SerializeToString() + b"\n\x03\x08\xc8\x01"
    return found


def requests() -> dict[str, bytes]:
    """ext_proc requests."""
    random = Random(5)
    world = make_world(random)
    return {
        f"request_{number}": make_request(random, world).SerializeToString() for number in range(8)
    }


def corpus() -> dict[str, dict[str, bytes]]:
    """All of it, by kind."""
    random = Random(6)
    wire = {name: PREFACE + data for name, data in sessions().items()}
    wire |= {f"session_{number}": any_session(random) for number in range(6)}
    return {"wire": wire, "log": logs(), "request": requests()}


def files(kind: str) -> list[Path]:
    """The committed files of a kind."""
    return sorted((CORPUS / kind).glob("*.bin"))


if __name__ == "__main__":
    for kind, named in corpus().items():
        (CORPUS / kind).mkdir(parents=True, exist_ok=True)
        for name, data in named.items():
            path = CORPUS / kind / f"{name}.bin"
            if not path.exists():
                path.write_bytes(data)
