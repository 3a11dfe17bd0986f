"""Whatever the control plane, the disk and the workers do, nothing bad is served."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.outcome import Outcome
from sidecar.plan import Plan
from sidecar.snapshotcheck import InvalidSnapshot, validate
from sidecar.subscription import (
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
from tests.sidecar.samples import KEY, ask, snapshot
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.config_service_pb2 import StreamResponse
from turnout.v1alpha1.snapshot_pb2 import Snapshot

EPOCHS = st.integers(1, 6)


class Machine(RuleBasedStateMachine):
    """A subscription, and beside it what may be served by the plainest bookkeeping."""

    def __init__(self) -> None:
        super().__init__()
        self.subscription = Subscription(Identity("n", "i", "risk", "0"))
        self.now_ms = 0
        self.pushes = 0
        self.buried = 0
        self.orders: list[Apply] = []
        self.plan: Plan | None = None
        self.plan_epoch = 0
        self.serving = b""
        self.on_disk = b""
        self.tombstones_on_disk = 0
        self.awaited: dict[str, tuple[int, bool]] = {}  # nonce -> version, it can serve
        self.fresh = True

    # -- Events -----------------------------------------------------------------------------------

    @precondition(lambda self: self.fresh)
    @rule(epoch=EPOCHS, tombstone=st.integers(0, 4), valid=st.booleans())
    def start_from_disk(self, epoch: int, tombstone: int, valid: bool) -> None:
        self.fresh = False
        self.bury(tombstone)
        stones = [Tombstone(experiment="fraud-v2", epoch=tombstone)] if tombstone else []
        self.tombstones_on_disk = tombstone
        message = self.message(epoch, valid=valid)
        try:
            effects = self.subscription.loaded(
                message.SerializeToString(), KEY, stones, now_ms=self.now_ms
            )
        except InvalidSnapshot:
            assert not valid
        else:
            self.carry_out(effects)

    @rule(epoch=EPOCHS, stone=st.integers(0, 6), valid=st.booleans())
    def control_pushes(self, epoch: int, stone: int, valid: bool) -> None:
        self.fresh = False
        message = self.message(epoch, valid=valid)
        if stone:
            message.tombstones.add(experiment="fraud-v2", epoch=stone)
        if valid:
            self.bury(stone)
        response = StreamResponse()
        response.snapshot.version = message.version
        response.snapshot.nonce = f"n{self.pushes}"
        response.snapshot.snapshot = message.SerializeToString()
        response.snapshot.tenant_key = KEY
        self.awaited[response.snapshot.nonce] = (message.version, valid)
        self.carry_out(self.subscription.received(response, self.now_ms))

    @rule(stone=EPOCHS)
    def control_buries(self, stone: int) -> None:
        self.fresh = False
        self.bury(stone)
        response = StreamResponse()
        response.tombstones.tombstones.add(experiment="fraud-v2", epoch=stone)
        self.carry_out(self.subscription.received(response, self.now_ms))

    @precondition(lambda self: self.orders)
    @rule(last=st.booleans())
    def workers_obey(self, last: bool) -> None:
        """In order, or all but the newest passed over."""
        order = self.orders[-1 if last else 0]
        self.orders = [] if last else self.orders[1:]
        self.plan = Plan.build(
            order.snapshot, tenant_key=order.tenant_key, dead=order.dead, open_gates=None, slots={}
        )
        self.plan_epoch = order.snapshot.experiments[0].epoch
        self.serving = order.payload
        self.carry_out(self.subscription.applied(order.order))

    @precondition(lambda self: self.orders and self.orders[0].payload != self.serving)
    @rule()
    def workers_fail(self) -> None:
        order = self.orders.pop(0)
        for nonce, (version, _) in self.awaited.items():
            if version == order.snapshot.version:
                self.awaited[nonce] = (version, False)
        self.carry_out(self.subscription.failed(order.order, "a bug"))

    @rule()
    def stream_opens(self) -> None:
        self.fresh = False
        self.carry_out(self.subscription.connected(self.now_ms))

    @rule(jitter=st.floats(0, 1, exclude_max=True), passed_ms=st.integers(0, 400_000))
    def stream_ends(self, jitter: float, passed_ms: int) -> None:
        self.fresh = False
        self.now_ms += passed_ms
        self.carry_out(self.subscription.disconnected(self.now_ms, jitter=jitter))

    # -- What must hold ---------------------------------------------------------------------------

    @invariant()
    def no_tombstone_is_forgotten(self) -> None:
        assert self.subscription.dead.get("fraud-v2", 0) == self.buried
        assert self.tombstones_on_disk == self.buried

    @invariant()
    def every_order_knows_every_tombstone(self) -> None:
        if self.orders:
            assert self.orders[-1].dead.get("fraud-v2", 0) == self.buried

    @invariant()
    def nothing_tombstoned_is_served_when_the_workers_have_caught_up(self) -> None:
        if self.plan is None or self.orders:
            return
        answer = ask(self.plan, ("x-user-id", b"u"))
        dead = self.plan_epoch <= self.buried
        assert (answer.outcome is Outcome.STAMPED) is not dead

    @invariant()
    def state_says_whether_something_is_served(self) -> None:
        state = self.subscription.state(self.now_ms)
        assert (state is ConfigState.NO_SNAPSHOT) == (self.plan is None)

    # -- Bookkeeping ------------------------------------------------------------------------------

    def message(self, epoch: int, *, valid: bool) -> Snapshot:
        self.pushes += 1
        message = snapshot(epoch=epoch)
        message.version = self.pushes
        if not valid:
            message.experiments[0].variants[1].name = "v;2"
        return message

    def bury(self, epoch: int) -> None:
        self.buried = max(self.buried, epoch)

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Apply):
                assert validate(effect.snapshot) == []
                assert effect.snapshot == Snapshot.FromString(effect.payload)
                self.orders.append(effect)
            elif isinstance(effect, Persist):
                assert effect.payload == self.serving, "only what serves is kept"
                self.on_disk = effect.payload
            elif isinstance(effect, PersistTombstones):
                [stone] = effect.tombstones.tombstones
                assert stone.epoch >= self.tombstones_on_disk
                self.tombstones_on_disk = stone.epoch
            elif isinstance(effect, Send):
                self.check_said(effect)
            elif isinstance(effect, Backoff):
                assert 0 <= effect.delay_s < 30

    def check_said(self, send: Send) -> None:
        if send.message.HasField("hello"):
            assert max([t.epoch for t in send.message.hello.tombstones], default=0) == self.buried
            return
        ack = send.message.ack
        version, valid = self.awaited.pop(ack.nonce)
        assert ack.version == version
        assert valid is not bool(ack.violations), "valid is acknowledged, invalid is not, once"
        if valid:
            assert Snapshot.FromString(self.serving).version == ack.version


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=15, deadline=None)
