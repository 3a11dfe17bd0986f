"""P8: a stream cut into deltas of several sidecars, delivered in any order and more than once.

Counts come out bit-equal (control.evidence, the control plane's memory), moments to 1e-12
(control.stats.moments). The naive receiver adds up whatever arrives; the naive moments are raw sums
of squares.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import numpy as np

from control.evidence import Evidence
from control.rollout.policy import Policy
from control.rollout.run import Run
from control.rollout.words import State
from control.stats.moments import Moments, merge_all, moments
from tests.control.deltas import EPOCH_START_MS, START_MS, batch, cell, count, first_bad, sampled
from tests.simulations.figures import SEED, Claim, Figure
from tests.simulations.streams import Floats
from turnout.contract import TIME_BUCKET_S, UNIT_BUCKETS, UNIT_SAMPLE_BIT
from turnout.v1alpha1.config_service_pb2 import DeltaBatch

REQUESTS: Final = 2_000
UNITS: Final = 5_000
RELATIVE: Final = 1e-12
VARIANTS: Final = ("control", "v2")
SPLIT: Final = {"control": 500_000, "v2": 500_000}
POLICY: Final = Policy("control", ("v2",), ())
RUN: Final = Run(
    "exp", state=State.RUNNING, epoch=1, epoch_start_ms=EPOCH_START_MS, split_ppm=SPLIT
)


class Stream(NamedTuple):
    """Requests in order; shapes (requests,)."""

    variant: np.ndarray
    error: np.ndarray
    minute: np.ndarray
    unit: np.ndarray


def run(*, long: bool) -> list[Figure]:
    """Differences from the whole stream taken at once."""
    reps = 2_000 if long else 200
    differ = naive = 0
    for rep in range(reps):
        ours_differ, naive_differ = _counts(np.random.default_rng([SEED, 80, rep]))
        differ += ours_differ
        naive += naive_differ
    figures = [
        Figure(
            plan="P8",
            what="deltas of 5 sidecars, any cut and order, 30 % twice: counts that differ at all",
            reps=reps,
            ours=Claim(differ / reps, "<=", 0.0),
            naive="adding up what arrives",
            theirs=Claim(naive / reps, ">=", 0.9),
        )
    ]
    for words, shift in (("lognormal (sigma 2)", 0.0), ("the same + 1e6", 1e6)):
        worst = np.array(
            [_moments(np.random.default_rng([SEED, 81, rep]), shift) for rep in range(reps)]
        ).max(axis=0)
        figures.append(
            Figure(
                plan="P8",
                what=f"moments of {words}, any cut and order: largest relative difference",
                reps=reps,
                ours=Claim(float(worst[0]), "<=", RELATIVE),
                naive="raw sums of squares",
                theirs=Claim(float(worst[1]), ">=", RELATIVE if shift else 0.0),
                unit="number",
            )
        )
    return figures


def _counts(rng: np.random.Generator) -> tuple[bool, bool]:
    stream = Stream(
        variant=rng.integers(0, 2, REQUESTS),
        error=rng.random(REQUESTS) < 0.03,
        minute=np.sort(rng.integers(0, 30, REQUESTS)),
        unit=rng.integers(0, 300, REQUESTS),
    )
    whole = _evidence([_delta(1, "whole", stream, np.arange(REQUESTS))])
    sidecar = rng.integers(0, 5, REQUESTS)
    deltas = []
    for instance in range(5):
        mine = np.flatnonzero(sidecar == instance)
        cuts = np.sort(rng.integers(0, len(mine), rng.integers(1, 12)))
        deltas += [
            _delta(seq + 1, f"i{instance}", stream, part)
            for seq, part in enumerate(np.split(mine, cuts))
        ]
    twice = [d for d in deltas if rng.random() < 0.3] or deltas[:1]
    arrived = [*deltas, *twice]
    seen = _evidence([arrived[i] for i in rng.permutation(len(arrived))])
    same = (
        _cells(seen) == _cells(whole)
        and seen.variants("exp", 1) == whole.variants("exp", 1)
        and seen.window("exp", 1, *_SPAN) == whole.window("exp", 1, *_SPAN)
        and _lanes(seen) == _lanes(whole)
    )
    added = sum(c.requests for d in arrived for c in d.counts)
    return not same, added != REQUESTS


_SPAN: Final = (START_MS // 1000 - 3600, START_MS // 1000 + 3600)


def _evidence(deltas: list[DeltaBatch]) -> Evidence:
    evidence = Evidence()
    evidence.begin_epoch("exp", 1, EPOCH_START_MS)
    for delta in deltas:
        evidence.add_delta(delta, START_MS)
    return evidence


def _lanes(evidence: Evidence) -> bytes:
    tracker = evidence.tracker("exp", 1)
    return b"" if tracker is None else tracker.to_bytes()


def _cells(evidence: Evidence) -> list[tuple[object, ...]]:
    """Every number of every bucket, and the units of the sample."""
    cells = evidence.cells(RUN, POLICY)
    return [
        (key, cell.requests.tolist(), cell.errors.tolist(), cell.units)
        for key, cell in sorted(cells.cells.items())
    ]


def _delta(seq: int, instance: str, stream: Stream, rows: np.ndarray) -> DeltaBatch:
    """What a sidecar sends of these requests: counts by minute and by bucket, units that failed."""
    counts, bad, cells, exposed = [], [], [], []
    bucket = stream.unit % UNIT_BUCKETS
    for number, name in enumerate(VARIANTS):
        mine = rows[stream.variant[rows] == number]
        for minute in np.unique(stream.minute[mine]).tolist():
            here = mine[stream.minute[mine] == minute]
            failed = here[stream.error[here]]
            at_ms = START_MS + minute * TIME_BUCKET_S * 1000
            counts.append(count(name, at_ms=at_ms, requests=len(here), errors=len(failed)))
            if len(failed):
                units = (stream.unit[failed] * 2654435761 % 2**61).tolist()
                bad.append(first_bad(name, units, slot=minute))
        if len(mine):
            served, lost = (Counter(bucket[r].tolist()) for r in (mine, mine[stream.error[mine]]))
            cells.append(cell(name, served, errors=lost))
            sample = [unit << (UNIT_SAMPLE_BIT + 1) for unit in set(stream.unit[mine].tolist())]
            exposed.append(sampled(name, sample))
    return batch(seq, instance=instance, counts=counts, bad=bad, cells=cells, units=exposed)


def _moments(rng: np.random.Generator, shift: float) -> tuple[float, float]:
    values = np.exp(2 * rng.standard_normal(UNITS)) + shift
    whole = moments(values)
    parts = np.split(rng.permutation(values), np.sort(rng.integers(0, UNITS, 40)))
    merged = merge_all(moments(part) for part in parts)
    raw = Moments(
        whole.n, values.sum() / whole.n, np.sum(values * values) - values.sum() ** 2 / whole.n
    )
    return _apart(merged, whole), _apart(raw, whole)


def _apart(a: Moments, b: Moments) -> float:
    pairs: list[tuple[Floats, Floats]] = [(a.n, b.n), (a.mean, b.mean), (a.m2, b.m2)]
    return max(float(abs(x - y) / abs(y)) for x, y in pairs)
