"""Copies for a candidate that nobody is answered by."""

from __future__ import annotations

import hashlib
from collections import Counter

from sidecar.hashing import bucket
from tests.integration.fakecontrol import CountKey
from tests.integration.harness import (
    FakeControl,
    Request,
    Stage,
    one_experiment,
    one_target,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT, SALT
from turnout.contract import BUCKET_COUNT
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW

USERS = [f"user-{i}" for i in range(200)]
MEBIBYTE = 1024 * 1024


def _mirrored(user: str, fraction: float) -> bool:
    return bucket(SALT.encode(), user.encode()) < fraction * BUCKET_COUNT


async def _shadowing(stage: Stage, fraction: float) -> FakeControl:
    """Everybody in control; a share of them is copied to v2."""
    v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
    fake = await stage.fake_control()
    await stage.envoy(one_target(v1))
    await stage.sidecar(control=fake.address)
    snapshot = one_experiment(v1, v2, {"v2": 0.0}, shadow=("v2", fraction))
    fake.push(snapshot)
    await fake.serving(snapshot)
    unshadowed = next(f"probe-{i}" for i in range(1_000) if not _mirrored(f"probe-{i}", fraction))
    await stage.enrols(user=unshadowed)
    v1.seen.clear()
    return fake


async def test_mirrored_post_of_3_mb_arrives_whole_and_once(stage: Stage) -> None:
    await _shadowing(stage, 0.5)
    v1, v2 = stage.pods
    secret = {"authorization": "Bearer s", "cookie": "session=1"}
    bodies: dict[str, bytes] = {}
    stamped: set[str] = set()
    wanted: set[str] = set()
    # On a busy machine the sidecar may be late, and then nothing is copied: others are asked.
    while len(wanted) < 3 or wanted == stamped:
        some = {u: u.encode() * (3 * MEBIBYTE // len(u)) for u in USERS[len(bodies) :][:8]}
        assert some, f"of {len(bodies)} requests {len(stamped)} were stamped"
        answers = await stage.send(
            Request(headers={"x-user-id": user, **secret}, body=body) for user, body in some.items()
        )
        assert {(a.status, a.pod, a.variant) for a in answers} <= {
            (200, "v1", "control"),
            (200, "v1", ""),
        }
        bodies |= some
        stamped |= {u for u, a in zip(some, answers, strict=True) if a.variant}
        wanted = {user for user in stamped if _mirrored(user, 0.5)}
    digests = {hashlib.sha256(body).hexdigest(): user for user, body in bodies.items()}
    assert Counter(digests[s.body_sha256] for s in v1.seen) == dict.fromkeys(bodies, 1)
    await wait_for(lambda: len(v2.seen) >= len(wanted), "all copies arrived")
    assert Counter(digests[s.body_sha256] for s in v2.seen) == dict.fromkeys(wanted, 1)
    for seen in v2.seen:
        assert seen.headers["x-turnout-shadow-of"] == f"{EXPERIMENT};1;v2"
        assert not {"authorization", "cookie"} & set(seen.headers)
    for seen in v1.seen:
        assert seen.headers["authorization"] == "Bearer s"
        assert "x-turnout-shadow-of" not in seen.headers
    ids = {s.body_sha256: s.headers["x-request-id"] for s in v1.seen}
    assert all(ids[s.body_sha256] == s.headers["x-request-id"] for s in v2.seen)


async def test_crashing_shadow_never_counts_against_the_serving_variant(stage: Stage) -> None:
    fake = await _shadowing(stage, 0.5)
    _, v2 = stage.pods
    v2.status = 500
    answers = await stage.users(USERS)
    assert {(a.status, a.pod) for a in answers} == {(200, "v1")}
    wanted = sum(_mirrored(user, 0.5) for user, a in zip(USERS, answers, strict=True) if a.variant)
    stamped = sum(bool(a.variant) for a in answers)
    await wait_for(lambda: v2.requests >= wanted, "all copies arrived")
    # A pod that is gone altogether does no harm either.
    await v2.close()
    answers = await stage.users(USERS)
    assert {(a.status, a.pod) for a in answers} == {(200, "v1")}
    stamped += sum(bool(a.variant) for a in answers)

    def folded() -> bool:
        requests = fake.total("requests")
        return requests[_key("control", ROLE_SERVED)] >= stamped

    await wait_for(folded, "the served requests are folded")
    await wait_for(
        lambda: fake.total("errors")[_key("v2", ROLE_SHADOW)] >= wanted, "the copies are folded"
    )
    assert set(fake.total("errors")) == {_key("v2", ROLE_SHADOW)}
    assert fake.total("decided").keys() == {_key("control", ROLE_SERVED)}


def _key(variant: str, role: int) -> CountKey:
    return CountKey(EXPERIMENT, 1, variant, role)
