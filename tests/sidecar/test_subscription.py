"""What the sidecar says to the control plane, and what it serves."""

from __future__ import annotations

import pytest

from sidecar.snapshotcheck import InvalidSnapshot
from sidecar.subscription import (
    BACKOFF_CAP_S,
    STALE_AFTER_MS,
    Acked,
    Apply,
    Backoff,
    ConfigState,
    Effect,
    Identity,
    Persist,
    PersistTombstones,
    Send,
    Subscription,
)
from tests.sidecar.samples import KEY, snapshot
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import SnapshotAck, StreamResponse
from turnout.v1alpha1.snapshot_pb2 import Snapshot

IDENTITY = Identity("node-1", "i-1", "risk", "0.1")


def subscription() -> Subscription:
    return Subscription(IDENTITY)


def push(message: Snapshot, nonce: str = "n1", *, version: int | None = None) -> StreamResponse:
    response = StreamResponse()
    response.snapshot.version = message.version if version is None else version
    response.snapshot.nonce = nonce
    response.snapshot.snapshot = message.SerializeToString()
    response.snapshot.tenant_key = KEY
    return response


def version_of(number: int, epoch: int = 1) -> Snapshot:
    message = snapshot(epoch=epoch)
    message.version = number
    return message


def tombstones(*epochs: int) -> StreamResponse:
    response = StreamResponse()
    response.tombstones.SetInParent()
    for epoch in epochs:
        response.tombstones.tombstones.add(experiment="fraud-v2", epoch=epoch)
    return response


def acks(effects: list[Effect]) -> list[SnapshotAck]:
    return [effect.message.ack for effect in effects if isinstance(effect, Send)]


def applies(effects: list[Effect]) -> list[Apply]:
    return [effect for effect in effects if isinstance(effect, Apply)]


def order_of(effects: list[Effect]) -> int:
    [apply] = applies(effects)
    return apply.order


def serving(number: int = 1) -> Subscription:
    machine = subscription()
    machine.connected(0)
    machine.applied(order_of(machine.received(push(version_of(number)), 0)))
    return machine


# -- Hello ----------------------------------------------------------------------------------------


def test_hello_says_who_and_what_is_served_when_connected() -> None:
    machine = serving(5)
    machine.received(tombstones(3), 0)
    machine.disconnected(1, jitter=0.5)
    [effect] = machine.connected(2)
    assert isinstance(effect, Send)
    hello = effect.message.hello
    assert (hello.node, hello.instance_id, hello.tenant) == ("node-1", "i-1", "risk")
    assert (hello.applied_version, hello.code_version, hello.snapshot_format) == (5, "0.1", 1)
    assert [(t.experiment, t.epoch) for t in hello.tombstones] == [("fraud-v2", 3)]


# -- Snapshots ------------------------------------------------------------------------------------


def test_snapshot_is_applied_first_and_acknowledged_when_it_serves() -> None:
    machine = subscription()
    machine.connected(0)
    message = version_of(1)
    [apply] = machine.received(push(message), 0)
    assert isinstance(apply, Apply)
    assert (apply.snapshot, apply.tenant_key, apply.dead) == (message, KEY, {})
    assert machine.version == 0
    persist, send = machine.applied(apply.order)
    assert persist == Persist(message.SerializeToString(), KEY)
    assert isinstance(send, Send)
    assert send.message.ack == SnapshotAck(version=1, nonce="n1")
    assert machine.version == 1
    assert machine.applied(apply.order) == []


def test_snapshot_is_refused_with_every_violation_when_it_is_invalid() -> None:
    machine = serving(1)
    bad = version_of(2)
    bad.experiments[0].salt = ""
    bad.experiments[0].variants[1].parameters["a"] = "\n"
    effects = machine.received(push(bad, "n2"), 0)
    [nack] = acks(effects)
    assert len(effects) == 1
    assert (nack.version, nack.nonce) == (2, "n2")
    assert [violation.field for violation in nack.violations] == [
        "experiments[0].salt",
        "experiments[0].variants[1].parameters[a]",
    ]
    assert machine.version == 1
    assert machine.state(0) is ConfigState.STALE
    machine.applied(order_of(machine.received(push(version_of(3), "n3"), 0)))
    assert machine.state(0) is ConfigState.CURRENT


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("snapshot", {"snapshot": b"\xff"}),
        ("version", {"version": 9}),
        ("tenant_key", {"tenant_key": b"short"}),
    ],
)
def test_push_is_refused_when_its_parts_do_not_fit(field: str, change: dict[str, object]) -> None:
    machine = serving()
    response = push(version_of(2), "n2")
    for name, value in change.items():
        setattr(response.snapshot, name, value)
    [nack] = acks(machine.received(response, 0))
    assert [violation.field for violation in nack.violations] == [field]
    assert b"short".hex() not in str(nack)
    assert "short" not in str(nack), "a key is never repeated"


def test_violations_are_cut_short_when_there_are_very_many() -> None:
    bad = version_of(2)
    for number in range(300):
        bad.targets.add(name=f"T{number}")
    [nack] = acks(serving().received(push(bad), 0))
    assert len(nack.violations) == 101
    assert nack.violations[-1].rule.startswith("and ")


def test_snapshot_is_acknowledged_at_once_when_it_serves_already() -> None:
    machine = serving(1)
    machine.disconnected(0, jitter=0)
    machine.connected(0)
    [send] = machine.received(push(version_of(1), "n9"), 0)
    assert isinstance(send, Send)
    assert send.message.ack == SnapshotAck(version=1, nonce="n9")


def test_newer_snapshot_alone_is_acknowledged_when_the_older_was_passed_over() -> None:
    machine = serving(1)
    older = order_of(machine.received(push(version_of(2), "n2"), 0))
    newer = order_of(machine.received(push(version_of(3), "n3"), 0))
    assert [ack.version for ack in acks(machine.applied(newer))] == [3]
    assert machine.applied(older) == []
    assert machine.version == 3


def test_older_version_is_served_when_the_control_plane_went_back() -> None:
    machine = serving(5)
    machine.applied(order_of(machine.received(push(version_of(4), "n4"), 0)))
    assert machine.version == 4


def test_snapshot_is_nacked_and_the_old_one_is_ordered_again_when_the_workers_fail() -> None:
    machine = serving(1)
    order = order_of(machine.received(push(version_of(2), "n2"), 0))
    effects = machine.failed(order, "no memory")
    [nack] = acks(effects)
    assert [violation.rule for violation in nack.violations] == ["no memory"]
    [again] = applies(effects)
    assert again.snapshot.version == machine.version == 1
    assert machine.failed(order, "twice") == []
    assert machine.state(0) is ConfigState.STALE
    assert machine.applied(again.order) == []


def test_tombstones_hold_when_the_snapshot_that_came_with_them_fails() -> None:
    machine = serving(1)
    message = version_of(2, epoch=2)
    message.tombstones.add(experiment="fraud-v2", epoch=1)
    [apply] = applies(machine.received(push(message, "n2"), 0))
    [again] = applies(machine.failed(apply.order, "a bug"))
    assert again.snapshot.version == 1
    assert again.dead == {"fraud-v2": 1}
    assert machine.failed(again.order, "a bug") == [], "it does not go round in circles"


def test_orders_are_bounded_when_the_workers_confirm_nothing() -> None:
    machine = serving(1)
    orders = [
        order_of(machine.received(push(version_of(number), f"n{number}"), 0))
        for number in range(2, 50)
    ]
    assert machine.applied(orders[0]) == []
    assert [ack.version for ack in acks(machine.applied(orders[-1]))] == [49]


# -- Disk -----------------------------------------------------------------------------------------


def test_snapshot_from_disk_serves_and_is_not_written_again() -> None:
    machine = subscription()
    payload = version_of(4).SerializeToString()
    [apply] = machine.loaded(payload, KEY, [Tombstone(experiment="x", epoch=1)], now_ms=0)
    assert isinstance(apply, Apply)
    assert apply.dead == {"x": 1}
    assert machine.applied(apply.order) == []
    assert machine.version == 4
    assert machine.state(1) is ConfigState.CACHED


def test_tombstones_from_disk_hold_when_the_snapshot_there_is_refused() -> None:
    machine = subscription()
    with pytest.raises(InvalidSnapshot):
        machine.loaded(b"\xff", KEY, [Tombstone(experiment="fraud-v2", epoch=1)], now_ms=0)
    [apply] = machine.received(push(version_of(2)), 0)
    assert isinstance(apply, Apply)
    assert apply.dead == {"fraud-v2": 1}


# -- Tombstones -----------------------------------------------------------------------------------


def test_tombstone_is_in_force_before_it_is_on_disk() -> None:
    machine = serving(1)
    apply, persist = machine.received(tombstones(1), 0)
    assert isinstance(apply, Apply)
    assert apply.dead == {"fraud-v2": 1}
    assert isinstance(persist, PersistTombstones)
    assert [t.epoch for t in persist.tombstones.tombstones] == [1]


def test_tombstones_change_nothing_when_they_are_known() -> None:
    machine = serving(1)
    machine.received(tombstones(2), 0)
    assert machine.received(tombstones(2, 1), 0) == []
    assert machine.dead == {"fraud-v2": 2}


def test_tombstone_reaches_the_snapshot_that_is_on_its_way() -> None:
    machine = serving(1)
    first = order_of(machine.received(push(version_of(2), "n2"), 0))
    second = machine.received(tombstones(1), 0)[0]
    assert isinstance(second, Apply)
    assert (second.snapshot.version, second.dead) == (2, {"fraud-v2": 1})
    assert [ack.version for ack in acks(machine.applied(first))] == [2]
    assert machine.applied(second.order) == [], "a push is answered once"


def test_tombstones_of_a_snapshot_stay_when_a_later_one_lacks_them() -> None:
    machine = serving(1)
    with_stone = version_of(2)
    with_stone.tombstones.add(experiment="fraud-v2", epoch=1)
    apply, persist = machine.received(push(with_stone, "n2"), 0)
    assert isinstance(apply, Apply)
    assert isinstance(persist, PersistTombstones)
    [later] = machine.received(push(version_of(3), "n3"), 0)
    assert isinstance(later, Apply)
    assert apply.dead == later.dead == {"fraud-v2": 1}


# -- Connection -----------------------------------------------------------------------------------


def test_backoff_doubles_to_its_cap_with_full_jitter_when_connecting_fails() -> None:
    machine = subscription()
    delays = []
    for attempt in range(30):
        [effect] = machine.disconnected(attempt, jitter=0.5)
        assert isinstance(effect, Backoff)
        delays.append(effect.delay_s)
    assert delays[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0]
    assert set(delays[7:]) == {BACKOFF_CAP_S / 2}
    assert machine.disconnected(99, jitter=0.0) == [Backoff(0.0)]


def test_backoff_starts_over_only_when_the_control_plane_answered() -> None:
    machine = subscription()
    for _ in range(5):
        machine.disconnected(0, jitter=1.0)
    machine.connected(0)
    assert machine.disconnected(0, jitter=1.0) == [Backoff(16.0)]
    machine.connected(0)
    machine.received(tombstones(), 0)
    assert machine.disconnected(0, jitter=1.0) == [Backoff(0.5)]


def test_state_tells_how_far_the_snapshot_can_be_trusted() -> None:
    machine = subscription()
    assert machine.state(0) is ConfigState.NO_SNAPSHOT
    machine = serving(1)
    assert machine.state(0) is ConfigState.CURRENT
    machine.disconnected(1_000, jitter=0.0)
    assert machine.state(1_000) is ConfigState.CACHED
    machine.disconnected(200_000, jitter=0.0)
    assert machine.state(1_000 + STALE_AFTER_MS - 1) is ConfigState.CACHED
    assert machine.state(1_000 + STALE_AFTER_MS) is ConfigState.STALE
    machine.connected(400_000)
    assert machine.state(400_000) is ConfigState.STALE, "connected is not yet heard"
    machine.received(tombstones(), 400_001)
    assert machine.state(400_001) is ConfigState.CURRENT


def test_delta_is_acknowledged_under_the_instance_that_made_it() -> None:
    machine = serving()
    response = StreamResponse()
    response.delta_ack.instance_id, response.delta_ack.seq = "i-1", 7
    assert machine.received(response, 0) == [Acked("i-1", 7)]
    response.delta_ack.instance_id = "i-0"
    assert machine.received(response, 0) == [Acked("i-0", 7)]
    assert machine.received(StreamResponse(), 0) == []
