"""Outboxes are bounded, and the newest snapshot is what a slow sidecar gets."""

from __future__ import annotations

import pytest

from control import distribution as module
from control.distribution import Distribution
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import (
    FieldViolation,
    Hello,
    SnapshotAck,
    StreamResponse,
)

KEY = bytes(32)


def published(*versions: int) -> Distribution:
    """A distribution that has published these versions."""
    one = Distribution()
    one.set_key("t", KEY)
    for version in versions:
        one.publish("t", version, f"nonce-{version}", b"snapshot-%d" % version)
    return one


def hello(node: str = "n", instance: str = "i") -> Hello:
    """A Hello."""
    return Hello(node=node, instance_id=instance, tenant="t", snapshot_format=1)


async def test_slow_consumer_gets_the_newest_snapshot_when_several_were_published() -> None:
    """Versions in between are never sent."""
    one = published(1)
    outbox, _ = one.attach(hello(), now_ms=1)
    for version in (2, 3, 4):
        one.publish("t", version, f"nonce-{version}", b"snapshot-%d" % version)
    message = await outbox.take()
    assert message is not None
    response = StreamResponse.FromString(message[0])
    assert (response.snapshot.version, response.snapshot.snapshot) == (4, b"snapshot-4")
    assert response.snapshot.tenant_key == KEY
    outbox.close()
    assert await outbox.take() is None


async def test_all_streams_share_one_encoded_snapshot_when_it_is_published() -> None:
    """One object, whatever the number of sidecars."""
    one = published(1)
    outboxes = [one.attach(hello(f"n{n}"), now_ms=1)[0] for n in range(3)]
    messages = [await outbox.take() for outbox in outboxes]
    assert len({id(message[0]) for message in messages if message}) == 1


async def test_tombstones_go_before_the_snapshot_when_both_wait() -> None:
    """A sidecar that is busy with a big snapshot knows already what must not serve."""
    one = published(1)
    outbox, _ = one.attach(hello(), now_ms=1)
    one.publish_tombstones("t", [Tombstone(experiment="e", epoch=epoch) for epoch in (2, 1)])
    message = await outbox.take()
    assert message is not None
    response = StreamResponse.FromString(message[0])
    assert [(t.experiment, t.epoch) for t in response.tombstones.tombstones] == [("e", 2)]


async def test_acks_are_bounded_when_a_sidecar_does_not_read() -> None:
    """It sends unacknowledged batches again."""
    one = published()
    outbox, _ = one.attach(hello(), now_ms=1)
    for seq in range(module.ACKS_MAX + 10):
        outbox.put_ack("i", seq)
    message = await outbox.take()
    assert message is not None
    assert StreamResponse.FromString(message[0]).delta_ack.seq == 10


def test_version_is_refused_when_it_does_not_grow() -> None:
    """Our bug, not a sidecar's."""
    with pytest.raises(ValueError, match="version == 3, must be > 3"):
        published(3).publish("t", 3, "nonce", b"")


def test_acknowledgement_is_ignored_when_its_nonce_is_stale() -> None:
    """It answers a snapshot that has been replaced since."""
    one = published(1)
    _, state = one.attach(hello(), now_ms=1)
    first = one.current("t")
    assert first is not None
    one.sent(state, first, now_ms=0)
    assert not one.acknowledged(state, SnapshotAck(version=1, nonce="other"))
    assert state.acked_version == 0
    bad = FieldViolation(field="f", value="v", rule="r")
    assert one.acknowledged(state, SnapshotAck(version=1, nonce="nonce-1", violations=[bad]))
    assert (state.acked_version, len(state.nack)) == (0, 1)
    assert one.acknowledged(state, SnapshotAck(version=1, nonce="nonce-1"))
    assert (state.acked_version, len(state.nack)) == (1, 0)


def test_node_is_shown_connected_when_its_old_stream_ends_after_the_new_began() -> None:
    """The old connection is often noticed to be dead last."""
    one = published(1)
    old = one.attach(hello(instance="a"), now_ms=1)
    new = one.attach(hello(instance="b"), now_ms=2)
    one.detach(*old, now_ms=3)
    (shown,) = one.sidecars("t")
    assert shown.connected
    assert shown.instance_id == "b"
    one.detach(*new, now_ms=4)
    (shown,) = one.sidecars("t")
    assert not shown.connected


def test_node_that_was_away_longest_is_forgotten_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connected ones stay."""
    monkeypatch.setattr(module, "SIDECARS_MAX", 3)
    one = published(1)
    kept = one.attach(hello("kept"), now_ms=1)
    for node in ("a", "b", "c", "d"):
        one.detach(*one.attach(hello(node), now_ms=1), now_ms=2)
    assert [s.node for s in one.sidecars("t")] == ["kept", "c", "d"]
    assert kept[1].connected


def test_first_stream_is_shown_again_when_a_second_one_of_its_node_ends() -> None:
    """A sidecar started twice by mistake must not hide the one that serves."""
    one = published(1)
    _, first = one.attach(hello(instance="a"), now_ms=1)
    outbox, second = one.attach(hello(instance="b"), now_ms=2)
    assert one.connected("t") == [second]
    one.detach(outbox, second, now_ms=3)
    assert one.connected("t") == [first]
