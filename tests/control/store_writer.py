"""A process that writes without end, and says on its standard output what was acknowledged.

Started by the kill loop as `python -m tests.control.store_writer PATH`. Two things are written,
each step with the number that follows from what the store has: deltas in the journal ("delta N"),
and changes of a resource, a decision and a tombstone in one unit ("change N").
"""

from __future__ import annotations

import asyncio
import sys

from control.journal import Journal
from control.store.base import (
    Change,
    DecisionRecord,
    Kind,
    PutResource,
    Resource,
    TombstoneRecord,
)
from control.store.sqlite import SqliteStore
from tests.control.deltas import EPOCH_START_MS, START_MS, batch, count, exposures, first_bad
from turnout.v1alpha1.config_service_pb2 import DeltaBatch

TENANT = "t"
CHECKPOINT_EVERY = 17


def delta_of(number: int) -> DeltaBatch:
    """What delta `number` says: the same whoever makes it."""
    variant = ("control", "v2")[number % 2]
    return batch(
        number,
        counts=[count(variant, requests=number)],
        bad=[first_bad(variant, [number], slot=number % 10)],
        exposed=[exposures(variant, [(number, number)])],
    )


def change_of(number: int) -> Change:
    """What change `number` writes."""
    resource = Resource(
        Kind.TARGET, TENANT, "x", "u", number, f"e{number}", {}, b"s" * 3000, b"", 1, number
    )
    return Change(
        puts=[PutResource(resource, f"e{number - 1}") if number > 1 else PutResource(resource)],
        decisions=[DecisionRecord(TENANT, "exp", number, "HOLD", b"d" * 2000)],
        tombstones=[TombstoneRecord(TENANT, "exp", number, "r", number)],
    )


def acknowledge(line: str) -> None:
    """Says that a step is durable."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def write_deltas(journal: Journal, first: int) -> None:
    """Deltas from `first` on, with a checkpoint now and then."""
    number = first
    while True:
        await journal.add_delta(delta_of(number), START_MS + number)
        acknowledge(f"delta {number}")
        if number % CHECKPOINT_EVERY == 0:
            await journal.checkpoint(START_MS, force=True)
        number += 1


async def write_changes(store: SqliteStore, first: int) -> None:
    """Changes from `first` on."""
    number = first
    while True:
        await store.commit(change_of(number))
        acknowledge(f"change {number}")
        number += 1


async def main(path: str) -> None:
    """Goes on where the store is; never returns."""
    store = await SqliteStore.open(f"sqlite:{path}")
    journal = await Journal.recover(store, TENANT)
    if not journal.evidence.has_delta("i", 1):
        await journal.begin_epoch("exp", 1, EPOCH_START_MS, "fraud", START_MS)
    next_delta = 1
    while journal.evidence.has_delta("i", next_delta):
        next_delta += 1
    resource = await store.get(Kind.TARGET, TENANT, "x")
    await asyncio.gather(
        write_deltas(journal, next_delta),
        write_changes(store, resource.revision + 1 if resource else 1),
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
