"""Builds the next plan between requests, and lets go of the one before in the same way.

Owns how long the loop may be held for it. Refuses to know what a plan is made of: `plan` builds it
in steps. The garbage collector rests meanwhile: it would walk through all of a half-built plan,
again and again, while requests wait.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from typing import Any, Final

from sidecar.clock import monotonic_ns
from sidecar.ipc import PlanOrder
from sidecar.plan import Plan, decode_snapshot

# Then whoever waits has its turn: with the server's own work for one read, far below 2 ms.
SLICE_NS: Final = 300_000


async def build(order: PlanOrder, previous: Plan | None) -> Plan:
    """Build the plan of an order.

    Args:
        order: With the encoded snapshot.
        previous: What serves now; what has not changed is taken over from it.

    Raises:
        InvalidSnapshot: With every violation.
        ValueError: The tenant's key has the wrong length.
    """
    gc.disable()
    try:
        snapshot = decode_snapshot(order.snapshot)
        await asyncio.sleep(0)
        builder = Plan.builder(
            snapshot,
            tenant_key=order.tenant_key,
            dead=order.dead,
            open_gates=order.open_gates,
            slots=order.slots,
            defaults=order.defaults,
            transparent=order.transparent,
            previous=previous,
        )
        await in_slices(builder)
    finally:
        # A plan lives long and has no cycles: the collector is never to walk through it.
        gc.freeze()
        gc.enable()
    return builder.plan


async def read(payload: bytes) -> PlanOrder:
    """Read an order as its supervisor has sent it."""
    order: PlanOrder = await in_slices(PlanOrder.decoding(payload))
    return order


async def in_slices(steps: Iterator[object]) -> Any:
    """Go through an iterator, SLICE_NS at a time; what it returns."""
    until_ns = monotonic_ns() + SLICE_NS
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value
        if monotonic_ns() >= until_ns:
            # Whoever the kernel has put behind us waits for its next tick otherwise, up to 4 ms.
            os.sched_yield()
            await asyncio.sleep(0)
            until_ns = monotonic_ns() + SLICE_NS


async def let_go(parts: list[object]) -> None:
    """Drop the last references to the parts of a plan that serves no more, a few at a time.

    All at once, the parts of 1,000 experiments take some 10 ms to free.
    """

    def one_by_one() -> Iterator[None]:
        while parts:
            parts.pop()
            yield

    await in_slices(one_by_one())
