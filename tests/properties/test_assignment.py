"""Assignment: uniform, sticky, growing without moving anybody, matching as a slow oracle does."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.envoymatch import targets_in_order
from sidecar.hashing import bucket
from sidecar.plan import Plan
from sidecar.predicates import REPEATED, compile_predicate
from sidecar.snapshotcheck import validate
from tests.sidecar.samples import ask, build, snapshot, stamped, target
from turnout.contract import BUCKET_COUNT
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import BucketRange, Snapshot, TargetPlan

UNITS = [b"user-%d" % number for number in range(20_000)]
# Far beyond chance: a right hash fails one run in 10^9.
SIGMAS = 6.0


@pytest.mark.parametrize("salt", [b"", b"salt", b"\xff" * 16, b"0", b"1"])
def test_buckets_are_uniform_when_units_are_numbered(salt: bytes) -> None:
    """Chi-square over 100 cells of 20,000 units; mean 99, deviation sqrt(2 * 99)."""
    cells = [0] * 100
    for unit in UNITS:
        cells[bucket(salt, unit) * 100 // BUCKET_COUNT] += 1
    expected = len(UNITS) / 100
    chi_square = sum((count - expected) ** 2 / expected for count in cells)
    assert abs(chi_square - 99) < SIGMAS * math.sqrt(2 * 99)


def test_buckets_of_two_salts_are_independent() -> None:
    both = sum(bucket(b"a", u) < 500_000 and bucket(b"b", u) < 500_000 for u in UNITS)
    assert abs(both - len(UNITS) / 4) < SIGMAS * math.sqrt(len(UNITS) * 3 / 16)


def candidates(plan: Plan, units: list[bytes]) -> set[bytes]:
    return {u for u in units if stamped(ask(plan, ("x-user-id", u)))["x-variant"] == b"v2"}


@given(st.lists(st.integers(0, 1_000_000), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None)
def test_nobody_leaves_the_candidate_when_its_ranges_grow(shares: list[int]) -> None:
    units = UNITS[:300]
    before: set[bytes] = set()
    for share in sorted(shares):
        now = candidates(build(snapshot(share=share)), units)
        assert before <= now
        edge = BUCKET_COUNT - share
        assert now == {unit for unit in units if bucket(b"salt", unit) >= edge}
        before = now


@given(st.binary(min_size=1, max_size=64), st.integers(1, 2**40))
@settings(max_examples=50, deadline=None)
def test_answer_is_byte_equal_when_asked_again_of_a_plan_built_anew(
    unit: bytes, version: int
) -> None:
    message = snapshot()
    first = ask(build(message), ("x-user-id", unit))
    message.version = version
    assert ask(build(message), ("x-user-id", unit)) == first


# -- Ranges ---------------------------------------------------------------------------------------


@st.composite
def tilings(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Buckets cut into pieces that up to four variants own."""
    cuts = draw(st.sets(st.integers(1, BUCKET_COUNT - 1), max_size=12))
    edges = [0, *sorted(cuts), BUCKET_COUNT]
    owners: list[list[tuple[int, int]]] = [[] for _ in range(draw(st.integers(2, 4)))]
    for piece in pairwise(edges):
        owners[draw(st.integers(0, len(owners) - 1))].append(piece)
    return owners


def tiled(owners: list[list[tuple[int, int]]]) -> Snapshot:
    message = snapshot()
    experiment = message.experiments[0]
    template = experiment.variants[1]
    control = experiment.variants[0]
    del experiment.variants[:]
    for index, ranges in enumerate(owners):
        variant = experiment.variants.add()
        variant.CopyFrom(template if index else control)
        variant.name = f"v{index}"
        del variant.ranges[:]
        variant.ranges.extend(BucketRange(start=start, end=end) for start, end in ranges)
    return message


@given(tilings(), st.lists(st.sampled_from(UNITS), max_size=20))
@settings(max_examples=100, deadline=None)
def test_unit_is_its_buckets_owners_when_ranges_tile(
    owners: list[list[tuple[int, int]]], units: list[bytes]
) -> None:
    message = tiled(owners)
    assert validate(message) == []
    plan = build(message)
    for unit in units:
        place = bucket(b"salt", unit)
        [owner] = [i for i, ranges in enumerate(owners) if any(s <= place < e for s, e in ranges)]
        assert stamped(ask(plan, ("x-user-id", unit)))["x-variant"] == b"v%d" % owner


@given(tilings(), st.data())
@settings(max_examples=100, deadline=None)
def test_snapshot_is_refused_when_one_edge_is_moved(
    owners: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    index = data.draw(st.sampled_from([i for i, ranges in enumerate(owners) if ranges]))
    place = data.draw(st.integers(0, len(owners[index]) - 1))
    start, end = owners[index][place]
    moved = data.draw(
        st.tuples(st.integers(0, BUCKET_COUNT), st.integers(0, BUCKET_COUNT)).filter(
            lambda pair: pair != (start, end)
        )
    )
    owners[index][place] = moved
    assert validate(tiled(owners))


# -- Predicates -----------------------------------------------------------------------------------

NAMES = ["x-a", "x-b"]
VALUES = ["", "a", "ab", "b", "\N{SNOWMAN}"]


def leaves() -> st.SearchStrategy[Predicate]:
    name, value = st.sampled_from(NAMES), st.sampled_from(VALUES)
    return st.one_of(
        st.builds(lambda n, v: Predicate(header=n, equals=v), name, value),
        st.builds(lambda n, v: Predicate(header=n, prefix=v or "a"), name, value),
        st.builds(lambda n, p: Predicate(header=n, present=p), name, st.booleans()),
        st.builds(
            lambda n, v: Predicate(header=n, in_values=v),
            name,
            st.lists(value, min_size=1, max_size=3),
        ),
    )


def predicates() -> st.SearchStrategy[Predicate]:
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.builds(lambda p: Predicate(all=p), st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda p: Predicate(any=p), st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda p: Predicate(negated=p), inner),
        ),
        max_leaves=8,
    )


def oracle(predicate: Predicate, headers: list[tuple[str, bytes]]) -> bool:
    """The words of the proto, without any cleverness."""
    if predicate.all:
        return all(oracle(part, headers) for part in predicate.all)
    if predicate.any:
        return any(oracle(part, headers) for part in predicate.any)
    if predicate.HasField("negated"):
        return not oracle(predicate.negated, headers)
    values = [value for name, value in headers if name == predicate.header]
    if predicate.HasField("present"):
        return bool(values) == predicate.present
    if predicate.HasField("prefix"):
        return any(value.startswith(predicate.prefix.encode()) for value in values)
    if predicate.HasField("equals"):
        return predicate.equals.encode() in values
    return any(value in [v.encode() for v in predicate.in_values] for value in values)


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(st.sampled_from(VALUES).map(str.encode), st.just(b"\xff")),
    ),
    max_size=4,
)


@given(predicates(), HEADERS)
@settings(max_examples=400, deadline=None)
def test_predicate_means_what_the_oracle_says(
    predicate: Predicate, headers: list[tuple[str, bytes]]
) -> None:
    joined: dict[str, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + REPEATED + value if name in joined else value
    assert compile_predicate(predicate)(joined, b"") == oracle(predicate, headers)


# -- Targets --------------------------------------------------------------------------------------

HOSTS = ["*", "a.b", "b", "*.b", "*.a.b", "c.a.b"]
PATHS = ["/", "/v2", "/v2/x", "/v3"]


@st.composite
def targets(draw: st.DrawFn) -> list[TargetPlan]:
    made = []
    for index in range(draw(st.integers(0, 6))):
        plan = target(f"t{index}")
        plan.hosts.extend(draw(st.lists(st.sampled_from(HOSTS), max_size=2)))
        plan.path_prefix = draw(st.sampled_from(["", *PATHS]))
        plan.methods.extend(draw(st.lists(st.sampled_from(["GET", "POST"]), max_size=1)))
        plan.headers.extend(draw(st.lists(leaves(), max_size=2)))
        made.append(plan)
    return made


def routed(plans: list[TargetPlan], host: str, path: str, headers: dict[str, bytes]) -> str | None:
    """What Envoy does: one virtual host, its routes in the order that envoymatch prints them."""
    patterns = {pattern for plan in plans for pattern in plan.hosts or ["*"]} | {"*"}
    fitting = [
        pattern
        for pattern in patterns
        if pattern == host
        or pattern == "*"
        or (pattern[0] == "*" and host.endswith(pattern[1:]) and len(host) > len(pattern) - 1)
    ]
    virtual_host = max(fitting, key=lambda pattern: (pattern[0] != "*", len(pattern)))
    for plan in targets_in_order(plans, virtual_host):
        if (
            path.startswith(plan.path_prefix or "/")
            and (not plan.methods or headers[":method"].decode() in plan.methods)
            and all(oracle(p, list(headers.items())) for p in plan.headers)
        ):
            return plan.name
    return None


@given(
    targets(),
    st.sampled_from(["a.b", "b", "x.b", "x.a.b", "c.a.b", "z"]),
    st.sampled_from([*PATHS, "/v2/y", "/v"]),
    st.sampled_from(["GET", "POST", "PUT"]),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES).map(str.encode)),
)
@settings(max_examples=400, deadline=None)
def test_plan_takes_the_target_whose_route_envoy_takes(
    plans: list[TargetPlan], host: str, path: str, method: str, given_headers: dict[str, bytes]
) -> None:
    """Tried against the real Envoy in tests/integration/test_routes.py; here, many more cases."""
    plan = build(Snapshot(format=1, tenant="risk", version=1, targets=plans))
    headers = {":method": method.encode(), **given_headers}
    found = plan.match({":authority": host.encode(), ":path": path.encode(), **headers})
    assert (found.name if found is not None else None) == routed(plans, host, path, headers)
