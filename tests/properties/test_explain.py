"""What `explain` tells is what the sidecar does: same outcome, same headers, a story that fits."""

from __future__ import annotations

from itertools import groupby
from random import Random

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidecar.explain import Explanation, explain_request
from sidecar.explainteller import Assigned
from sidecar.outcome import Answer, Outcome
from sidecar.plan import Plan
from sidecar.processor import process
from sidecar.snapshotcheck import validate
from tests.differential.generate import make_world
from tests.differential.traffic import make_request
from tests.sidecar.samples import stamped
from turnout.contract import HEADER_SET_COOKIE, HEADER_STAMP, HEADER_UPSTREAM, HEADER_VARIANT
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot

REQUESTS = 6


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_explanation_is_the_sidecars_answer_and_its_steps_lead_there(seed: int) -> None:
    # A seed's worlds are richer than those of a Random that Hypothesis shrinks through.
    random = Random(seed)
    world = make_world(random)
    if validate(world.snapshot):
        event("invalid")
        return
    plan = Plan.build(
        world.snapshot,
        tenant_key=world.key,
        dead=world.dead,
        open_gates=world.open_gates,
        slots={},
    )
    for _ in range(REQUESTS):
        request = make_request(random, world).SerializeToString()
        answer = process(plan, request, random_unit=lambda: world.chance, now_s=lambda: world.now_s)
        found = explain_request(
            world.snapshot,
            request,
            dead=world.dead,
            open_gates=world.open_gates,
            random_unit=lambda: world.chance,
            now_s=lambda: world.now_s,
            tenant_key=world.key,
        )
        event(answer.outcome.name)
        _same_answer(found, answer)
        _story_leads_there(found, answer)
        for one in found.assigned:
            _fits_the_snapshot(one, world.snapshot)


def _same_answer(found: Explanation, answer: Answer) -> None:
    assert found.outcome == answer.outcome.name
    assert found.target == answer.target
    if answer.outcome is not Outcome.STAMPED:
        assert (found.variant, found.shadow) == ("", "")
        cookie = {} if answer.response is None else stamped(answer)
        assert found.headers == {name: value.decode() for name, value in cookie.items()}
        assert found.headers.keys() <= {HEADER_SET_COOKIE}
        return
    headers = {name: value.decode() for name, value in stamped(answer).items()}
    assert found.headers.keys() == headers.keys()
    for name, value in found.headers.items():
        if name != HEADER_STAMP:
            assert value == headers[name]
    assert found.variant == headers.get(HEADER_VARIANT, "")
    assert found.upstream == headers[HEADER_UPSTREAM]
    told = [
        f"{one.experiment};{one.epoch};{one.variant};0;{';f' if one.forced else ''}"
        for one in found.assigned
        if one.variant
    ]
    entries = [entry.split(";") for entry in headers[HEADER_STAMP].split(",")]
    assert told == [f"{';'.join(e[:4])};{';f' if e[5:] else ''}" for e in entries]


def _story_leads_there(found: Explanation, answer: Answer) -> None:
    outcomes = [Outcome[one.outcome] for one in found.assigned]
    if answer.outcome is Outcome.STAMPED:
        assert Outcome.STAMPED in outcomes
        assert found.main.variant
    elif outcomes:
        assert max(outcomes) is answer.outcome
        assert found.main.outcome == found.outcome
    asked = [step for step in found.steps if step.experiment]
    stories = {name: list(steps) for name, steps in groupby(asked, key=lambda s: s.experiment)}
    assert list(stories) == [one.experiment for one in found.assigned]
    for one in found.assigned:
        *before, last = stories[one.experiment]
        assert all(step.passed for step in before)
        # A story ends well exactly when the request is in the experiment.
        assert last.passed is (one.outcome == "STAMPED") is bool(one.variant)


def _fits_the_snapshot(one: Assigned, snapshot: Snapshot) -> None:
    plan = next(e for e in snapshot.experiments if e.name == one.experiment)
    assert (plan.epoch, plan.layer) == (one.epoch, one.layer)
    assert (one.bucket is not None) is (bool(one.variant) and not one.forced)
    if one.bucket is not None:
        assert one.bucket_range is not None
        assert one.bucket_range[0] <= one.bucket < one.bucket_range[1]
        owner = next(v for v in plan.variants if v.name == one.variant)
        start, end = one.bucket_range
        assert BucketRange(start=start, end=end) in owner.ranges
