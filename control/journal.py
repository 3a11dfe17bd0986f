"""What is received: stored before it is acknowledged, and applied in the order of storing.

Owns the way from a delta, span or outcome to evidence, live and after a restart: both go through
`Book.apply`, row by row in the order of ids, so that a restart comes to the same bytes. Refuses to
apply what is not committed, and to read a clock.

How a restart works. A `Book` (evidence and joiner) is a pure function of its journal rows. From
time to time all of it is written as a checkpoint: the book's bytes and the id of the last row in
them. The rows up to that id are dropped in the same transaction. The joiner's rows that still wait
for a label are part of the bytes, so nothing of the past is needed again, and nothing is joined or
counted twice. Recovery loads the checkpoint and applies the rows above it. A delta that is sent
again after its row was dropped is known by its (instance, number), which the evidence keeps.
"""

import asyncio
import hashlib
import json
import struct
from typing import Final, Self

from control.evidence import CorruptEvidence, Evidence, FrozenEvidence, check, check_counts
from control.ingest import SpanFact
from control.outcomes import Joiner, facts_of_outcomes, facts_of_spans, pack_facts, unpack_facts
from control.store.base import (
    Checkpoint,
    JournalEntry,
    JournalKind,
    JournalRow,
    Store,
    StoreOpenError,
)
from turnout.v1alpha1.config_service_pb2 import DeltaBatch
from turnout.v1alpha1.outcome_service_pb2 import Outcome

CHECKPOINT_EVERY_MS: Final = 60_000
# A big book is written less often, so that checkpoints never write more than this on average.
CHECKPOINT_BYTES_PER_S: Final = 512 * 1024
REPLAY_PAGE: Final = 500
_MAGIC: Final = b"BOOK\x02"
_MAGIC_1: Final = b"BOOK\x01"  # its joiner knew no scores
_DIGEST_BYTES: Final = 32
_SIZE = struct.Struct("<Q")


class Book:
    """Evidence and joiner of one tenant: a function of its journal. Pure."""

    def __init__(self, evidence: Evidence | None = None, joiner: Joiner | None = None) -> None:
        self.evidence = evidence or Evidence()
        self.joiner = joiner or Joiner()

    def apply(self, entry: JournalEntry) -> None:
        """Applies one committed entry. Entries were checked before they were stored."""
        now_ms = entry.received_ms
        match entry.kind:
            case JournalKind.DELTA:
                batch = DeltaBatch.FromString(entry.payload)
                if self.evidence.add_delta(batch, now_ms):
                    self.evidence.add_joined(self.joiner.add_exposures(batch.exposures, now_ms))
            case JournalKind.OUTCOME | JournalKind.SPAN:
                facts = unpack_facts(entry.payload)
                self.evidence.add_joined(self.joiner.add_facts(facts, now_ms))
            case JournalKind.EPOCH:
                began = json.loads(entry.payload)
                self.evidence.begin_epoch(
                    began["experiment"],
                    began["epoch"],
                    began["start_ms"],
                    began["target"],
                    began.get("warm_up_ms", 0),
                )
            case JournalKind.FORGET:
                self.evidence.forget(entry.payload.decode())

    def to_bytes(self) -> bytes:
        """Everything, deterministically, with a checksum."""
        return seal(*self.parts())

    def parts(self) -> tuple[FrozenEvidence, bytes]:
        """Evidence and joiner as they are now, for `seal`."""
        return self.evidence.frozen(), self.joiner.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The book of `to_bytes`.

        Raises:
            CorruptEvidence: Not made by it, damaged, or of another version.
        """
        version = 1 if data.startswith(_MAGIC_1) else 2
        if not data.startswith((_MAGIC, _MAGIC_1)):
            raise CorruptEvidence("unknown format")
        start = len(_MAGIC) + _DIGEST_BYTES
        body = data[start:]
        if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != data[len(_MAGIC) : start]:
            raise CorruptEvidence("checksum does not match")
        (size,) = _SIZE.unpack_from(body)
        evidence, joiner = body[_SIZE.size : _SIZE.size + size], body[_SIZE.size + size :]
        try:
            return cls(Evidence.from_bytes(evidence), Joiner.from_bytes(joiner, version=version))
        except ValueError as error:
            raise CorruptEvidence(str(error)) from error


def seal(evidence: FrozenEvidence, joiner: bytes) -> bytes:
    """The bytes of a book, from its parts: slow for a big one, and free of the book itself."""
    packed = evidence.to_bytes()
    body = b"".join((_SIZE.pack(len(packed)), packed, joiner))
    return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() + body


class Journal:
    """One tenant's way in. Make it with `recover`; every method returns after the commit."""

    def __init__(self, store: Store, tenant: str, book: Book, journal_id: int) -> None:
        self._store = store
        self._tenant = tenant
        self._book = book
        self._applied_id = self._checkpoint_id = journal_id
        self._checkpoint_due_ms = 0
        self._checkpointing = asyncio.Lock()

    @classmethod
    async def recover(cls, store: Store, tenant: str) -> Self:
        """The tenant's book as it was: its checkpoint, and the rows above it.

        Raises:
            StoreOpenError: The checkpoint cannot be read; the message says why.
        """
        checkpoint = await store.checkpoint(tenant)
        book, journal_id = Book(), 0
        if checkpoint is not None:
            try:
                book = Book.from_bytes(checkpoint.payload)
            except CorruptEvidence as error:
                raise StoreOpenError(f"evidence of tenant {tenant!r}: {error}") from error
            journal_id = checkpoint.journal_id
        journal = cls(store, tenant, book, journal_id)
        while rows := await store.read_journal(
            tenant, after_id=journal._applied_id, limit=REPLAY_PAGE
        ):
            for row in rows:
                journal._apply(row)
        return journal

    @property
    def evidence(self) -> Evidence:
        """What everything committed so far came to; only to be read."""
        return self._book.evidence

    @property
    def joiner(self) -> Joiner:
        """Its counts and sizes; only to be read."""
        return self._book.joiner

    async def add_delta(self, batch: DeltaBatch, received_ms: int) -> bool:
        """Stores and merges a delta; False when it had been before. Then it may be acknowledged.

        Raises:
            InvalidDelta: Nothing was stored.
            StoreUnavailable: Not stored: not to be acknowledged, the sidecar sends it again.
        """
        check(batch)
        if self.evidence.has_delta(batch.instance_id, batch.seq):
            return False
        check_counts(batch)
        entry = self._entry(
            JournalKind.DELTA,
            batch.SerializeToString(deterministic=True),
            received_ms,
            source=batch.instance_id,
            seq=batch.seq,
        )
        (row_id,) = await self._store.append_journal([entry], self._apply)
        return row_id is not None

    async def add_outcomes(self, outcomes: list[Outcome], received_ms: int) -> None:
        """Stores and joins validated outcomes, all or none.

        Raises:
            StoreUnavailable: None was stored.
        """
        payload = pack_facts(facts_of_outcomes(outcomes))
        await self._append(JournalKind.OUTCOME, payload, received_ms)

    async def add_spans(self, facts: tuple[SpanFact, ...], received_ms: int) -> None:
        """Stores and joins what spans said, all or none.

        Raises:
            StoreUnavailable: None was stored.
        """
        await self._append(JournalKind.SPAN, pack_facts(facts_of_spans(facts)), received_ms)

    async def begin_epoch(
        self,
        experiment: str,
        epoch: int,
        start_ms: int,
        target: str,
        received_ms: int,
        *,
        warm_up_ms: int = 0,
    ) -> None:
        """Makes an epoch's start known; to be called before the epoch is published.

        Raises:
            StoreUnavailable: Not stored.
        """
        began = {"experiment": experiment, "epoch": epoch, "start_ms": start_ms, "target": target}
        if warm_up_ms:
            began["warm_up_ms"] = warm_up_ms
        payload = json.dumps(began, sort_keys=True).encode()
        await self._append(JournalKind.EPOCH, payload, received_ms)

    async def forget(self, experiment: str, received_ms: int) -> None:
        """Forgets the evidence of a deleted experiment.

        Raises:
            StoreUnavailable: Not stored.
        """
        await self._append(JournalKind.FORGET, experiment.encode(), received_ms)

    async def checkpoint(self, now_ms: int, *, force: bool = False) -> bool:
        """Writes a checkpoint when one is due, and drops the rows that it covers.

        Raises:
            StoreUnavailable: Not written; the rows stay.
        """
        async with self._checkpointing:
            if self._applied_id == self._checkpoint_id:
                return False
            if not force and now_ms < self._checkpoint_due_ms:
                return False
            journal_id = self._applied_id
            # Copying 300,000 waiting rows takes 25 ms, the checksum 160 ms: that is for a thread.
            payload = await asyncio.to_thread(seal, *self._book.parts())
            cost_ms = len(payload) * 1000 // CHECKPOINT_BYTES_PER_S
            self._checkpoint_due_ms = now_ms + max(CHECKPOINT_EVERY_MS, cost_ms)
            await self._store.save_checkpoint(Checkpoint(self._tenant, journal_id, now_ms, payload))
            self._checkpoint_id = journal_id
            return True

    def to_bytes(self) -> bytes:
        """The book's bytes."""
        return self._book.to_bytes()

    async def _append(self, kind: JournalKind, payload: bytes, received_ms: int) -> None:
        if payload:
            await self._store.append_journal([self._entry(kind, payload, received_ms)], self._apply)

    def _entry(
        self, kind: JournalKind, payload: bytes, received_ms: int, *, source: str = "", seq: int = 0
    ) -> JournalEntry:
        return JournalEntry(self._tenant, kind, payload, received_ms, source, seq)

    def _apply(self, row: JournalRow) -> None:
        self._book.apply(row.entry)
        self._applied_id = row.id
