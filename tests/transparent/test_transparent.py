"""Two pods behind intercepting Envoys: split, stickiness, addresses, one decision, no loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sidecar.hashing import bucket
from tests.integration.snapshots import CONTROL, EXPERIMENT, SALT, TARGET
from tests.integration.waiting import wait_for
from tests.transparent.stage import (
    CLIENT,
    ENVOY_PORT,
    INTERCEPT,
    KEY,
    PORT,
    V1,
    V2,
    Host,
    Network,
)
from turnout import contract
from turnout.contract import BUCKET_COUNT, LAYER_MODELS, SNAPSHOT_FORMAT
from turnout.v1alpha1.common_pb2 import Upstream
from turnout.v1alpha1.snapshot_pb2 import BucketRange, ClusterPlan, Snapshot, TargetPlan

PATH = "/v2/models/fraud/infer"
OTHER_PATH = "/elsewhere"
USERS = 400
SHARE = 0.3
ANSWERS = "turnout_sidecar_answers_total{"
DECIDED = "turnout_sidecar_decided_total{"


def cluster(address: str) -> ClusterPlan:
    """A pod's cluster."""
    upstream = Upstream(address=f"{address}:{PORT}", health_path="/healthz")
    return ClusterPlan(cluster=f"turnout.{TARGET}.{address.replace('.', '')}", upstream=upstream)


def snapshot() -> Snapshot:
    """v1 is the baseline, v2 gets SHARE of the users; both pods have the same snapshot."""
    plan = Snapshot(format=SNAPSHOT_FORMAT, tenant="risk", version=1)
    target = TargetPlan(name=TARGET, hosts=["*"], path_prefix="/v2/models", baseline=cluster(V1))
    target.timeout.FromSeconds(30)
    plan.targets.append(target)
    experiment = plan.experiments.add(
        name=EXPERIMENT,
        epoch=1,
        epoch_start_unix_ms=1,
        target=TARGET,
        layer=LAYER_MODELS,
        salt=SALT,
    )
    experiment.unit.header = "x-user-id"
    cut = round(SHARE * BUCKET_COUNT)
    whole = BucketRange(start=cut, end=BUCKET_COUNT)
    experiment.variants.add(name=CONTROL, control=True, ranges=[whole], cluster=cluster(V1))
    experiment.variants.add(name="v2", ranges=[BucketRange(start=0, end=cut)], cluster=cluster(V2))
    return plan


# One network for all tests, in their order: Envoys and sidecars take seconds to be ready.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network() -> AsyncIterator[Network]:
    async with Network() as network:
        await network.v1.model("v1")
        await network.v2.model("v2")
        for host in (network.v1, network.v2):
            await host.proxy(snapshot())
        for host, other in ((network.v1, V2), (network.v2, V1)):
            await enrolling(network, host, other)
        yield network


async def enrolling(network: Network, host: Host, other: str) -> None:
    """Wait until a pod's sidecar splits: a user of the other pod's variant is sent there."""
    low = other == V2
    user = next(u for u in map(str, range(10_000)) if in_v2(f"warm-{u}") is low)

    async def split() -> bool:
        (answer,) = await network.client.ask(host.address, [request(f"warm-{user}")])
        return "x-variant" in answer["headers"]

    await wait_for(split, f"{host.name} splits")


def in_v2(user: str) -> bool:
    """Whose variant is v2."""
    return bucket(SALT.encode(), user.encode()) < SHARE * BUCKET_COUNT


def request(user: str, path: str = PATH, **headers: str) -> dict[str, Any]:
    """One request of a user."""
    return {"path": path, "headers": {"x-user-id": user, **headers}}


async def counts(network: Network) -> Counter[str]:
    """Requests that each model has answered."""
    found: Counter[str] = Counter()
    for host in (network.v1, network.v2):
        # Asked beside Envoy, on the loopback that is not intercepted.
        (answer,) = await host.ask("127.0.0.1", [{"path": "/count", "headers": {}}])
        found[answer["body"]["pod"]] = answer["body"]["count"]
    return found


async def streams(host: Host) -> int:
    """Requests that this Envoy asked its sidecar about."""
    assert host.envoy is not None
    return (await host.envoy.ext_proc())["streams_started"]


def total(metrics: dict[str, float], name: str, outcome: str = "") -> float:
    """A counter over all its labels, or those of one outcome."""
    wanted = f'outcome="{outcome}"' if outcome else ""
    return sum(v for k, v in metrics.items() if k.startswith(name) and wanted in k)


async def settle(host: Host) -> dict[str, float]:
    """What the sidecar has told of its answers, when it has told of all that it was asked."""

    async def told() -> dict[str, float] | None:
        metrics = await host.metrics()
        answered = total(metrics, ANSWERS, "answered")
        if answered + await unstamped(host) < await streams(host):
            return None
        peer, waiting = total(metrics, ANSWERS, "peer"), total(metrics, ANSWERS, "waiting")
        decided = total(metrics, DECIDED)
        # The workers' counters in shared memory are read a moment after what they tell.
        return {"peer": peer, "decided": decided} if decided + peer + waiting == answered else None

    return await wait_for(told, f"{host.name} tells of all its answers")


def assert_split(users: list[str], answers: list[dict[str, Any]], called: str = "v1") -> None:
    """Everybody was served by the own variant; who was not decided, by the pod that was called."""
    stamped = 0
    for user, answer in zip(users, answers, strict=True):
        stamped += "x-variant" in answer["headers"]
        own = "v2" if in_v2(user) else "v1"
        expected = own if "x-variant" in answer["headers"] else called
        assert answer["body"]["pod"] == expected, user
    assert stamped > len(users) / 2


async def unstamped(host: Host) -> int:
    """Requests that this Envoy let pass without an answer: a busy machine's, after 50 ms."""
    assert host.envoy is not None
    return (await host.envoy.ext_proc())["failure_mode_allowed"]


async def test_users_are_split_and_decided_once_when_both_pods_intercept(network: Network) -> None:
    """The client calls v1's own address; who is in v2 is served by v2's model, and nobody twice."""
    v1, v2 = network.v1, network.v2
    before, told = await counts(network), await settle(v2)
    asked, missed = (
        [await streams(v1), await streams(v2)],
        [await unstamped(v1), await unstamped(v2)],
    )
    users = [f"u{i}" for i in range(USERS)]
    answers = await network.client.ask(V1, [request(user) for user in users * 2])
    assert {answer["status"] for answer in answers} == {200}
    plain = 0
    for user, answer in zip(users * 2, answers, strict=True):
        if "x-variant" in answer["headers"]:
            expected = ("v2", "v2") if in_v2(user) else (CONTROL, "v1")
            assert (answer["headers"]["x-variant"], answer["body"]["pod"]) == expected, user
        else:
            plain += 1
            assert answer["body"]["pod"] == "v1", user
    assert plain == await unstamped(v1) - missed[0]
    assert plain < USERS / 10, "almost all are split"

    # No loop, nothing twice: each model has answered exactly what came back from it.
    served = Counter(answer["body"]["pod"] for answer in answers)
    assert await counts(network) - before == served
    # v1's sidecar was asked about all, v2's about what came to it; and it has believed every mark,
    # and assigned nobody who had one.
    assert await streams(v1) - asked[0] == 2 * USERS
    assert await streams(v2) - asked[1] == served["v2"]
    settled = await settle(v2)
    believed = settled["peer"] - told["peer"]
    # Envoy may have stopped waiting for an answer that was given all the same.
    assert served["v2"] - (await unstamped(v2) - missed[1]) <= believed <= served["v2"]
    assert settled["decided"] == told["decided"]


async def test_models_see_who_called_when_envoy_is_between(network: Network) -> None:
    """Beside its Envoy a model sees the client's own address; behind a peer's, in a header."""
    local = next(f"u{i}" for i in range(USERS) if not in_v2(f"u{i}"))
    remote = next(f"u{i}" for i in range(USERS) if in_v2(f"u{i}"))

    async def asked() -> list[dict[str, Any]] | None:
        paths = [request(local), request(remote), request(local, OTHER_PATH)]
        answers = await network.client.ask(V1, paths)
        return answers if answers[1]["body"]["pod"] == "v2" else None

    here, there, elsewhere = await wait_for(asked, "a request that is stamped")
    assert here["body"]["pod"] == elsewhere["body"]["pod"] == "v1"
    assert here["body"]["peer"] == elsewhere["body"]["peer"] == CLIENT
    assert "x-variant" not in elsewhere["headers"]
    assert there["body"]["pod"] == "v2"
    assert there["body"]["peer"] == V1
    assert there["body"]["headers"]["x-forwarded-for"].split(",")[0].strip() == CLIENT
    assert contract.HEADER_HOP not in there["body"]["headers"]
    assert contract.HEADER_HOP not in elsewhere["body"]["headers"]


async def test_clients_mark_is_not_believed_when_it_is_none_of_a_peers(network: Network) -> None:
    """A forged mark, a health check's, and one under another key change nobody's variant."""
    from sidecar.tokens import HopMarks

    users = [f"u{i}" for i in range(40)]
    foreign = HopMarks(bytes(32), "risk")
    assert bytes(32) != KEY
    marks = ["1", contract.HOP_HEALTH, "66b0f0f0.0123456789abcdef"]
    marks.append(foreign.make(b"", 1_790_000_000.0).decode())
    for mark in marks:
        marked = {contract.HEADER_HOP: mark}
        answers = await network.client.ask(V1, [request(user, **marked) for user in users])
        assert_split(users, answers)


async def test_called_pod_serves_when_its_sidecar_is_dead(network: Network) -> None:
    """Fail-open is the pod that was called, with its client's address; and all is well after."""
    users = [f"u{i}" for i in range(60)]
    await network.v1.kill_sidecar()
    answers = await network.client.ask(V1, [request(user) for user in users])
    assert {(a["status"], a["body"]["pod"], a["body"]["peer"]) for a in answers} == {
        (200, "v1", CLIENT)
    }
    assert not any("x-variant" in answer["headers"] for answer in answers)
    await network.v1.start_sidecar()
    await enrolling(network, network.v1, V2)
    await network.v2.kill_sidecar()
    answers = await network.client.ask(V1, [request(user) for user in users])
    assert_split(users, answers)
    await network.v2.start_sidecar()
    await enrolling(network, network.v2, V1)


async def test_candidate_is_split_when_it_is_called_by_its_own_address(network: Network) -> None:
    """Whoever calls v2 calls the same target: control's users are served by v1, not sent back."""
    before = await counts(network)
    users = [f"u{i}" for i in range(60)]
    answers = await network.client.ask(V2, [request(user) for user in users])
    assert_split(users, answers, called="v2")
    assert await counts(network) - before == Counter(a["body"]["pod"] for a in answers)


async def test_envoy_is_not_called_by_its_own_port_when_it_intercepts(network: Network) -> None:
    """Its connection to "where the client wanted to go" would come back to it, for ever."""
    with pytest.raises(AssertionError, match=r"[Tt]imed? ?out|timeout"):
        await network.client.run(
            "curl", "-sS", "--max-time", "2", f"http://{V1}:{ENVOY_PORT}{PATH}"
        )


@pytest.mark.parametrize("port", ["", "0", "080", "65536", "http"])
async def test_intercept_touches_nothing_when_a_port_is_none(network: Network, port: str) -> None:
    before = await network.v1.run("iptables", "-t", "mangle", "-S")
    with pytest.raises(AssertionError, match="is not a port"):
        await network.v1.run(INTERCEPT, "add", str(PORT), port)
    assert await network.v1.run("iptables", "-t", "mangle", "-S") == before


async def test_pod_is_reached_as_before_when_interception_is_removed(network: Network) -> None:
    """`intercept remove` leaves nothing behind."""
    await network.v1.run(INTERCEPT, "remove")
    answers = await network.client.ask(V1, [request(f"u{i}") for i in range(20)])
    assert {(a["body"]["pod"], a["body"]["peer"]) for a in answers} == {("v1", CLIENT)}
    assert not any("x-variant" in answer["headers"] for answer in answers)
    rules = await network.v1.run("iptables", "-t", "mangle", "-S")
    assert "TURNOUT" not in rules + await network.v1.run("iptables", "-t", "nat", "-S")
    assert "133" not in await network.v1.run("ip", "rule")
