"""One request at a time: what is stamped, what is not, and what is counted."""

from __future__ import annotations

import pytest

from sidecar.hashing import bucket, unit_hash
from sidecar.outcome import DUPLICATE_UNIT, Outcome
from sidecar.processor import MalformedRequest, process
from tests.sidecar.samples import NOW_S, ask, build, no_random, request, snapshot, stamped, variant
from turnout.envoy.ext_proc_pb2 import HeaderValueOption, ProcessingRequest, ProcessingResponse


def unit_in(low: int, high: int) -> bytes:
    """A unit of the sample experiment whose bucket is in [low, high)."""
    return next(
        unit
        for unit in (b"user-%d" % number for number in range(100_000))
        if low <= bucket(b"salt", unit) < high
    )


def test_answer_names_variant_and_cluster_when_unit_is_the_candidates() -> None:
    unit = unit_in(900_000, 1_000_000)
    answer = ask(build(snapshot(), slots={("fraud-v2", 1, "v2"): 5}), ("x-user-id", unit))
    digits = f"{unit_hash(bytes(range(32)), unit):016x}".encode()
    assert stamped(answer) == {
        "x-variant": b"v2",
        "x-turnout": b"fraud-v2;1;v2;0;" + digits,
        "x-turnout-upstream": b"turnout.fraud.v2",
    }
    assert answer[1:] == (Outcome.STAMPED, "fraud", (5,), 0)


def test_answer_is_stamped_too_when_the_unit_is_controls() -> None:
    answer = ask(build(snapshot()), ("x-user-id", unit_in(0, 900_000)))
    assert stamped(answer)["x-variant"] == b"control"
    assert stamped(answer)["x-turnout-upstream"] == b"turnout.fraud.control"
    assert answer.slots == ()


def test_answer_overwrites_and_clears_the_route_when_stamped() -> None:
    response = ask(build(snapshot()), ("x-user-id", b"u")).response
    assert response is not None
    common = ProcessingResponse.FromString(response).request_headers.response
    assert common.clear_route_cache
    for option in common.header_mutation.set_headers:
        assert option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        assert option.header.value == "", "Envoy reads raw_value only"
    assert not common.header_mutation.remove_headers


def test_parameters_are_stamped_lower_case_when_the_variant_has_some() -> None:
    message = snapshot(share=1_000_000)
    message.experiments[0].variants[1].parameters.update({"Threshold": "0.7", "a": ""})
    headers = stamped(ask(build(message), ("x-user-id", b"u")))
    assert headers["x-param-threshold"] == b"0.7"
    assert headers["x-param-a"] == b""


def test_copy_is_asked_for_when_the_bucket_is_mirrored() -> None:
    message = snapshot(share=100_000)
    message.experiments[0].shadow.variant = "v2"
    message.experiments[0].shadow.ranges.add(start=0, end=450_000)
    plan = build(message)
    headers = stamped(ask(plan, ("x-user-id", unit_in(0, 450_000))))
    assert headers["x-variant"] == b"control"
    assert headers["x-turnout-shadow"] == b"turnout.fraud.v2"
    assert headers["x-turnout-shadow-variant"] == b"fraud-v2;1;v2"
    headers = stamped(ask(plan, ("x-user-id", unit_in(450_000, 900_000))))
    assert "x-turnout-shadow" not in headers
    assert "x-turnout-shadow-variant" not in headers


def test_copy_is_not_asked_for_when_the_shadow_serves_the_unit_itself() -> None:
    message = snapshot(share=500_000)
    message.experiments[0].shadow.variant = "v2"
    message.experiments[0].shadow.ranges.add(start=0, end=1_000_000)
    plan = build(message)
    assert "x-turnout-shadow" not in stamped(ask(plan, ("x-user-id", unit_in(500_000, 999_999))))
    assert "x-turnout-shadow" in stamped(ask(plan, ("x-user-id", unit_in(0, 500_000))))


@pytest.mark.parametrize("share", [0, 1_000_000])
def test_nobody_or_everybody_is_the_candidates_when_its_share_is_none_or_all(share: int) -> None:
    plan = build(snapshot(share=share))
    variants = {
        stamped(ask(plan, ("x-user-id", b"user-%d" % n)))["x-variant"] for n in range(2_000)
    }
    assert variants == {b"v2" if share else b"control"}


def test_every_variant_serves_when_there_are_many() -> None:
    message = snapshot()
    del message.experiments[0].variants[:]
    message.experiments[0].variants.extend(
        variant(f"v{n}", (n * 250_000, (n + 1) * 250_000), control=n == 0) for n in range(4)
    )
    plan = build(message)
    units = [b"user-%d" % number for number in range(400)]
    for unit in units:
        expected = b"v%d" % (bucket(b"salt", unit) // 250_000)
        assert stamped(ask(plan, ("x-user-id", unit)))["x-variant"] == expected


# -- Units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), (("x-user-id", b""),), (("x-other", b"u"),)])
def test_request_is_not_enrolled_when_it_has_no_unit(
    headers: tuple[tuple[str, bytes], ...],
) -> None:
    answer = ask(build(snapshot()), *headers)
    assert (answer.response, answer.outcome, answer.target) == (None, Outcome.NO_UNIT, "fraud")


def test_unit_is_invalid_when_longer_than_the_limit() -> None:
    plan = build(snapshot())
    assert ask(plan, ("x-user-id", b"u" * 4096)).outcome is Outcome.STAMPED
    answer = ask(plan, ("x-user-id", b"u" * 4097))
    assert (answer.response, answer.outcome) == (None, Outcome.INVALID_UNIT)
    assert ask(plan, ("x-user-id", b"u" * 51_200)).outcome is Outcome.INVALID_UNIT


def test_unit_is_hashed_as_bytes_when_it_is_not_utf8() -> None:
    plan = build(snapshot())
    units = [b"\xff\xfe", b"\xff\xff", b"\xc3\x28", "\N{SNOWMAN}".encode()]
    stamps = {stamped(ask(plan, ("x-user-id", unit)))["x-turnout"][-16:] for unit in units}
    assert len(stamps) == len(units)


def test_first_unit_counts_when_the_header_comes_twice() -> None:
    plan = build(snapshot())
    once = ask(plan, ("x-user-id", b"first"))
    twice = ask(plan, ("x-user-id", b"first"), ("x-user-id", b"second"), ("x-user-id", b"third"))
    assert twice.response == once.response
    assert (once.flags, twice.flags) == (0, DUPLICATE_UNIT)


def test_request_has_no_unit_when_the_first_of_two_is_empty() -> None:
    answer = ask(build(snapshot()), ("x-user-id", b""), ("x-user-id", b"second"))
    assert (answer.outcome, answer.flags) == (Outcome.NO_UNIT, DUPLICATE_UNIT)


@pytest.mark.parametrize(
    ("cookies", "outcome", "duplicate"),
    [
        ((b"uid=u1",), Outcome.STAMPED, False),
        ((b"a=b; uid=u1; c=d",), Outcome.STAMPED, False),
        ((b"a=b", b"uid=u1"), Outcome.STAMPED, False),
        ((b"uid=u1; uid=u2",), Outcome.STAMPED, True),
        ((b"uid=u1", b"uid=u2"), Outcome.STAMPED, True),
        ((b" uid = u1 ",), Outcome.STAMPED, False),
        ((b"xuid=u2;uid=u1;uidx=u3",), Outcome.STAMPED, False),
        ((b"uid",), Outcome.NO_UNIT, False),
        ((b"uid=",), Outcome.NO_UNIT, False),
        ((b"UID=u1",), Outcome.NO_UNIT, False),
        ((b";;=;= ;",), Outcome.NO_UNIT, False),
        ((), Outcome.NO_UNIT, False),
        ((b"uid=" + b"u" * 4097,), Outcome.INVALID_UNIT, False),
    ],
)
def test_cookie_is_the_unit_when_the_experiment_says_so(
    cookies: tuple[bytes, ...], outcome: Outcome, duplicate: bool
) -> None:
    message = snapshot()
    message.experiments[0].unit.ClearField("header")
    message.experiments[0].unit.cookie = "uid"
    answer = ask(build(message), *(("cookie", value) for value in cookies))
    assert (answer.outcome, answer.flags) == (outcome, DUPLICATE_UNIT * duplicate)
    if outcome is Outcome.STAMPED:
        assert answer.response == ask(build(snapshot()), ("x-user-id", b"u1")).response


def test_unit_is_the_callers_random_bytes_when_the_experiment_is_random() -> None:
    message = snapshot(share=500_000)
    message.experiments[0].unit.ClearField("header")
    message.experiments[0].unit.random = True
    plan = build(message)
    units = iter([bytes([n]) * 16 for n in range(100)])

    def draw() -> bytes:
        return next(units)

    seen = {
        stamped(process(plan, request(), random_unit=lambda: next(units), now_s=lambda: NOW_S))[
            "x-variant"
        ]
        for _ in range(100)
    }
    assert seen == {b"control", b"v2"}


# -- Not enrolled ---------------------------------------------------------------------------------


def test_request_has_no_target_when_the_path_is_another() -> None:
    answer = ask(build(snapshot()), ("x-user-id", b"u"), path=b"/other")
    assert answer[:3] == (None, Outcome.NO_TARGET, "")


def test_request_has_no_experiment_when_none_runs_on_its_target() -> None:
    message = snapshot()
    del message.experiments[:]
    answer = ask(build(message), ("x-user-id", b"u"))
    assert answer[:3] == (None, Outcome.NO_EXPERIMENT, "fraud")


@pytest.mark.parametrize("running", [True, False])
def test_the_default_cluster_is_stamped_alone_when_the_routes_are_somebody_elses(
    running: bool,
) -> None:
    message = snapshot()
    if not running:
        del message.experiments[:]
    plan = build(message, defaults={"fraud": "model-v2"})
    answer = ask(plan)
    assert answer.outcome is (Outcome.NO_UNIT if running else Outcome.NO_EXPERIMENT)
    assert answer.slots == ()
    assert stamped(answer) == {"x-turnout-upstream": b"model-v2"}
    assert ask(build(message, defaults={"other": "x"})).response is None


def test_nobody_is_enrolled_when_the_gate_is_closed() -> None:
    answer = ask(build(snapshot(), open_gates=[("fraud-v2", 2)]), ("x-user-id", b"u"))
    assert answer[:3] == (None, Outcome.WAITING, "fraud")
    open_plan = build(snapshot(), open_gates=[("fraud-v2", 1)])
    assert ask(open_plan, ("x-user-id", b"u")).outcome is Outcome.STAMPED


@pytest.mark.parametrize(("epoch", "serves"), [(1, False), (2, False), (3, True)])
def test_experiment_never_serves_when_its_epoch_is_tombstoned(epoch: int, serves: bool) -> None:
    message = snapshot(epoch=epoch)
    expected = Outcome.STAMPED if serves else Outcome.NO_EXPERIMENT
    assert ask(build(message, dead={"fraud-v2": 2}), ("x-user-id", b"u")).outcome is expected
    message.tombstones.add(experiment="fraud-v2", epoch=2)
    assert ask(build(message), ("x-user-id", b"u")).outcome is expected
    assert ask(build(message, dead={"fraud-v2": 1}), ("x-user-id", b"u")).outcome is expected


def test_request_is_not_enrolled_when_outside_the_segment() -> None:
    message = snapshot()
    message.experiments[0].segment.header = "x-country"
    message.experiments[0].segment.in_values.extend(["DE", "FR"])
    plan = build(message)
    unit = ("x-user-id", b"u")
    assert ask(plan, unit, ("x-country", b"DE")).outcome is Outcome.STAMPED
    assert ask(plan, unit, ("x-country", b"UK")).outcome is Outcome.NOT_IN_SEGMENT
    assert ask(plan, unit).outcome is Outcome.NOT_IN_SEGMENT
    assert ask(plan, unit, ("x-country", b"DE,FR")).outcome is Outcome.NOT_IN_SEGMENT


@pytest.mark.parametrize("values", [(b"DE", b"UK"), (b"UK", b"DE")])
def test_one_value_is_enough_when_a_segment_header_comes_twice(values: tuple[bytes, ...]) -> None:
    """As Envoy's header matcher has it."""
    message = snapshot()
    message.experiments[0].segment.header = "x-country"
    message.experiments[0].segment.equals = "DE"
    headers = [("x-user-id", b"u"), *(("x-country", value) for value in values)]
    assert ask(build(message), *headers).outcome is Outcome.STAMPED


def test_headers_that_turnout_sets_change_nothing_when_a_client_sends_them() -> None:
    plan = build(snapshot())
    clean = ask(plan, ("x-user-id", b"u"))
    forged = ask(
        plan,
        ("x-turnout-upstream", b"evil"),
        ("x-variant", b"v2"),
        ("x-turnout", b"fraud-v2;1;v2;0;0000000000000000"),
        ("x-user-id", b"u"),
    )
    assert forged == clean


# -- The wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x12",
        b"\x12\x05abc",
        ProcessingRequest(observability_mode=True).SerializeToString(),
        b"\x1a\x00",  # response_headers
        b"\x22\x00",  # request_body, which our subset does not know
    ],
)
def test_request_is_refused_when_it_has_no_request_headers(data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        process(build(snapshot()), data, random_unit=no_random, now_s=lambda: NOW_S)


def test_refusal_says_nothing_when_a_request_has_nothing() -> None:
    with pytest.raises(MalformedRequest, match=r"^no request headers but nothing$"):
        process(build(snapshot()), b"", random_unit=no_random, now_s=lambda: NOW_S)


def test_request_is_served_when_it_has_fields_we_do_not_know() -> None:
    attributes = b"\x4a\x03abc"  # field 9, length-delimited
    data = request(("x-user-id", b"u")) + attributes
    answer = process(build(snapshot()), data, random_unit=no_random, now_s=lambda: NOW_S)
    assert answer.outcome is Outcome.STAMPED
