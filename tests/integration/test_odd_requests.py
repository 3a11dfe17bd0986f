"""Requests that are not as they should be: served, never our 5xx, and counted."""

from __future__ import annotations

from tests.integration.harness import (
    Request,
    Stage,
    expected_variant,
    one_experiment,
    one_target,
    wait_for,
)
from turnout.v1alpha1.common_pb2 import Unit

REPEATS = 5


async def test_odd_requests_are_served_and_counted(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.5})
    fake.push(snapshot)
    await fake.serving(snapshot)
    await stage.enrols()
    odd = {
        "no_unit": Request(),
        "no_unit_empty": Request(headers={"x-user-id": ""}),
        "invalid_unit": Request(headers={"x-user-id": "u" * 50 * 1024}),
        "not_utf8": Request(headers={"x-user-id": b"\xff\xfe\xe4"}),
        "two_units": Request(headers={"x-user-id": ["first", "second"]}),
        "long_path": Request(path="/v2/models/fraud/" + "p" * 8_000, headers={"x-user-id": "u"}),
    }
    sent = [request for request in odd.values() for _ in range(REPEATS)]
    answers = await stage.send(sent)
    assert {a.status for a in answers} == {200}
    by_case = {name: answers[i * REPEATS : (i + 1) * REPEATS] for i, name in enumerate(odd)}
    for name in ("no_unit", "no_unit_empty", "invalid_unit"):
        assert {(a.variant, a.pod) for a in by_case[name]} == {("", "v1")}
    # Stamped, but where a busy machine missed Envoy's deadline.
    assert {a.variant for a in by_case["two_units"]} <= {expected_variant(snapshot, "first"), ""}
    assert len({a.variant for a in by_case["not_utf8"]} - {""}) == 1
    assert any(a.variant for a in by_case["long_path"])
    await wait_for(lambda: fake.target_total("no_unit") >= 2 * REPEATS, "no unit is counted")
    await wait_for(lambda: fake.target_total("invalid_unit") >= REPEATS, "a long unit is counted")
    await wait_for(lambda: fake.target_total("duplicate_unit") >= REPEATS, "two units are counted")
    assert fake.target_total("no_unit") == 2 * REPEATS
    assert fake.target_total("invalid_unit") == fake.target_total("duplicate_unit") == REPEATS


async def test_unit_in_a_cookie_is_sticky_when_other_cookies_are_around_it(stage: Stage) -> None:
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    snapshot = one_experiment(v1, v2, {"v2": 0.5}, unit=Unit(cookie="uid"))
    await stage.envoy(snapshot)
    await stage.sidecar(snapshot=snapshot)

    async def stamped() -> bool:
        return bool((await stage.send([Request(headers={"cookie": "uid=a"})]))[0].variant)

    await wait_for(stamped, "a request is stamped")
    users = [f"user-{i}" for i in range(100)]
    answers = await stage.send(
        Request(headers={"cookie": f"a=uid; uid={user}; xuid=other"}) for user in users
    )
    given = [(a.variant, u) for a, u in zip(answers, users, strict=True) if a.variant]
    assert len(given) > 0.5 * len(users)
    assert all(variant == expected_variant(snapshot, user) for variant, user in given)
