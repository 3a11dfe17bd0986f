"""Messages under fire: ext_proc requests, access logs, tokens, and what of them must hold.

Owns the mutator of bytes and the invariants: no error but the documented, and the same meaning
as something slower - the oracle, or the long way of folding - wherever that has an opinion.
"""

from __future__ import annotations

from random import Random
from typing import Final

from google.protobuf.message import DecodeError

from sidecar.accesslog import MalformedMessage, parse_message
from sidecar.fold import Fold
from sidecar.logfold import fold_message
from sidecar.plan import Plan
from sidecar.processor import MalformedRequest
from sidecar.tokens import HopMarks, TokenVerifier
from tests.differential import oracle, values
from tests.differential.generate import make_world
from tests.differential.oracle import World
from tests.differential.subject import meaning_of, plan_of, process_in
from tests.differential.traffic import make_request
from turnout.contract import ACCESS_LOG_SERVED, ACCESS_LOG_SHADOW
from turnout.envoy.access_log_pb2 import StreamAccessLogsMessage
from turnout.envoy.ext_proc_pb2 import ProcessingRequest

KEY: Final = bytes(range(32))
NOW_S: Final = 1_760_000_000.0
INTERESTING: Final = (
    b"\0", b"\xff", b";", b".", b",", b"=", b"%", b"\x80", b"\x7f", b"\r\n", b"9" * 20, b"-1",
    b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", "\u0661".encode(), b"x-turnout", b"\x0a\x00",
)  # fmt: skip


def mutated(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """A few mutations of bytes; some take a part of another message."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        kind = random.randrange(7)
        place = random.randrange(len(out) + 1)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << random.randrange(8)
        elif kind == 1 and out:
            out[place % len(out)] = random.randrange(256)
        elif kind == 2:
            del out[place : place + random.randint(1, 9)]
        elif kind == 3:
            out[place:place] = random.choice(INTERESTING)
        elif kind == 4:
            out[place:place] = out[place : place + random.randint(1, 30)]
        elif kind == 5:
            at = random.randrange(len(other) + 1)
            out[place : place + random.randint(0, 9)] = other[at : at + random.randint(1, 40)]
        else:
            del out[place:]
    return bytes(out)


# -- Requests --------------------------------------------------------------------------------------


class Asked:
    """A world and its plan, asked any bytes."""

    def __init__(self, random: Random) -> None:
        """A generated world."""
        self.world: World = make_world(random)
        self.plan: Plan = plan_of(self.world)

    def request(self, random: Random) -> bytes:
        """A request to begin with; every other has a header's value mutated, and still decodes."""
        message = make_request(random, self.world)
        headers = message.request_headers.headers.headers
        if headers and random.random() < 0.5:
            header = random.choice(headers)
            header.raw_value = mutated(random, header.raw_value, random.choice(headers).raw_value)
        return message.SerializeToString()

    def ask(self, data: bytes) -> bool:
        """Answer any bytes; whether they were a request.

        Raises:
            AssertionError: The answer is not the oracle's, or there is one where none can be.
        """
        try:
            message = ProcessingRequest.FromString(data)
        except DecodeError:
            message = ProcessingRequest()
        try:
            answer = process_in(self.world, self.plan, data)
        except MalformedRequest:
            assert not message.HasField("request_headers"), "a request was refused"
            return False
        assert message.HasField("request_headers"), "an answer to what is no request"
        got = meaning_of(self.world, answer)
        if any(b"\0" in header.raw_value for header in message.request_headers.headers.headers):
            return True  # HTTP has no such value (RFC 9110 section 5.5), and NUL separates ours
        wanted = oracle.answer(self.world, message)
        assert got == wanted, f"oracle {wanted}\nsidecar {got}\n{message}"
        return True


# -- Tokens ----------------------------------------------------------------------------------------


def check_token(verifier: TokenVerifier, token: bytes, tenant: str) -> bool:
    """Whether a token is believed; by the sidecar and by the oracle alike.

    Raises:
        AssertionError: They do not agree.
    """
    found = verifier.verify(token, NOW_S)
    wanted = values.force_token(token, key=KEY, tenant=tenant, now_s=NOW_S)
    got = None if found is None else (found.experiment, found.variant, found.unit)
    assert got == wanted, f"{token!r}: oracle {wanted}, sidecar {got}"
    return found is not None


def check_mark(marks: HopMarks, mark: bytes, request_id: bytes, tenant: str) -> bool:
    """Whether a hop mark is good; by the sidecar and by the oracle alike.

    Raises:
        AssertionError: They do not agree.
    """
    got = marks.is_good(mark, request_id, NOW_S)
    wanted = values.is_hop(mark, key=KEY, tenant=tenant, request_id=request_id, now_s=NOW_S)
    assert got == wanted, f"{mark!r}: oracle {wanted}, sidecar {got}"
    return got


# -- Access logs -----------------------------------------------------------------------------------


def log_message(random: Random) -> bytes:
    """An access log message, as Envoy sends it or a little odd."""
    message = StreamAccessLogsMessage()
    if random.random() < 0.7:
        names = (ACCESS_LOG_SERVED, ACCESS_LOG_SERVED, ACCESS_LOG_SHADOW, "odd")
        message.identifier.log_name = random.choice(names)
    for _ in range(random.randint(0, 6)):
        entry = message.http_logs.log_entry.add()
        common, request, response = entry.common_properties, entry.request, entry.response
        common.start_time.FromMilliseconds(random.choice((1_760_000_000_000, 1, 2**46)))
        if random.random() < 0.9:
            nanos = random.choice((0, 1, 1_000_000, 250_000_000, 10**10))
            common.time_to_last_downstream_tx_byte.FromNanoseconds(nanos)
        common.duration.FromNanoseconds(random.choice((0, 5_000_000)))
        if random.random() < 0.15:
            common.response_flags.no_healthy_upstream = True
        if random.random() < 0.1:
            common.response_flags.downstream_connection_termination = True
        common.route_name = random.choice(("turnout/fraud/stamped", "turnout/fraud/baseline", "x"))
        if random.random() < 0.3:
            common.custom_tags["c"] = random.choice(("0", "4", "14", "x", ""))
        request.request_id = random.choice(("r-1", "r-2", ""))
        stamps = ("e;1;v2;0;00000000000000ff", "e;1;control;0;0000000000000001", "", "e;1;v2;0;zz")
        stamp = random.choice(stamps)
        if random.random() < 0.3:
            stamp += "," + random.choice(("f;2;v3;0;00000000000000aa;f", "g;9;x;0;" + "b" * 16, ""))
        request.request_headers["x-turnout"] = stamp
        if random.random() < 0.2:
            request.request_headers["x-turnout-shadow-of"] = random.choice(("e;1;v2", "e;x;v2", ""))
        response.response_code.value = random.choice((200, 200, 404, 503, 0))
        if random.random() < 0.2:
            response.response_trailers["grpc-status"] = random.choice(("0", "14", "x"))
    return message.SerializeToString()


def check_log(data: bytes) -> bool:
    """Fold any bytes; whether they were a message.

    Raises:
        AssertionError: The short way counts otherwise than the long way.
    """
    quick, slow = Fold(), Fold()
    try:
        name, entries = parse_message(data)
    except MalformedMessage:
        entries = None
    try:
        _, steps = fold_message(quick, data, "")
        for _ in steps:
            pass
    except MalformedMessage:
        assert entries is None, "a message was refused"
        return False
    if entries is None:
        return False  # the lean message decodes what the whole one does not
    for entry in entries:
        slow.add(entry, shadow=name == ACCESS_LOG_SHADOW)
    left, right = quick.take(), slow.take()
    assert left == right, f"short way {left}\nlong way {right}"
    return True
