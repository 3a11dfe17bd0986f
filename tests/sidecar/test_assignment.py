"""Several experiments of one target: layers, holdout, overrides, tokens, marks, answers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.answers import Template
from sidecar.hashing import bucket
from sidecar.outcome import DUPLICATE_UNIT, INVALID_TOKEN, Answer, Outcome
from sidecar.plan import Plan
from sidecar.processor import assign, process
from sidecar.tokens import HopMarks
from sidecar.units import Request
from tests.sidecar.samples import (
    EPOCH_START_MS,
    KEY,
    NOW_S,
    ask,
    build,
    experiment,
    request,
    snapshot,
    stamped,
)
from turnout.contract import BUCKET_COUNT
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot

HALF = BUCKET_COUNT // 2
UNITS = [b"user-%d" % number for number in range(400)]


def tuned(name: str, layer: str, *, part: tuple[int, int] | None = None) -> ExperimentPlan:
    """Half control, half `b`, by a salt of the experiment's own, in a layer with parameters."""
    plan = ExperimentPlan(
        name=name, epoch=2, epoch_start_unix_ms=EPOCH_START_MS, target="fraud", layer=layer,
        salt=f"salt-{name}",
    )  # fmt: skip
    plan.unit.header = "x-user-id"
    for variant, start, end in (("control", 0, HALF), ("b", HALF, BUCKET_COUNT)):
        one = plan.variants.add(name=variant, control=variant == "control")
        one.ranges.add(start=start, end=end)
        one.parameters[f"{layer}-{'knob'}"] = variant
    if part is not None:
        plan.layer_salt = f"layer-{layer}"
        plan.layer_ranges.add(start=part[0], end=part[1])
    return plan


def with_experiments(*experiments: ExperimentPlan) -> Snapshot:
    message = snapshot()
    del message.experiments[:]
    message.experiments.extend(experiments)
    return message


def entries(answer: Answer) -> list[tuple[str, ...]]:
    """The stamp's entries, each without its hash."""
    stamp = stamped(answer)["x-turnout"].decode()
    return [
        tuple(field for index, field in enumerate(entry.split(";")) if index != 4)
        for entry in stamp.split(",")
    ]


# -- Layers ---------------------------------------------------------------------------------------


def test_stamp_names_models_first_and_then_the_layers_by_name() -> None:
    plan = build(with_experiments(tuned("z", "a-layer"), tuned("a", "z-layer"), experiment()))
    answer = ask(plan, ("x-user-id", b"u"))
    assert [entry[0] for entry in entries(answer)] == ["fraud-v2", "z", "a"]
    headers = stamped(answer)
    assert headers["x-variant"] == entries(answer)[0][2].encode()
    assert set(headers) == {
        "x-variant", "x-turnout", "x-turnout-upstream", "x-param-a-layer-knob",
        "x-param-z-layer-knob",
    }  # fmt: skip


def test_baseline_serves_and_no_variant_is_named_when_no_experiment_routes() -> None:
    headers = stamped(ask(build(with_experiments(tuned("a", "ui"))), ("x-user-id", b"u")))
    assert headers["x-turnout-upstream"] == b"turnout.fraud.base"
    assert "x-variant" not in headers
    elsewhere = build(with_experiments(tuned("a", "ui")), defaults={"fraud": "theirs"})
    assert stamped(ask(elsewhere, ("x-user-id", b"u")))["x-turnout-upstream"] == b"theirs"


def test_unit_is_in_one_experiment_of_a_layer_or_in_none() -> None:
    first = tuned("first", "ui", part=(0, 300_000))
    second = tuned("second", "ui", part=(600_000, 900_000))
    plan = build(with_experiments(first, second))
    seen = set()
    for unit in UNITS:
        answer = ask(plan, ("x-user-id", unit))
        place = bucket(b"layer-ui", unit)
        if place < 300_000 or 600_000 <= place < 900_000:
            name = "first" if place < 300_000 else "second"
            half = "b" if bucket(f"salt-{name}".encode(), unit) >= HALF else "control"
            assert entries(answer) == [(name, "2", half, "0")]
            seen.add(name)
        else:
            assert (answer.response, answer.outcome) == (None, Outcome.NOT_IN_LAYER)
            seen.add("none")
    assert seen == {"first", "second", "none"}


def test_counters_of_all_assignments_are_raised() -> None:
    keys = [("fraud-v2", 1, "v2"), ("fraud-v2", 1, "control"), ("a", 2, "control"), ("a", 2, "b")]
    slots = {key: number for number, key in enumerate(keys)}
    plan = build(with_experiments(experiment(share=500_000), tuned("a", "ui")), slots=slots)
    for unit in UNITS[:50]:
        answer = ask(plan, ("x-user-id", unit))
        expected = [slots[entry[0], int(entry[1]), entry[2]] for entry in entries(answer)]
        assert list(answer.slots) == expected


def test_the_outcome_is_of_the_experiment_that_came_furthest() -> None:
    far = tuned("far", "ui", part=(0, 1))
    held = tuned("held", "b-layer")
    held.holdout.salt = "h"
    held.holdout.ranges.add(start=0, end=BUCKET_COUNT)
    outside = tuned("outside", "c-layer")
    outside.segment.header = "x-none"
    outside.segment.present = True
    unit = ("x-user-id", b"u")
    assert ask(build(with_experiments(held)), unit).outcome is Outcome.HELD_OUT
    assert ask(build(with_experiments(held, outside)), unit).outcome is Outcome.NOT_IN_SEGMENT
    assert ask(build(with_experiments(held, outside, far)), unit).outcome is Outcome.NOT_IN_LAYER
    closed = build(with_experiments(held, far), open_gates=[("held", 2)])
    assert ask(closed, unit).outcome is Outcome.HELD_OUT
    assert ask(build(with_experiments(held), open_gates=[]), unit).outcome is Outcome.WAITING


def test_closed_gate_closes_its_own_experiment_only() -> None:
    message = with_experiments(experiment(), tuned("a", "ui"))
    answer = ask(build(message, open_gates=[("a", 2)]), ("x-user-id", b"u"))
    assert [entry[0] for entry in entries(answer)] == ["a"]
    assert stamped(answer)["x-turnout-upstream"] == b"turnout.fraud.base"


def test_one_copy_is_made_when_two_experiments_ask_for_one() -> None:
    """Of exclusive experiments the first by name: one shadow per target at a time."""
    both = [experiment("one", share=0), experiment("two", share=0)]
    for index, one in enumerate(both):
        one.layer_salt = "l"
        one.layer_ranges.add(start=index * HALF, end=(index + 1) * HALF)
        one.shadow.variant = "v2"
        one.shadow.ranges.add(start=0, end=BUCKET_COUNT)
    plan = build(with_experiments(*both))
    for unit in UNITS[:50]:
        answer = ask(plan, ("x-user-id", unit))
        assert ("x-turnout-shadow" in stamped(answer)) == (entries(answer)[0][0] == "one")


def test_holdout_keeps_its_units_out_and_nobody_else() -> None:
    message = snapshot()
    message.experiments[0].holdout.salt = "hold"
    for start in (0, 500_000):
        message.experiments[0].holdout.ranges.add(start=start, end=start + 100_000)
    plan = build(message)
    outcomes = set()
    for unit in UNITS:
        held = bucket(b"hold", unit) % 500_000 < 100_000
        outcome = ask(plan, ("x-user-id", unit)).outcome
        assert outcome is (Outcome.HELD_OUT if held else Outcome.STAMPED)
        outcomes.add(outcome)
    assert len(outcomes) == 2


# -- Overrides ------------------------------------------------------------------------------------


def token(experiment: str, variant: str, *, unit: bytes = b"", **changes: Any) -> bytes:
    """A force token, written from the contract's words."""
    now = int(NOW_S)
    parts: dict[str, Any] = {"tenant": "risk", "issued": now - 5, "expires": now + 60} | changes
    text = base64.urlsafe_b64encode(unit).rstrip(b"=").decode()
    payload = ";".join(
        (parts["tenant"], experiment, variant, str(parts["issued"]), str(parts["expires"]), text)
    ).encode()
    key = changes.get("key", KEY)
    mac = hashlib.blake2b(payload, key=key, digest_size=16, person=b"turnout-force").digest()
    encoded = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (payload, mac)]
    return b".".join((b"v1", *encoded))


def test_listed_unit_gets_its_variant_whatever_bucket_segment_and_layer() -> None:
    one = tuned("a", "ui", part=(0, 1))
    one.segment.header = "x-none"
    one.segment.present = True
    one.overrides.add(unit="tester", variant="b")
    plan = build(with_experiments(one, experiment(share=0)))
    answer = ask(plan, ("x-user-id", b"tester"))
    assert entries(answer) == [("fraud-v2", "1", "control", "0"), ("a", "2", "b", "0", "f")]
    assert stamped(answer)["x-param-ui-knob"] == b"b"
    assert len(entries(ask(plan, ("x-user-id", b"other")))) == 1


def test_forced_experiment_keeps_the_others_of_its_layer_out() -> None:
    first, second = tuned("first", "ui", part=(0, HALF)), tuned("second", "ui")
    second.layer_salt = "layer-ui"
    second.layer_ranges.add(start=HALF, end=BUCKET_COUNT)
    unit = next(unit for unit in UNITS if bucket(b"layer-ui", unit) < HALF)
    second.overrides.add(unit=unit.decode(), variant="control")
    answer = ask(build(with_experiments(first, second)), ("x-user-id", unit))
    assert entries(answer) == [("second", "2", "control", "0", "f")]


def test_held_out_unit_is_not_forced() -> None:
    one = tuned("a", "ui")
    one.holdout.salt = "h"
    one.holdout.ranges.add(start=0, end=BUCKET_COUNT)
    one.overrides.add(unit="tester", variant="b")
    assert ask(build(with_experiments(one)), ("x-user-id", b"tester")).outcome is Outcome.HELD_OUT


def test_token_forces_its_bearer_and_is_not_copied() -> None:
    message = snapshot(share=0)
    message.experiments[0].shadow.variant = "v2"
    message.experiments[0].shadow.ranges.add(start=0, end=BUCKET_COUNT)
    plan = build(message)
    forced = ask(plan, ("x-user-id", b"u"), ("x-force-variant", token("fraud-v2", "control")))
    assert entries(forced) == [("fraud-v2", "1", "control", "0", "f")]
    assert "x-turnout-shadow" not in stamped(forced)
    assert "x-turnout-shadow" in stamped(ask(plan, ("x-user-id", b"u")))
    forced = ask(plan, ("x-user-id", b"u"), ("x-force-variant", token("fraud-v2", "v2")))
    assert stamped(forced)["x-turnout-upstream"] == b"turnout.fraud.v2"


def test_stamp_names_the_first_stratum_that_fits() -> None:
    message = snapshot(share=BUCKET_COUNT // 2)
    for name, header in (("new", "x-age"), ("big", "x-size")):
        stratum = message.experiments[0].strata.add(name=name)
        stratum.all.add(header=header, equals=name)
    plan = build(message)
    asked = {
        "0": (),
        "1": (("x-age", b"new"), ("x-size", b"big")),
        "2": (("x-age", b"old"), ("x-size", b"big")),
    }
    for unit in (b"a", b"b", b"c", b"d"):
        plain = entries(ask(plan, ("x-user-id", unit)))[0][2]
        for number, headers in asked.items():
            [given] = entries(ask(plan, ("x-user-id", unit), *headers))
            # The stratum changes nobody's variant.
            assert given[2:4] == (plain, number)


def test_allow_list_is_asked_before_the_token() -> None:
    message = snapshot(share=0)
    message.experiments[0].overrides.add(unit="tester", variant="v2")
    text = token("fraud-v2", "control")
    answer = ask(build(message), ("x-user-id", b"tester"), ("x-force-variant", text))
    assert entries(answer) == [("fraud-v2", "1", "v2", "0", "f")]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (token("fraud-v2", "v2", key=bytes(32)), INVALID_TOKEN),
        (token("fraud-v2", "v2", tenant="other"), INVALID_TOKEN),
        (token("fraud-v2", "v2", expires=int(NOW_S)), INVALID_TOKEN),
        (token("fraud-v2", "v9"), INVALID_TOKEN),
        (token("other", "v2"), INVALID_TOKEN),
        (b"rubbish", INVALID_TOKEN),
        (b"", INVALID_TOKEN),
        (b"\xff" * 5_000, INVALID_TOKEN),
        (token("fraud-v2", "v2", unit=b"somebody else"), 0),
    ],
)
def test_token_is_ignored_and_counted_when_it_gives_nothing(text: bytes, flags: int) -> None:
    plan = build(snapshot(share=0))
    plain = ask(plan, ("x-user-id", b"u"))
    answer = ask(plan, ("x-user-id", b"u"), ("x-force-variant", text))
    assert answer == plain._replace(flags=flags)


def test_first_token_counts_when_there_are_two() -> None:
    plan = build(snapshot(share=0))
    good, bad = token("fraud-v2", "v2"), b"rubbish"
    first = ask(plan, ("x-user-id", b"u"), ("x-force-variant", good), ("x-force-variant", bad))
    assert entries(first) == [("fraud-v2", "1", "v2", "0", "f")]
    second = ask(plan, ("x-user-id", b"u"), ("x-force-variant", bad), ("x-force-variant", good))
    assert second.flags == INVALID_TOKEN


def test_nobody_is_forced_when_the_gate_is_closed_or_there_is_no_unit() -> None:
    text = ("x-force-variant", token("fraud-v2", "v2"))
    closed = build(snapshot(share=0), open_gates=[])
    assert ask(closed, ("x-user-id", b"u"), text).outcome is Outcome.WAITING
    assert ask(build(snapshot(share=0)), text).outcome is Outcome.NO_UNIT


# -- Hop marks ------------------------------------------------------------------------------------


def test_request_is_a_peers_when_its_mark_is_good() -> None:
    plan = build(snapshot(share=BUCKET_COUNT), transparent=True)
    unit, request_id = ("x-user-id", b"u"), ("x-request-id", b"r-1")
    marked = stamped(ask(plan, unit, request_id))
    assert marked["x-turnout-upstream"] == b"turnout.fraud.v2"
    mark = ("x-hop-turnout", marked["x-hop-turnout"])
    again = ask(plan, unit, request_id, mark)
    assert again == Answer(None, Outcome.PEER, "fraud", (), 0)
    other = ask(plan, unit, ("x-request-id", b"r-2"), mark)
    assert other.outcome is Outcome.STAMPED
    assert ask(build(snapshot()), unit, request_id, mark).outcome is Outcome.STAMPED


def test_baseline_is_not_marked() -> None:
    message = snapshot(share=0)
    message.experiments[0].variants[0].cluster.cluster = "turnout.fraud.base"
    plan = build(message, transparent=True)
    assert "x-hop-turnout" not in stamped(ask(plan, ("x-user-id", b"u")))


def test_mark_is_of_the_request_and_the_second() -> None:
    plan = build(snapshot(share=BUCKET_COUNT), transparent=True)
    headers = stamped(ask(plan, ("x-user-id", b"u"), ("x-request-id", b"r-1")))
    assert headers["x-hop-turnout"] == HopMarks(KEY, "risk").make(b"r-1", NOW_S)


# -- Several units --------------------------------------------------------------------------------


def test_each_experiment_is_stamped_with_its_own_unit() -> None:
    other = tuned("a", "ui")
    other.unit.header = "x-device"
    answer = ask(
        build(with_experiments(experiment(), other)), ("x-user-id", b"u"), ("x-device", b"d")
    )
    hashes = [entry[-16:] for entry in stamped(answer)["x-turnout"].split(b",")]
    plan = build(snapshot())
    assert hashes == [plan.hasher.hex_digits(b"u"), plan.hasher.hex_digits(b"d")]


def test_session_is_issued_once_and_decided_with_when_there_is_no_cookie() -> None:
    one, two = tuned("a", "a-layer"), tuned("b", "b-layer")
    for each in (one, two):
        each.unit.Clear()
        each.unit.session.cookie = "sid"
    two.unit.session.max_age.FromSeconds(60)
    plan = build(with_experiments(one, two))
    drawn = bytes(range(16))
    first = process(plan, request(), random_unit=lambda: drawn, now_s=lambda: NOW_S)
    headers = stamped(first)
    cookie = b"sid=" + drawn.hex().encode()
    assert headers.pop("x-turnout-set-cookie") == (
        cookie + b"; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"
    )
    assert stamped(ask(plan, ("cookie", b"a=b; " + cookie))) == headers


def test_session_cookie_is_replaced_when_it_is_not_ours() -> None:
    one = tuned("a", "ui")
    one.unit.Clear()
    one.unit.session.SetInParent()
    plan = build(with_experiments(one))
    for value in (b"evil", b"A" * 32, b"0" * 31, b"0" * 33, b""):
        data = request(("cookie", b"turnout-session=" + value))
        answer = process(plan, data, random_unit=lambda: bytes(16), now_s=lambda: NOW_S)
        assert stamped(answer)["x-turnout-set-cookie"].startswith(b"turnout-session=0000")


def of_session(plan: ExperimentPlan) -> ExperimentPlan:
    """The same, by session."""
    plan.unit.Clear()
    plan.unit.session.SetInParent()
    return plan


def test_session_is_kept_when_another_unit_alone_is_enrolled() -> None:
    one = of_session(tuned("a", "ui", part=(0, 1)))
    plan = build(with_experiments(one, experiment()))
    data = request(("x-user-id", b"u"))
    answer = process(plan, data, random_unit=lambda: bytes(16), now_s=lambda: NOW_S)
    assert [entry[0] for entry in entries(answer)] == ["fraud-v2"]
    assert stamped(answer)["x-turnout-set-cookie"].startswith(b"turnout-session=0000")


def held_out(plan: ExperimentPlan) -> None:
    plan.holdout.salt = "h"
    plan.holdout.ranges.add(start=0, end=BUCKET_COUNT)


def outside_its_layer(plan: ExperimentPlan) -> None:
    plan.layer_salt = "l"
    plan.layer_ranges.add(start=0, end=1)


def outside_a_percentage(plan: ExperimentPlan) -> None:
    plan.segment.percentage.salt = "p"
    plan.segment.percentage.buckets = 1


def without_a_header(plan: ExperimentPlan) -> None:
    plan.segment.header = "x-none"
    plan.segment.present = True


@pytest.mark.parametrize(
    ("excluded", "outcome"),
    [
        (held_out, Outcome.HELD_OUT),
        (outside_its_layer, Outcome.NOT_IN_LAYER),
        (outside_a_percentage, Outcome.NOT_IN_SEGMENT),
        (without_a_header, Outcome.NOT_IN_SEGMENT),
    ],
)
@pytest.mark.parametrize("transparent", [False, True])
def test_new_session_is_kept_outside_when_it_is_not_enrolled(
    excluded: Callable[[ExperimentPlan], None], outcome: Outcome, *, transparent: bool
) -> None:
    """Without the cookie it would be drawn anew with each request, until it is enrolled."""
    one = of_session(tuned("a", "ui"))
    excluded(one)
    cookie = b"turnout-session=" + b"0" * 32 + b"; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"
    told = {"x-turnout-set-cookie": cookie}
    for default, more in (("", {}), ("theirs", {"x-turnout-upstream": b"theirs"})):
        defaults = {"fraud": default} if default else {}
        plan = build(with_experiments(one), defaults=defaults, transparent=transparent)
        first = process(plan, request(), random_unit=lambda: bytes(16), now_s=lambda: NOW_S)
        assert (stamped(first), first.outcome, first.slots) == (told | more, outcome, ())
        again = ask(plan, ("cookie", cookie.partition(b";")[0]))
        assert again.outcome is outcome
        assert (again.response is None) is (not default)
        assert not default or stamped(again) == more


def test_no_session_begins_when_the_gate_is_closed() -> None:
    plan = build(with_experiments(of_session(tuned("a", "ui"))), open_gates=[])
    answer = process(plan, request(), random_unit=lambda: bytes(16), now_s=lambda: NOW_S)
    assert (answer.response, answer.outcome) == (None, Outcome.WAITING)


def test_several_values_are_flagged_when_any_unit_has_them() -> None:
    other = tuned("a", "ui")
    other.unit.header = "x-device"
    answer = ask(
        build(with_experiments(experiment(), other)),
        ("x-user-id", b"u"), ("x-device", b"d"), ("x-device", b"e"),
    )  # fmt: skip
    assert (answer.outcome, answer.flags) == (Outcome.STAMPED, DUPLICATE_UNIT)


# -- The short way and the whole of the rules -----------------------------------------------------


@st.composite
def crowded(draw: st.DrawFn) -> Snapshot:
    """Up to ten experiments of one target, of one header unit and one holdout."""
    held = draw(st.booleans())
    found = []
    for layer in draw(st.permutations(["models", "ui", "ranking", "texts"]))[:3]:
        count = draw(st.integers(1, 3))
        for part in range(count):
            one = (
                experiment(f"{layer}-{part}")
                if layer == "models"
                else tuned(f"{layer}-{part}", layer)
            )
            if layer == "models":
                one.salt = f"salt-{part}"
                one.shadow.variant = "v2"
                one.shadow.ranges.add(start=0, end=draw(st.sampled_from([1, HALF, BUCKET_COUNT])))
            if count > 1 or draw(st.booleans()):
                one.layer_salt = f"layer-{layer}"
                start = part * 300_000
                one.layer_ranges.add(start=start, end=start + draw(st.integers(1, 300_000)))
            if draw(st.booleans()):
                one.segment.header = draw(st.sampled_from(["x-a", "x-b"]))
                one.segment.equals = "1"
            for name in draw(st.lists(st.sampled_from(["x-a", "x-b"]), max_size=2, unique=True)):
                one.strata.add(name=name).all.add(header=name, equals="1")
            if held:
                one.holdout.salt = "h"
                one.holdout.ranges.add(start=100_000, end=300_000)
                one.holdout.ranges.add(start=300_000, end=400_000)
            found.append(one)
    return with_experiments(*found)


def fully(plan: Plan, headers: Mapping[str, bytes]) -> tuple[dict[str, bytes], Outcome]:
    """By the whole of the rules, whatever the target."""
    [target] = plan.targets
    found = target.decide(Request(headers, None, b"/v2", b""), None, bytes)
    if not found.number:
        return {}, found.furthest
    template: Template = target.template(found.number)
    response = template.filled(lambda place: plan.hasher.hex_digits(found.units[place].value))
    return stamped(Answer(response, Outcome.STAMPED, "fraud", (), 0)), Outcome.STAMPED


@given(crowded(), st.lists(st.sampled_from(UNITS), min_size=1, max_size=15), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_short_way_decides_as_the_whole_of_the_rules(
    message: Snapshot, units: list[bytes], few: bool
) -> None:
    import sidecar.assignment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sidecar.assignment, "TEMPLATES_MAX", 1_000_000 if few else 0)
        plan = build(message)
        [target] = plan.targets
        assert target.bound.quick is not None
        assert target.bound.quick.few is few
    for number, unit in enumerate(units):
        headers = {"x-user-id": unit} | ({"x-a": b"1"} if number % 2 else {"x-b": b"1"})
        data = request(*headers.items())
        found = plan.decoder.quick(data)
        assert found is not None
        response, slots, tally = assign(plan, *found, data, bytes, float)
        answer = Answer(response, tally.outcome, tally.target, slots, tally.flags)
        got = stamped(answer) if response is not None else {}
        assert (got, tally.outcome) == fully(plan, headers)
