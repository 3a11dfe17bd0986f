"""What `explain` tells is what the sidecar does: same outcome, same headers, a story that fits."""

from __future__ import annotations

from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidecar.explain import encode_request, explain
from sidecar.plan import Plan
from sidecar.outcome import Outcome
from sidecar.processor import process
from sidecar.snapshotcheck import validate
from tests.sidecar.samples import KEY, experiment, stamped, target
from turnout.contract import HEADER_STAMP, HEADER_VARIANT
from turnout.v1alpha1.common_pb2 import Predicate, Tombstone
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot

DRAWN = b"\x01" * 16
HOSTS = ["a", "", "b.c", "B.C:80", "x.b.c", "other"]
PATHS = ["/v2", "/v2/x", "/v2/x?y", "/v2?x", "/v2/x/x", "", "/v3"]
values = st.sampled_from([b"1", b"DE", b"2", b"", b"\xff", b"x" * 300])
names = st.sampled_from(
    ["x-user-id", "x-user-id", "cookie", "cookie", "x-country", "x-b", "x-turnout-upstream"]
)


def odd(draw: Any) -> bool:
    """Now and then: most requests should get far."""
    return bool(draw(st.integers(0, 7)) == 7)


@st.composite
def predicates(draw: Any, depth: int = 2) -> Predicate:
    """A predicate on a few headers."""
    kinds = ["in", "in", "equals", "prefix", "present", "present", "all", "any", "not"]
    kind = draw(st.sampled_from(kinds))
    if depth and kind == "not":
        return Predicate(negated=draw(predicates(depth - 1)))
    if depth and kind in ("all", "any"):
        parts = [draw(predicates(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
        return Predicate(all=parts) if kind == "all" else Predicate(any=parts)
    leaf = Predicate(header=draw(st.sampled_from(["x-country", "x-b"])))
    if kind == "in":
        leaf.in_values.extend(["DE", "1"])
    elif kind == "prefix":
        leaf.prefix = "D"
    elif kind == "present":
        leaf.present = draw(st.booleans())
    else:
        leaf.equals = "1"
    return leaf


@st.composite
def snapshots(draw: Any) -> Snapshot:
    """Up to three targets; on the first an experiment, or none, or a dead one."""
    plan = Snapshot(format=1, tenant="risk", version=7)
    for index, name in enumerate("abc"[: draw(st.integers(1, 3))]):
        made = target(name)
        made.path_prefix = f"/v2{'/x' * index}"
        if odd(draw):
            made.hosts.extend(draw(st.sampled_from([["a"], ["b.c"], ["*.b.c", "a"]])))
        if odd(draw):
            made.path_prefix = draw(st.sampled_from(["/", "/v2/x"]))
        if odd(draw):
            made.methods.append(draw(st.sampled_from(["POST", "GET"])))
        if odd(draw):
            made.headers.append(draw(predicates()))
        plan.targets.append(made)
        if index or odd(draw):
            continue
        one = experiment("try", epoch=2, share=draw(st.sampled_from([0, 1, 500_000, 1_000_000])))
        one.target = name
        unit = draw(st.sampled_from(["header", "cookie", "random"]))
        if unit != "header":
            one.unit.Clear()
        if unit == "cookie":
            one.unit.cookie = "session"
        elif unit == "random":
            one.unit.random = True
        if draw(st.sampled_from([False, False, True])):
            one.segment.CopyFrom(draw(predicates()))
        if draw(st.booleans()):
            one.shadow.variant = "v2"
            one.shadow.ranges.append(BucketRange(start=0, end=draw(st.sampled_from([1, 10**6]))))
        one.variants[1].parameters["threshold"] = "0.7"
        plan.experiments.append(one)
        if odd(draw):
            plan.tombstones.append(Tombstone(experiment="try", epoch=2, reason="too slow"))
    return plan


@given(
    snapshots(),
    st.sampled_from(HOSTS),
    st.sampled_from(PATHS),
    st.lists(st.tuples(names, values), max_size=5),
    st.sampled_from([None, frozenset({("try", 2)}), None, frozenset()]),
)
@settings(max_examples=400, deadline=None)
def test_explanation_is_the_sidecars_answer_and_its_steps_lead_there(
    plan: Snapshot,
    host: str,
    path: str,
    extra: list[tuple[str, bytes]],
    gates: frozenset[tuple[str, int]] | None,
) -> None:
    if validate(plan):  # two targets that no request could tell apart
        event("invalid")
        return
    extra = [(name, b"session=" + v if name == "cookie" else v) for name, v in extra]
    headers = [
        (":authority", host.encode()),
        (":path", path.encode()),
        (":method", b"POST"),
        *extra,
    ]
    found = explain(plan, headers, open_gates=gates, random_unit=lambda: DRAWN)
    serving = Plan.build(plan, tenant_key=KEY, dead={}, open_gates=gates, slots={})
    answer = process(serving, encode_request(headers), random_unit=lambda: DRAWN)
    event(answer.outcome.name)
    assert found.outcome == answer.outcome.name
    assert found.target == answer.target
    # The story ends well exactly when somebody is enrolled, and only its last step may say no.
    assert all(step.passed for step in found.steps) == (answer.outcome is Outcome.STAMPED)
    asked = found.steps if found.target else found.steps[:1]
    assert all(step.passed for step in asked[:-1])
    if answer.outcome is not Outcome.STAMPED:
        assert (found.variant, found.headers, found.shadow) == ("", {}, "")
        return
    headers_set = {name: value.decode() for name, value in stamped(answer).items()}
    assert found.variant == headers_set[HEADER_VARIANT]
    assert found.headers.keys() == headers_set.keys()
    for name, value in found.headers.items():
        if name != HEADER_STAMP:
            assert value == headers_set[name]
    assert headers_set[HEADER_STAMP].startswith(
        found.headers[HEADER_STAMP].removesuffix("<unit hash>")
    )
    assert found.bucket is not None
    assert found.bucket_range is not None
    assert found.bucket_range[0] <= found.bucket < found.bucket_range[1]
    owner = next(v for v in plan.experiments[0].variants if v.name == found.variant)
    assert BucketRange(start=found.bucket_range[0], end=found.bucket_range[1]) in owner.ranges
    assert found.upstream == owner.cluster.cluster
