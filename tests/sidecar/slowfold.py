"""What folding means, once more and slowly: plain dictionaries, one entry at a time, nothing kept.

A reference for tests; it reads entries with Envoy's whole message and shares no counting code with
the product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil, log

from sidecar.accesslog import (
    Entry,
    MalformedStamp,
    is_client_gone,
    is_error,
    parse_message,
    parse_shadow,
    parse_stamp,
    target_of,
    unstamped_reason,
)
from sidecar.hashing import request_hash
from sidecar.increments import (
    CellCounts,
    CellKey,
    CountKey,
    Counts,
    Exposure,
    ExposureKey,
    ExposureRows,
    FirstBad,
    FoldDelta,
    SlotKey,
    TargetCounts,
)
from sidecar.plan import EpochFacts
from turnout.contract import ACCESS_LOG_SHADOW, LATENCY_SKETCH_GAMMA
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW

Epochs = Mapping[tuple[str, int], EpochFacts]


def fold_slowly(messages: Iterable[bytes], epochs: Epochs) -> FoldDelta:
    """Everything of one stream's messages."""
    delta, known, log_name = FoldDelta(), set[tuple[str, int]](), ""
    for message in messages:
        named, entries = parse_message(message)
        log_name = named or log_name
        for entry in entries:
            try:
                _fold(delta, known, entry, epochs, shadow=log_name == ACCESS_LOG_SHADOW)
            except MalformedStamp:
                delta.malformed_stamps += 1
    return delta


def _fold(
    delta: FoldDelta, known: set[tuple[str, int]], entry: Entry, epochs: Epochs, *, shadow: bool
) -> None:
    if shadow or entry.shadow_of:
        name, epoch, variant = parse_shadow(entry.shadow_of)
        facts = epochs.get((name, epoch))
        _count(delta, entry, (name, epoch, variant, 0, ROLE_SHADOW), entry.upstream_ms, facts)
    elif entry.stamp:
        for given in parse_stamp(entry.stamp):
            name, epoch, variant, stratum, unit, forced = given
            hashed = request_hash(entry.request_id.encode())
            if hashed and (name, hashed) in known:
                delta.repeated_requests += 1
            else:
                known.add((name, hashed))
                key = ExposureKey(name, epoch, variant, stratum, forced)
                rows = delta.exposures.setdefault(key, ExposureRows())
                rows.append(Exposure(entry.start_ms, unit, hashed))
            lane = (name, epoch, variant, stratum, ROLE_SERVED)
            if forced:
                _counts(delta, entry, lane).forced += 1
                continue
            facts = epochs.get((name, epoch))
            bad = _count(delta, entry, lane, entry.latency_ms, facts)
            if facts is not None:
                cell = delta.cells.setdefault(CellKey(*lane[:4]), CellCounts())
                _count_in(cell, entry, unit, facts, bad)
            for kind in bad & facts.kinds if facts else ():
                assert facts is not None
                if kind == BAD_EVENT_KIND_SLOW and entry.start_ms < facts.warm_until_ms:
                    continue
                slot = max(0, (entry.start_ms - facts.start_ms) // 60_000)
                first = delta.first_bad.setdefault(SlotKey(name, epoch, kind, slot), FirstBad())
                arms = first.units
                if not any(unit in units for units in arms.values()):
                    arms.setdefault(variant, set()).add(unit)
    elif reason := unstamped_reason(entry):
        counts = delta.targets.setdefault(target_of(entry), TargetCounts())
        counts.unstamped[reason] = counts.unstamped.get(reason, 0) + 1


def _count_in(cell: CellCounts, entry: Entry, unit: int, facts: EpochFacts, bad: set[int]) -> None:
    if entry.start_ms < facts.warm_until_ms:
        cell.warm_up += 1
        return
    bucket = unit // 2**54
    waited_ms = entry.duration_ms if entry.latency_ms is None else entry.latency_ms
    tables = [cell.requests]
    tables += [cell.errors] if BAD_EVENT_KIND_ERROR in bad else []
    tables += [cell.slow] if BAD_EVENT_KIND_SLOW in bad else []
    for threshold_ms in facts.thresholds_ms:
        if waited_ms > threshold_ms:
            tables.append(cell.over.setdefault(threshold_ms, {}))
    for table in tables:
        table[bucket] = table.get(bucket, 0) + 1


def _counts(delta: FoldDelta, entry: Entry, lane: tuple[str, int, str, int, int]) -> Counts:
    return delta.counts.setdefault(CountKey(*lane, entry.start_ms // 10_000 * 10), Counts())


def _count(
    delta: FoldDelta,
    entry: Entry,
    lane: tuple[str, int, str, int, int],
    latency_ms: float | None,
    facts: EpochFacts | None,
) -> set[int]:
    """Count one entry; the kinds of bad event that it is."""
    counts, bad = _counts(delta, entry, lane), set[int]()
    counts.requests += 1
    if is_error(entry):
        bad.add(BAD_EVENT_KIND_ERROR)
        counts.errors += 1
    elif is_client_gone(entry):
        counts.client_cancelled += 1
    elif 400 <= entry.status < 500:
        counts.client_errors += 1
    if latency_ms is not None and latency_ms < 0.001:
        counts.latency_zero += 1
    elif latency_ms is not None:
        index = ceil(log(latency_ms) / log(LATENCY_SKETCH_GAMMA))
        counts.latency[index] = counts.latency.get(index, 0) + 1
        counts.latency_sum_ms += latency_ms
    limit_ms = facts.slow_after_ms if facts else None
    waited_ms = entry.duration_ms if latency_ms is None else latency_ms
    if limit_ms is not None and waited_ms > limit_ms:
        bad.add(BAD_EVENT_KIND_SLOW)
        counts.slow += 1
    cold = facts is not None and entry.start_ms < facts.warm_until_ms
    events = bad - {BAD_EVENT_KIND_SLOW} if cold else bad
    if events and (not counts.first_bad_ms or entry.start_ms < counts.first_bad_ms):
        counts.first_bad_ms = entry.start_ms
    return bad
