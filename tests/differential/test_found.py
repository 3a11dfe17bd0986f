"""What generated requests once found, by name: the sidecar and the oracle, of one answer each."""

from __future__ import annotations

import pytest

from sidecar.processor import MalformedRequest
from tests.differential.oracle import Meaning, World, answer
from tests.differential.subject import meaning_of, plan_of, process_in
from tests.differential.values import base64url_text
from tests.sidecar.samples import experiment, request, snapshot, variant
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.snapshot_pb2 import Snapshot


def asked(message: Snapshot, *headers: tuple[str, bytes]) -> Meaning:
    """What both say."""
    world = World(message, bytes(range(32)), {}, None, {}, False, 1_760_000_000.0, bytes(16))
    encoded = request(*headers)
    wanted = answer(world, ProcessingRequest.FromString(encoded))
    assert meaning_of(world, process_in(world, plan_of(world), encoded)) == wanted
    return wanted


def of_claim() -> Snapshot:
    """The sample by a claim that nobody has verified."""
    message = snapshot()
    message.experiments[0].unit.Clear()
    message.experiments[0].unit.jwt_claim.claim = "sub"
    message.experiments[0].unit.jwt_claim.unverified = True
    return message


@pytest.mark.parametrize(
    "payload",
    [
        base64url_text(b'\xef\xbb\xbf{"sub":"user-1"}'),
        base64url_text('{"sub":"user-1"}'.encode("utf-16")),
        base64url_text(b'{"sub":"\\ud800"}'),
        base64url_text(b'{"sub":"a\\ud800b"}'),
        base64url_text(b'{"sub":"user-1"}')[:4] + b"!" + base64url_text(b'{"sub":"user-1"}')[4:],
        base64url_text(b'{"sub":"user-1"}') + b"===x",
    ],
    ids=["byte_order_mark", "utf_16", "surrogate", "hidden_surrogate", "foreign_letter", "padding"],
)
def test_claim_is_no_unit_when_its_token_is_odd(payload: bytes) -> None:
    token = b"Bearer e30." + payload + b".c2ln"
    assert asked(of_claim(), ("authorization", token)).outcome == "NO_UNIT"


def test_claim_is_no_unit_when_the_first_of_two_headers_is_empty() -> None:
    token = b"Bearer e30." + base64url_text(b'{"sub":"user-1"}') + b".c2ln"
    assert asked(of_claim(), ("authorization", token)).outcome == "STAMPED"
    found = asked(of_claim(), ("authorization", b""), ("authorization", token))
    assert found.outcome == "NO_UNIT"
    assert found.duplicate_unit


def test_one_session_is_begun_when_two_experiments_give_its_cookie_another_age() -> None:
    """Both enrol the new session: else a user's first request would miss one of them."""
    message = snapshot()
    other = experiment("prompt", share=500_000)
    other.layer = "prompt"
    del other.variants[:]
    other.variants.append(variant("control", (0, 500_000), control=True))
    other.variants.append(variant("v2", (500_000, 1_000_000)))
    for each in other.variants:
        each.ClearField("cluster")
        each.parameters["k"] = "v"
    message.experiments.append(other)
    for plan, seconds in zip(message.experiments, (60, 86_400), strict=True):
        plan.unit.Clear()
        plan.unit.session.max_age.FromSeconds(seconds)
    found = asked(message)
    assert found.headers is not None
    assert found.headers["x-turnout"].count(b",") == 1
    assert b"Max-Age=60;" in found.headers["x-turnout-set-cookie"]


def test_request_is_refused_when_it_is_cut_short_after_a_whole_one_that_began_alike() -> None:
    """The lengths at the beginning were remembered; the last value was then read short."""
    message = snapshot()
    world = World(message, bytes(range(32)), {}, None, {}, False, 1_760_000_000.0, bytes(16))
    plan = plan_of(world)
    whole = request(("x-user-id", b"u" * 300))
    assert process_in(world, plan, whole).outcome.name == "STAMPED"
    for missing in (1, 10, 200):
        with pytest.raises(MalformedRequest):
            process_in(world, plan, whole[:-missing])


@pytest.mark.parametrize("value", [b"1e400", b"-1e400", b"inf", b"nan", b"1_0", b" 1"])
@pytest.mark.parametrize("side", ["min", "max"])
def test_no_range_fits_when_a_value_is_no_finite_number(value: bytes, side: str) -> None:
    """A number written in digits can still be an infinity."""
    message = snapshot()
    segment = message.experiments[0].segment
    segment.header = "x-number"
    setattr(segment.range, side, 5.0)
    found = asked(message, ("x-user-id", b"u"), ("x-number", value))
    assert found.outcome == "NOT_IN_SEGMENT"


def test_target_is_what_the_first_path_says_when_pseudo_headers_are_repeated() -> None:
    """Envoy sends each of them once; whoever else does not is read as the oracle does."""
    repeated = (":path", b"/elsewhere"), (":method", b"PUT")
    found = asked(snapshot(), ("x-user-id", b"user-1"), *repeated)
    assert found.target == "fraud"
