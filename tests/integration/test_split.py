"""Who gets which variant, through the real Envoy."""

from __future__ import annotations

from collections import Counter

from tests.integration.harness import Stage, expected_variant, one_experiment
from turnout.contract import BUCKET_COUNT

USERS = [f"user-{i}" for i in range(20_000)]
# Found by search: the first of u0, u1, ... in bucket 999,999 of the test's salt.
LAST_BUCKET_USER = "u1500925"


async def test_split_is_within_4_sigma_and_sticky_when_20000_users_pass_twice(
    stage: Stage,
) -> None:
    v1, v2, v3 = [await stage.pod(name) for name in ("v1", "v2", "v3")]
    fractions = {"v2": 0.2, "v3": 0.05}
    snapshot = one_experiment(v1, {"v2": v2, "v3": v3}, fractions)
    await stage.envoy(snapshot)
    await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    first = await stage.stamped(USERS)
    counts = Counter(answer.variant for answer in first)
    assert set(counts) == {"control", "v2", "v3"}
    for name, fraction in fractions.items():
        sigma = (len(USERS) * fraction * (1 - fraction)) ** 0.5
        assert abs(counts[name] - len(USERS) * fraction) <= 4 * sigma, counts
    assert [a.variant for a in first] == [expected_variant(snapshot, user) for user in USERS]
    pods = {"control": "v1", "v2": "v2", "v3": "v3"}
    assert all(a.pod == pods[a.variant] and a.status == 200 for a in first)
    # The second pass takes the other workers and Envoy threads, backwards.
    second = await stage.stamped(USERS[::-1])
    assert [a.variant for a in reversed(second)] == [a.variant for a in first]


async def test_ramp_moves_exactly_the_increment_when_a_candidate_grows(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    fake, users = await stage.fake_control(), USERS[:3_000]
    steps = [
        one_experiment(v1, v2, {"v2": fraction}, version=epoch, epoch=epoch)
        for epoch, fraction in enumerate((0.01, 0.05, 0.5), start=1)
    ]
    await stage.envoy(steps[0])
    await stage.sidecar(control=fake.address)
    before: set[str] = set()
    for snapshot in steps:
        fake.push(snapshot)
        await fake.serving(snapshot)
        await stage.enrols()
        answers = await stage.stamped(users)
        assert {a.variant for a in answers} == {"control", "v2"}
        candidate = {u for u, a in zip(users, answers, strict=True) if a.variant == "v2"}
        assert before <= candidate, "a user left the candidate"
        joined = {u for u in users if expected_variant(snapshot, u) == "v2"} - before
        assert candidate - before == joined
        before = candidate
    assert len(before) > len(users) * 0.4


async def test_candidate_gets_no_request_when_its_fraction_is_zero(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.0})
    await stage.envoy(snapshot)
    await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    answers = await stage.stamped(USERS[:3_000])
    assert {(a.variant, a.pod) for a in answers} == {("control", "v1")}
    assert v2.requests == 0


async def test_control_keeps_its_last_bucket_when_it_has_a_millionth(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    everyone = (BUCKET_COUNT - 1) / BUCKET_COUNT
    snapshot = one_experiment(v1, v2, {"v2": everyone})
    assert expected_variant(snapshot, LAST_BUCKET_USER) == "control"
    await stage.envoy(snapshot)
    await stage.sidecar(snapshot=snapshot)
    await stage.enrols()
    answers = await stage.stamped([LAST_BUCKET_USER, *USERS[:200]])
    assert [a.variant for a in answers] == ["control"] + ["v2"] * 200
