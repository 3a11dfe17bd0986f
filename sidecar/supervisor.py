"""The supervisor of one sidecar: puts the parts together and runs them.

Owns start and stop, the once-a-second collection of evidence, what is kept on disk, and the report.
Refuses to serve requests (workers do) and to decide anything that a pure module decides.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from sidecar.admin import Admin, EnvoyState
from sidecar.clock import monotonic_ms, now_ms
from sidecar.conductor import Conductor
from sidecar.config import Config, judge
from sidecar.deltas import DeltaLog, MalformedDelta, decode
from sidecar.disk import ENVOY_FILE, GATES_FILE, StateDir, StateError, new_key
from sidecar.envoydir import EnvoyDir
from sidecar.evidence import Evidence
from sidecar.gate import Gate
from sidecar.options import Options
from sidecar.snapshotcheck import InvalidSnapshot
from sidecar.snapshotfile import CorruptSnapshot
from sidecar.snapshotfile import decode as unframe
from sidecar.sockets import SocketError
from sidecar.spawning import Spawned, places
from sidecar.subscription import (
    Acked,
    Apply,
    Backoff,
    Effect,
    Identity,
    Persist,
    PersistTombstones,
    Send,
    Subscription,
)
from sidecar.unsent import Unsent, to_keep
from sidecar.unstamped import Accounted, EnvoyCounter, accounted_of, newest
from sidecar.workers import Workers
from turnout import __version__
from turnout.contract import GRPC_MESSAGE_BYTES_MAX
from turnout.v1alpha1.config_service_pb2 import (
    DeltaBatch,
    ExperimentGate,
    SidecarReport,
    StreamRequest,
    TombstoneSet,
)

_LOG = logging.getLogger(__name__)

COLLECT_S: Final = 1.0
BATCH_BYTES_MAX: Final = GRPC_MESSAGE_BYTES_MAX - 4_096
# Workers drain for 1.2 s; then they are killed.
STOP_WORKERS_S: Final = 4.0
# Many times what a worker needs on a busy machine.
COME_UP_S: Final = 20.0


class FileError(RuntimeError):
    """The file given by --snapshot cannot be served; the message says why."""


class Supervisor:
    """One sidecar."""

    def __init__(self, options: Options, spawned: Sequence[Spawned] = ()) -> None:
        """Open the directories; nothing is served or written before it is asked for.

        Args:
            options: Checked.
            spawned: Workers that were started already.

        Raises:
            StateError: The state directory cannot be used.
            EnvoyDirError: Envoy's directory cannot be used.
        """
        self.options = options
        self.state = StateDir(options.state_dir, lock=False) if options.state_dir else None
        # Whether state directory and Envoy's counters are ours: not while another still serves.
        self.owns = False
        # Another has taken over: what is left is to drain and to write down the last counts.
        self.handed_over = False
        self.config = Config(transparent=bool(options.local))
        identity = Identity(options.node, options.instance_id, options.tenant, __version__)
        self.subscription = Subscription(identity, judge=partial(judge, tenant=options.tenant))
        self.deltas = DeltaLog(options.instance_id)
        self.evidence = Evidence(envoy_counts=bool(options.envoy_admin))
        self.workers = Workers(
            places(options),
            on_delta=self._on_delta,
            on_change=self._on_change,
            spawned=spawned,
        )
        remembered = self.state.load_json(GATES_FILE) if self.state else None
        self.gate = Gate(watched=bool(options.envoy_admin), remembered=_latches(remembered))
        self.conductor = Conductor(
            self.config,
            self.workers,
            self.gate,
            envoy_dir=EnvoyDir(options.envoy_dir) if options.envoy_dir else None,
            admin=Admin(options.envoy_admin) if options.envoy_admin else None,
            local=options.local,
            on_look=self._on_look,
            on_step=self._tell,
        )
        # Set at every acknowledgement of a batch.
        self.acknowledged = asyncio.Event()
        self.malformed_deltas = 0
        self.state_error = ""
        self._counter: EnvoyCounter | None = None
        self._envoy_start_ms = 0
        # What earlier supervisors knew of their Envoys; of ours: in the newest batch, on disk.
        self._known: list[Accounted] = []
        self._accounted: Accounted | None = None
        self._saved_accounted: Accounted | None = None
        # Names of the batches that are on disk, or will be soon.
        self._kept: set[str] = set()
        self._to_save: dict[str, Callable[[StateDir], None]] = {}
        # One thread writes at a time; and one changes the order of what is to be written.
        self._disk = threading.Lock()
        self._ordering = threading.Lock()
        self._saving = asyncio.Event()
        self._latches: dict[str, list[str]] = {}
        self._confirming: set[asyncio.Future[None]] = set()
        # Set by whoever has a stream; without one, nothing is said.
        self.send: Callable[[StreamRequest], None] = lambda _message: None
        self.on_report: Callable[[], None] = lambda: None

    # -- Configuration ---------------------------------------------------------------------------

    def own(self) -> None:
        """Become the one that writes and counts, where the one before has left off.

        Raises:
            StateError: Another has the state directory, or it cannot be written.
        """
        if self.state is not None:
            self.state.lock()
            self._known = _accounted(self.state.load_json(ENVOY_FILE))
            self._load_unsent(self.state)
        self.owns = True
        self._saving.set()

    def load_state(self, *, strict: bool = False) -> None:
        """Serve what is on disk, if there is something.

        Args:
            strict: Another process serves it: better that one than nothing.

        Raises:
            StateError: It is refused, and `strict`.
        """
        if self.state is None:
            return
        self.gate.remember(_latches(self.state.load_json(GATES_FILE)))
        buried = self.state.load_tombstones()
        snapshot = self.state.load_snapshot()
        for problem in (*buried.problems, *snapshot.problems):
            _LOG.error("%s", problem)
        tombstones = TombstoneSet.FromString(buried.payload or b"").tombstones
        if snapshot.payload is None:
            self.perform(self.subscription.buried(tombstones))
            return
        key = self.state.load_key()
        if key is None:
            _LOG.error("the tenant's key is missing: unit hashes are others' until it comes")
            key = new_key()
        try:
            effects = self.subscription.loaded(
                snapshot.payload, key, tombstones, now_ms=monotonic_ms()
            )
        except InvalidSnapshot as error:
            if strict:
                raise StateError(f"the snapshot that is served is refused: {error}") from error
            _LOG.error("the snapshot on disk is not served: %s", error)
            return
        self.perform(effects)

    def _load_unsent(self, state: StateDir) -> None:
        """Take over what an earlier supervisor counted and could not send."""
        left, problems = state.load_unsent(self.options.tenant)
        for problem in problems:
            _LOG.error("%s", problem)
        self.deltas.carry((unsent.batch, unsent.accounted) for unsent in left)
        self._known += [unsent.accounted for unsent in left if unsent.accounted is not None]
        self._kept = {unsent.name for unsent in left}
        if left:
            _LOG.info("%d batch(es) of counts of an earlier run are still to be sent", len(left))

    def load_file(self) -> None:
        """Serve the file given by --snapshot; the one before serves on when it is refused.

        Raises:
            FileError: It cannot be read, is damaged, or is refused.
        """
        path = self.options.snapshot
        assert path is not None
        try:
            payload = unframe(path.read_bytes())
            key = self.config.key or self._own_key()
            effects = self.subscription.loaded(payload, key, (), now_ms=monotonic_ms())
        except OSError as error:
            why = error.strerror or error
            raise FileError(f"--snapshot {path}: {why}: `turnout snapshot` writes one") from error
        except CorruptSnapshot as error:
            raise FileError(f"{path} is not a snapshot file: {error}") from error
        except InvalidSnapshot as error:
            lines = [f"{v.field}: {v.rule} (is {v.value!r})" for v in error.violations]
            raise FileError("\n".join([f"{path} is refused:", *lines])) from error
        self.perform(effects)

    def _own_key(self) -> bytes:
        """The key of a sidecar that serves a file; a disk that takes no writes stops nothing."""
        if self.state is None:
            return new_key()
        try:
            return self.state.own_key()
        except OSError as error:
            _LOG.error(
                "the state directory %s cannot be written (%s): unit hashes and force tokens are "
                "others' after the next start",
                self.options.state_dir,
                error.strerror or error,
            )
            return new_key()

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out what the subscription says, in order."""
        for effect in effects:
            match effect:
                case Send(message):
                    self.send(message)
                case Apply():
                    self._apply(effect)
                case Persist(payload, tenant_key):
                    self._save_later("key", partial(StateDir.save_key, key=tenant_key))
                    self._save_later("snapshot", partial(StateDir.save_snapshot, payload=payload))
                case PersistTombstones(tombstones):
                    data = tombstones.SerializeToString(deterministic=True)
                    self._save_later("tombstones", partial(StateDir.save_tombstones, payload=data))
                case Acked(instance_id, seq):
                    self.deltas.ack(instance_id, seq)
                    self.acknowledged.set()
                case Backoff():
                    raise AssertionError("the stream waits, nobody else does")

    def rejected(self, batch: DeltaBatch, why: str) -> None:
        """Drop a batch that the control plane refuses, and count it."""
        self.deltas.ack(batch.instance_id, batch.seq)
        self.deltas.dropped += 1
        _LOG.error("a batch is dropped, the control plane refuses it: %s", why)

    def _apply(self, effect: Apply) -> None:
        """Workers get it now; the acknowledgement waits for them, nothing else does."""
        self.config.serve(effect.payload, effect.snapshot, effect.tenant_key, effect.dead)
        generation = self.conductor.changed()
        task = asyncio.ensure_future(self._confirm(generation, effect.order))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm(self, generation: int, order: int) -> None:
        await self.workers.served(generation)
        if errors := self.workers.errors:
            self.perform(self.subscription.failed(order, "; ".join(errors)))
        else:
            self.perform(self.subscription.applied(order))
            extra = {"version": self.subscription.version}
            _LOG.info("the workers serve the snapshot", extra=extra)
        self.on_report()

    # -- Run and stop ----------------------------------------------------------------------------

    async def prepared(self) -> None:
        """Wait until every worker has the newest plan, whether or not it serves yet.

        Raises:
            SocketError: They did not come up within the time that a start may take.
            StateError: They refuse the plan.
        """
        await self._until(lambda: self.workers.prepared)
        if errors := self.workers.errors:
            raise StateError(f"this version's workers refuse what is served: {'; '.join(errors)}")

    async def listening(self) -> None:
        """Wait until every worker has its socket.

        Raises:
            SocketError: They did not come up within the time that a start may take.
        """
        await self._until(lambda: self.workers.listening)

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(COME_UP_S):
                await self.workers.until(condition)
        except TimeoutError:
            raise SocketError(f"the workers did not come up within {COME_UP_S:g} s") from None

    def reload_state(self) -> bool:
        """Read again what another wrote until it froze; whether the workers get another plan."""
        if self.state is None or self.options.snapshot is not None:
            return False
        before = (self.config.payload, self.config.key, dict(self.config.dead))
        self.load_state(strict=True)
        return before != (self.config.payload, self.config.key, dict(self.config.dead))

    async def run(self) -> None:
        """Lead Envoy and workers, and keep the disk up to date, until cancelled."""
        # A part that fails is a bug: stop whole, rather than serve half.
        async with asyncio.TaskGroup() as group:
            group.create_task(self.conductor.run())
            group.create_task(self._keep_saving())

    async def settle(self) -> None:
        """Have everything on disk that another must know to take over.

        Raises:
            OSError: The disk is full, ...
        """
        if self.state is not None:
            await asyncio.to_thread(self._save_now, self.state)

    async def stop(self) -> None:
        """Let the workers drain."""
        await self.workers.stop(STOP_WORKERS_S, retire=self.handed_over)
        for task in self._confirming:
            task.cancel()
        await asyncio.gather(*self._confirming, return_exceptions=True)

    def close(self) -> None:
        """Write what is still to be written, and let go of files."""
        if self.state is not None and self.owns:
            left = len(self.deltas.pending())
            self._keep_unsent(self.state, all_=True)
            try:
                self._save_now(self.state)
                if left:
                    text = "%d batch(es) of counts were not acknowledged: the next start sends them"
                    _LOG.warning(text, left)
            except OSError as error:
                _LOG.error("the state directory cannot be written: %s", error)
                if left:
                    _LOG.error("%d batch(es) of counts were not acknowledged: lost", left)
        if self.state is not None:
            self.state.close()
        self.workers.close(keep_sockets=self.handed_over or not self.owns)

    # -- Evidence --------------------------------------------------------------------------------

    def collect(self, *, last: bool = False) -> None:
        """Merge everything since the last call into one numbered batch.

        Args:
            last: The workers are gone: nothing waits for what could still come.
        """
        # Who leaves is counted once more before its slot passes to another.
        served = self.workers.served_generation
        grown = self.workers.take_decided(self.config.counting())
        self.config.served(served)
        self.evidence.add_decided(grown, now_ms())
        delta = self.evidence.take(monotonic_ms(), last=last)
        if self._counter is not None:
            count = max(0, self._counter.last - self.evidence.unexplained)
            self._accounted = Accounted(self._envoy_start_ms, count)
        if self.options.control:
            # An empty batch says that this sidecar is alive and saw nothing.
            batch = self.deltas.append(delta, now_ms(), self._accounted)
            if batch.ByteSize() > BATCH_BYTES_MAX:
                # The control plane would refuse it for ever, and all that come after it.
                self.deltas.ack(batch.instance_id, batch.seq)
                self.deltas.dropped += 1
                _LOG.error("a batch of %d bytes is dropped", batch.ByteSize())
        if self.state is not None:
            self._keep_unsent(self.state)

    def _on_delta(self, payload: bytes) -> None:
        try:
            self.evidence.add_worker(decode(payload), monotonic_ms())
        except MalformedDelta as error:
            self.malformed_deltas += 1
            _LOG.error("a worker's delta is lost: %s", error)

    def _on_look(self, state: EnvoyState) -> None:
        if not self.owns:
            return  # the one before us still accounts for them
        self._envoy_start_ms = now_ms() - state.uptime_s * 1000
        if self._counter is None:
            self._counter = EnvoyCounter(accounted_of(self._known, self._envoy_start_ms))
        grown = self._counter.observe(state.unanswered, uptime_s=state.uptime_s)
        self.evidence.add_envoy(grown, monotonic_ms())

    def _keep_unsent(self, state: StateDir, *, all_: bool = False) -> None:
        """Keep on disk what a stop, or our death, must not lose; forget what is acknowledged.

        Together with how far Envoy's counter is in our batches: the next supervisor counts on from
        there, so that what it says must be acknowledged or on disk, and not both lost and said.
        """
        tenant = self.options.tenant
        pending = [Unsent(tenant, e.batch, e.accounted) for e in self.deltas.entries()]
        wanted = to_keep(pending, self.options.instance_id, all_=all_)
        names = {unsent.name for unsent in wanted}
        accounted = self._accounted or newest(self._known)
        same = accounted is None or accounted.is_same(self._saved_accounted)
        if same and names == self._kept:
            return
        self._kept, self._saved_accounted = names, accounted
        self._save_later("unsent", partial(_save_unsent, wanted=wanted, accounted=accounted))

    # -- Report ----------------------------------------------------------------------------------

    def report(self) -> SidecarReport:
        """This sidecar's state."""
        conductor = self.conductor
        problems = [p for p in (*conductor.rejections, conductor.file_error) if p]
        return SidecarReport(
            applied_version=self.subscription.version,
            gates=[
                ExperimentGate(
                    experiment=view.experiment,
                    epoch=view.epoch,
                    open=view.open or not self.gate.watched,
                    waiting_for=view.waiting_for if self.gate.watched else (),
                )
                for view in self.gate.views()
            ],
            config_state=self.subscription.state(monotonic_ms()),
            workers_ready=self.workers.ready,
            workers=self.workers.count,
            worker_restarts=self.workers.restarts,
            deltas_dropped=self.deltas.dropped,
            start_gate=self.gate.watched,
            start_gate_error=conductor.admin_error,
            envoy_rejections=problems,
        )

    def _on_change(self) -> None:
        """Workers moved on: perhaps the next step is due."""
        self.conductor.wake()
        self._tell()

    def _tell(self) -> None:
        """Something may have changed that others should know: the disk, the control plane."""
        latches = self.gate.latches()
        if latches != self._latches:
            self._latches = latches
            self._save_later(GATES_FILE, lambda state: state.save_json(GATES_FILE, latches))
        self.on_report()

    # -- Disk ------------------------------------------------------------------------------------

    def _save_later(self, name: str, write: Callable[[StateDir], None]) -> None:
        """Write soon; of several writes of one name the last counts."""
        if self.state is not None:
            # At the end again: writes happen in the order in which they were last asked for.
            with self._ordering:
                self._to_save.pop(name, None)
                self._to_save[name] = write
            self._saving.set()

    async def _keep_saving(self) -> None:
        """Write to disk behind everybody's back: a slow disk delays nothing else."""
        while True:
            await self._saving.wait()
            self._saving.clear()
            try:
                if self.state is not None and self.owns:
                    await asyncio.to_thread(self._save_now, self.state)
                self.state_error = ""
            except OSError as error:
                self.state_error = f"the state directory cannot be written: {error}"
                _LOG.error("%s", self.state_error)
                await asyncio.sleep(COLLECT_S)
                self._saving.set()

    def _save_now(self, state: StateDir) -> None:
        with self._disk:
            with self._ordering:
                waiting = list(self._to_save.items())
            for name, write in waiting:
                write(state)
                with self._ordering:
                    if self._to_save.get(name) is write:
                        del self._to_save[name]


def _accounted(value: object) -> list[Accounted]:
    """What an earlier supervisor of ours has counted of its Envoy, as it was saved."""
    if not isinstance(value, dict):
        return []
    start_ms, unanswered = value.get("start_ms"), value.get("unanswered")
    if not isinstance(start_ms, int) or not isinstance(unanswered, int):
        return []
    return [Accounted(start_ms, unanswered)]


def _save_unsent(state: StateDir, wanted: Sequence[Unsent], accounted: Accounted | None) -> None:
    """In this order: killed at any point, what is on disk agrees."""
    state.save_unsent(wanted)
    if accounted is not None:
        state.save_json(ENVOY_FILE, accounted._asdict())
    state.drop_unsent(wanted)


def _latches(value: object) -> dict[str, list[str]]:
    """Latches as they were saved; nothing of what is not in their form."""
    if not isinstance(value, dict):
        return {}
    return {str(name): list(map(str, c)) for name, c in value.items() if isinstance(c, list)}
