"""Worlds (snapshots and what is beside them) and requests, generated from a `random.Random`.

Owns what is likely: small pools of names, so that requests meet what the snapshots test. Hypothesis
hands in a Random of its own (`st.randoms`) and shrinks through it; a seed makes the same again.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Final

from tests.differential.oracle import World, bucket
from tests.differential.traffic import VALUES, VERSIONS, names_of
from turnout.contract import BUCKET_COUNT, LAYER_MODELS
from turnout.v1alpha1.common_pb2 import Predicate, Unit
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
    VariantPlan,
)

NOW_S: Final = 1_760_000_000
HOSTS: Final = ("*", "a.test", "b.test", "*.test", "*.a.test", "x.a.test", "[::1]", "UPPER.test")
PREFIXES: Final = ("", "/", "/v2", "/v2/models", "/fraud", "/fraud/", "/v1")
METHODS: Final = ("POST", "POST", "GET", "PUT")
LAYERS: Final = (LAYER_MODELS, LAYER_MODELS, "aa", "prompt", "zeta")
NAMES: Final = names_of()
# Of which requests have many.
UNITS: Final = (b"user-1", b"user-2", b"u", b"7", b"a", bytes(range(16)))
EXPRESSIONS: Final = (
    "[a-z]*", "[a-z]+", "user-[0-9]+", "(gold|silver)x?", "a.*", ".", r"\d{2,3}", r"a\.b", "[^a]+",
)  # fmt: skip
CONSTRAINTS: Final = (
    ">=1.2.0 <2.0.0", "=1.2.3", "1.2.3", "!=1.2.3", "^1.2.3", "^0.2.3", "^0.0.3", "~1.2.3",
    ">1.0.0-alpha", "<=1.0.0-alpha.1", "<1.0.0", ">=1.0.0-alpha.beta  <1.0.0-beta.11",
    "^1.0.0-rc.1", "~0.0.0",
)  # fmt: skip


def make_world(random: Random) -> World:
    """A world whose snapshot a sidecar accepts."""
    snapshot = Snapshot(format=1, tenant=random.choice(("risk", "t")), version=random.randint(1, 9))
    for index in range(random.choice((1, 1, 2, 3, 5))):
        snapshot.targets.append(_target(random, f"target-{index}"))
    for target in snapshot.targets:
        _add_experiments(random, snapshot, target)
    by_name = sorted(snapshot.experiments, key=lambda e: e.name)
    del snapshot.experiments[:]
    snapshot.experiments.extend(by_name)
    for experiment in by_name:
        if random.random() < 0.06:
            epoch = experiment.epoch - random.randint(0, 1)
            snapshot.tombstones.add(experiment=experiment.name, epoch=epoch, reason="r")
    pairs = [(experiment.name, experiment.epoch) for experiment in by_name]
    gated = random.random() < 0.25
    return World(
        snapshot=snapshot,
        key=random.choice((bytes(range(32)), b"k" * 32)),
        dead={name: epoch for name, epoch in pairs if random.random() < 0.04},
        open_gates={pair for pair in pairs if random.random() < 0.7} if gated else None,
        defaults={t.name: "theirs" for t in snapshot.targets if random.random() < 0.2},
        transparent=random.random() < 0.25,
        now_s=NOW_S + random.choice((0, 0.25, 0.999)),
        chance=bytes(range(16)),
    )


# -- Targets ---------------------------------------------------------------------------------------


def _target(random: Random, name: str) -> TargetPlan:
    plan = TargetPlan(name=name, path_prefix=random.choice(PREFIXES))
    if random.random() < 0.4:
        plan.hosts.extend(random.sample(HOSTS, random.randint(1, 2)))
    if random.random() < 0.2:
        plan.methods.extend(random.sample(METHODS, random.randint(1, 2)))
    if random.random() < 0.12:
        plan.headers.append(_predicate(random, 2, matching=True))
    if random.random() < 0.25:
        plan.model_name = random.choice(("fraud", "m.1", "net_x"))
        if random.random() < 0.5:
            plan.model_version = random.choice(("1", "2", "v2.0"))
    plan.baseline.cluster = f"turnout.{name}.base"
    plan.baseline.upstream.address = "v1:8080"
    return plan


# -- Experiments -----------------------------------------------------------------------------------


def _add_experiments(random: Random, snapshot: Snapshot, target: TargetPlan) -> None:
    """Up to seven experiments in up to four layers."""
    for layer in sorted(set(random.sample(LAYERS, random.choice((0, 1, 1, 2, 3))))):
        salt = f"layer-{layer}-{target.name}"
        parts = _parts(random, salt)
        for index, part in enumerate(parts):
            if random.random() < 0.15:
                continue
            name = f"{random.choice('abcxyz')}-{layer}-{index}-{target.name}"
            plan = _experiment(random, name, target, layer)
            if part or random.random() < 0.5:
                plan.layer_salt = salt
                plan.layer_ranges.extend(part or [BucketRange(start=0, end=BUCKET_COUNT)])
            snapshot.experiments.append(plan)


def _parts(random: Random, salt: str) -> list[list[BucketRange]]:
    """A layer cut for its experiments; one empty part = the whole layer."""
    if random.random() < 0.5:
        return [[]]
    cuts = sorted({0, BUCKET_COUNT, *(_bucket(random, salt) for _ in range(4))})
    parts: list[list[BucketRange]] = [[] for _ in range(random.randint(1, 3))]
    for start, end in pairwise(cuts):
        if random.random() < 0.85:
            random.choice(parts).append(BucketRange(start=start, end=end))
    return [part for part in parts if part]


def _bucket(random: Random, salt: str) -> int:
    """An edge; often at the bucket of a unit that requests have, or right behind it."""
    if random.random() < 0.5:
        return bucket(salt, random.choice(UNITS)) + random.choice((0, 1))
    return random.choice((random.randint(0, BUCKET_COUNT), 10_000 * random.randint(0, 100)))


def _experiment(random: Random, name: str, target: TargetPlan, layer: str) -> ExperimentPlan:
    plan = ExperimentPlan(
        name=name,
        epoch=random.choice((1, 2, 7, 2**63)),
        epoch_start_unix_ms=1_700_000_000_000,
        target=target.name,
        layer=layer,
        salt=random.choice((f"salt-{name}", "\u00a7" + name[:20], name[:1])),
        unit=_unit(random),
    )
    if random.random() < 0.35:
        plan.segment.CopyFrom(_predicate(random, 3))
    _add_variants(random, plan, target)
    if layer == LAYER_MODELS and random.random() < 0.3:
        plan.shadow.variant = random.choice([v.name for v in plan.variants[1:]])
        plan.shadow.ranges.append(_range(random, plan.salt))
    if random.random() < 0.25:
        plan.holdout.salt = "holdout"
        plan.holdout.ranges.append(BucketRange(start=0, end=max(1, _bucket(random, "holdout"))))
    if random.random() < 0.4:
        units = random.sample(("user-1", "user-2", "u", "\u00dcnit", "7", "true"), 3)
        for unit in sorted(units):
            plan.overrides.add(unit=unit, variant=random.choice(plan.variants).name)
    return plan


def _range(random: Random, salt: str) -> BucketRange:
    start, end = sorted((random.choice((0, _bucket(random, salt))), _bucket(random, salt)))
    return BucketRange(start=start, end=end) if start < end else BucketRange(start=0, end=1)


def _unit(random: Random) -> Unit:
    kind = random.choice(
        ("header", "header", "cookie", "random", "jwt", "token", "session", "query")
    )
    if kind == "header":
        return Unit(header=random.choice(("x-user-id", "x-a", "cookie", "x-request-id")))
    if kind == "cookie":
        return Unit(cookie=random.choice(("uid", "sid", "turnout-session")))
    if kind == "random":
        return Unit(random=True)
    if kind == "query":
        return Unit(query_parameter=random.choice(("user", "u+d", "u=", "a b")))
    unit = Unit()
    if kind == "session":
        unit.session.SetInParent()
        unit.session.cookie = random.choice(("", "", "", "sid"))
        if random.random() < 0.3:
            unit.session.max_age.FromSeconds(random.choice((60, 86_400)))
        return unit
    unit.jwt_claim.claim = random.choice(("sub", "sub", "realm.user", "n"))
    if kind == "jwt":
        unit.jwt_claim.payload_in_metadata = "payload"
    else:
        unit.jwt_claim.unverified = True
        unit.jwt_claim.header = random.choice(("", "x-jwt"))
    return unit


def _add_variants(random: Random, plan: ExperimentPlan, target: TargetPlan) -> None:
    """Two to four variants that tile the buckets in scattered pieces."""
    names = ["control", "v2", "v3", "v4"][: random.choice((2, 2, 3, 4))]
    owned: dict[str, list[BucketRange]] = {name: [] for name in names}
    pieces = random.choice((1, 2, 6))
    cuts = sorted({0, BUCKET_COUNT, *(_bucket(random, plan.salt) for _ in range(pieces - 1))})
    for start, end in pairwise(cuts):
        owned[random.choice(names)].append(BucketRange(start=start, end=end))
    for index, name in enumerate(names):
        variant = VariantPlan(name=name, control=not index, ranges=owned[name])
        if plan.layer == LAYER_MODELS:
            variant.cluster.cluster = (
                f"turnout.{target.name}.{name}" if index else (target.baseline.cluster)
            )
            variant.cluster.upstream.address = f"{name}:8080"
        if random.random() < 0.4 or plan.layer != LAYER_MODELS:
            variant.parameters[f"{plan.layer}-Key"] = random.choice(("", "x", "a value"))
        plan.variants.append(variant)


# -- Predicates ------------------------------------------------------------------------------------


def _predicate(random: Random, depth: int, *, matching: bool = False) -> Predicate:
    """A predicate; `matching` = of the kinds that a target's match may have."""
    shape = random.random()
    if depth > 0 and shape < 0.35:
        parts = [
            _predicate(random, depth - 1, matching=matching) for _ in range(random.randint(1, 3))
        ]
        return Predicate(all=parts) if random.random() < 0.5 else Predicate(any=parts)
    if depth > 0 and shape < 0.45:
        return Predicate(negated=_predicate(random, depth - 1, matching=matching))
    return _leaf(random, matching=matching)


def _leaf(random: Random, *, matching: bool) -> Predicate:
    name = random.choice(NAMES)
    kinds = ("equals", "in", "prefix", "present")
    more = ("regex", "range", "semver", "percentage")
    kind = random.choice(kinds if matching else kinds + more)
    texts = [value.decode() for value in VALUES if _is_text(value)]
    if kind == "equals":
        return Predicate(header=name, equals=random.choice(texts))
    if kind == "in":
        return Predicate(header=name, in_values=random.sample(texts, random.randint(1, 4)))
    if kind == "prefix":
        return Predicate(header=name, prefix=random.choice(("a", "user-", "1", "\u00dc")))
    if kind == "present":
        return Predicate(header=name, present=random.random() < 0.6)
    if kind == "regex":
        return Predicate(header=name, regex=random.choice(EXPRESSIONS))
    if kind == "semver":
        return Predicate(header="x-version", semver=random.choice(CONSTRAINTS))
    made = Predicate(header=random.choice(("x-number", "x-number", name)))
    if kind == "range":
        low, high = sorted((random.choice((-5, 0, 1, 1.5)), random.choice((1, 2.5, 100, 1e300))))
        if random.random() < 0.7:
            made.range.min = low
        if random.random() < 0.7 or not made.range.HasField("min"):
            made.range.max = high if high > low else high + 1
        return made
    made = Predicate()
    made.percentage.salt = random.choice(("share", "other"))
    limits = (0, 1, 100_000, BUCKET_COUNT, *(_bucket(random, made.percentage.salt),) * 4)
    made.percentage.buckets = random.choice(limits)
    made.percentage.fraction = made.percentage.buckets / BUCKET_COUNT
    return made


def _is_text(value: bytes) -> bool:
    try:
        return len(value.decode()) <= 200
    except UnicodeDecodeError:
        return False


assert VERSIONS, "requests meet the constraints"
