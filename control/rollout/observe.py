"""What is seen of one experiment: evidence and sidecars -> `Seen`, conditions, results.

Pure, but that it measures how long a look takes. Refuses to judge: it puts side by side what
evidence and distribution know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from control import views
from control.distribution import SidecarState
from control.model.metrics import LIVE
from control.rollout import bandit
from control.rollout.cells import Cells
from control.rollout.decide import ROW_REASONS
from control.rollout.entries import ExperimentEntry
from control.rollout.looks import Looks
from control.rollout.reduce import reduce
from control.rollout.results import fill
from control.rollout.seen import (
    SIDECAR_FORGOTTEN_AFTER_MS,
    BanditSeen,
    Seen,
    SidecarSeen,
    VariantSeen,
)
from control.rollout.tenant import Looked, Tenant
from control.rollout.together import baseline_moved
from control.rollout.words import Gate, Phase, Reason
from control.stats.verdicts import Kind as Row
from turnout.v1alpha1 import experiment_pb2
from turnout.v1alpha1.experiment_pb2 import Condition, TableRow, VariantResult
from turnout.v1alpha1.experiment_service_pb2 import ExperimentResults

_log = logging.getLogger(__name__)
FRESH_MS: Final = 5_000
WAITING_FOR_UPSTREAM: Final = "WAITING_FOR_UPSTREAM"
ANALYSIS_PENDING: Final = "ANALYSIS_PENDING"
TELEMETRY_FRESH: Final = "TELEMETRY_FRESH"
SHADOW_QUEUED: Final = "SHADOW_QUEUED"
CLUSTERS_SHOWN: Final = 8
Answer = tuple[Gate, tuple[str, ...]]  # of one sidecar: the gate, and what it waits for
_GATE_OFF: Final[Answer] = (Gate.OFF, ())
_GATE_UNKNOWN: Final[Answer] = (Gate.UNKNOWN, ())
_GATE_OPEN: Final[Answer] = (Gate.OPEN, ())
LOOK_EVERY_MS: Final = 1_000
LOOK_TURN_MS: Final = 50
# So many times as long as a look took, until the next one.
LOOK_PAUSE: Final = 5
ANALYSIS_SENTENCE: Final = "no evidence by bucket of units yet: the primary metric cannot be judged"


def observe(
    tenant: Tenant,
    entry: ExperimentEntry,
    sidecars: Nodes,
    *,
    now_ms: int,
    code_version: str,
) -> Seen:
    """Everything that may be looked at in a decision about one experiment."""
    seen = tenant.evidence.seen(
        entry.run,
        entry.policy,
        now_ms=now_ms,
        sidecars=sidecars.of(entry),
        snapshot_version=tenant.version,
        code_version=code_version,
    )
    looks = look(tenant, entry, now_ms=now_ms)
    return replace(
        seen,
        baseline_moved=baseline_moved(tenant, entry),
        looks=looks,
        bandit=earned(tenant, entry) if entry.run.phase is Phase.BANDIT else None,
    )


def earned(tenant: Tenant, entry: ExperimentEntry) -> BanditSeen | None:
    """What the variants of a bandit step have earned; None without one."""
    run, policy = entry.run, entry.policy
    if not run.bandit_epoch or run.step >= len(policy.steps):
        return None
    try:
        return bandit.observe(tenant.evidence.cells(run, policy), run, policy)
    except ValueError:  # as of `look`
        _log.exception("the rewards cannot be judged", extra={"experiment": entry.name})
        return None


def look(tenant: Tenant, entry: ExperimentEntry, *, now_ms: int) -> Looks | None:
    """The looks at an experiment's cells; not anew while neither they nor the policy changed.

    Reducing takes milliseconds, so new evidence waits for its turn: a second, or longer where there
    are many experiments. Safety lanes and window rule do not wait.
    """
    cells = tenant.evidence.cells(entry.run, entry.policy)
    turn_ms = max(LOOK_EVERY_MS, LOOK_TURN_MS * len(tenant.looked))
    return _reduced(tenant.looked, entry, cells, (), turn_ms, len(tenant.looked), now_ms)


def shown(tenant: Tenant, entry: ExperimentEntry, cells: Cells, *, now_ms: int) -> Looks | None:
    """The looks with every metric that is measured; however many ask, they take turns, too."""
    return _reduced(tenant.shown, entry, cells, LIVE, 0, len(tenant.looked), now_ms)


def _reduced(
    table: dict[str, Looked],
    entry: ExperimentEntry,
    cells: Cells,
    metrics: Sequence[str],
    turn_ms: float,
    others: int,
    now_ms: int,
) -> Looks | None:
    """Looks from the table, or anew when it is their turn: they take a fifth of the time at most.

    Hundreds of looks, as of several candidates in many strata, take a second by themselves, and
    safety lanes wait as long as that.
    """
    known = table.get(entry.name)
    if known is not None and known.policy == entry.policy:
        turn_ms = max(turn_ms, LOOK_PAUSE * known.cost_ms * max(1, others))
        same_epochs = known.cells.epochs == cells.epochs
        if known.cells is cells or (same_epochs and 0 <= now_ms - known.at_ms < turn_ms):
            return known.looks
    began = time.perf_counter()
    try:
        looks = reduce(cells, entry.policy, metrics=metrics)
    except ValueError:  # numbers that no statistic takes: lanes, window rule and breakers go on
        _log.exception("the evidence cannot be judged", extra={"experiment": entry.name})
        looks = None
    cost_ms = 1000 * (time.perf_counter() - began)
    table[entry.name] = Looked(cells, entry.policy, now_ms, looks, cost_ms)
    return looks


class Nodes:
    """The sidecars of a tenant at one look, for all of its experiments.

    Hundreds of experiments ask about hundreds of sidecars every second, and nearly always get the
    same answer: it is made once.
    """

    def __init__(self, states: Iterable[SidecarState], *, now_ms: int) -> None:
        """Those that count: connected, or gone for a short time only.

        Args:
            states: Of all of the tenant's nodes.
            now_ms: Unix milliseconds.
        """
        self._states = [
            state
            for state in states
            if state.connected or now_ms - state.last_seen_ms < SIDECAR_FORGOTTEN_AFTER_MS
        ]
        self._answers: dict[tuple[int, Answer], SidecarSeen] = {}
        self._all: dict[tuple[Answer, ...], tuple[SidecarSeen, ...]] = {}

    def of(self, entry: ExperimentEntry) -> tuple[SidecarSeen, ...]:
        """Every node, with its start gate for the experiment's present epoch."""
        key = (entry.name, entry.run.epoch)
        answers = tuple([_gate(state, key) for state in self._states])
        found = self._all.get(answers)
        if found is None:
            found = self._all[answers] = tuple(
                self._seen(number, answer) for number, answer in enumerate(answers)
            )
        return found

    def _seen(self, number: int, answer: Answer) -> SidecarSeen:
        known = self._answers.get((number, answer))
        if known is None:
            state, (gate, waiting_for) = self._states[number], answer
            known = self._answers[number, answer] = SidecarSeen(
                node=state.node,
                connected=state.connected,
                last_seen_unix_ms=state.last_seen_ms,
                gate=gate,
                waiting_for=waiting_for,
            )
        return known


def _gate(state: SidecarState, key: tuple[str, int]) -> Answer:
    if state.report is not None and not state.report.start_gate:
        return _GATE_OFF
    reported = state.gates.get(key)
    if reported is None:
        return _GATE_UNKNOWN
    return _GATE_OPEN if reported[0] else (Gate.CLOSED, reported[1])


# -- Conditions ------------------------------------------------------------------------------------


def conditions(
    entry: ExperimentEntry,
    seen: Seen,
    before: Iterable[Condition],
    *,
    queued_behind: str = "",
    now_ms: int,
) -> tuple[Condition, ...]:
    """The conditions of a live experiment; a condition that stays keeps its transition time.

    Args:
        entry: The experiment.
        seen: What is seen of it.
        before: Its conditions at the last look.
        queued_behind: The experiment whose shadow this one's waits for, "" = none. Without one
            there is no such condition.
        now_ms: Unix milliseconds.
    """
    known = {condition.type: condition for condition in before}
    found = [_waiting(seen), _pending(entry, seen), _fresh(seen, now_ms)]
    if queued_behind:
        found.append(_queued(entry, queued_behind))
    for condition in found:
        old = known.get(condition.type)
        if old is not None and old.status == condition.status:
            condition.last_transition_time.CopyFrom(old.last_transition_time)
        else:
            moment = views.timestamp(now_ms)
            assert moment is not None
            condition.last_transition_time.CopyFrom(moment)
    return tuple(found)


def _waiting(seen: Seen) -> Condition:
    closed = [s for s in seen.sidecars if s.connected and s.gate is Gate.CLOSED]
    condition = Condition(type=WAITING_FOR_UPSTREAM, status=bool(closed))
    if closed:
        clusters = sorted({cluster for s in closed for cluster in s.waiting_for})
        condition.reason = experiment_pb2.REASON_WAITING_FOR_UPSTREAM
        condition.message = (
            f"{len(closed)} of {len(seen.sidecars)} sidecars enrol nobody yet: no healthy host in "
            + ", ".join(clusters[:CLUSTERS_SHOWN])
        )
    return condition


def _pending(entry: ExperimentEntry, seen: Seen) -> Condition:
    asked = entry.run.phase is Phase.AB or entry.policy.primary is not None
    pending = asked and seen.looks is None
    condition = Condition(type=ANALYSIS_PENDING, status=pending)
    if pending:
        condition.reason = experiment_pb2.REASON_ANALYSIS_PENDING
        condition.message = ANALYSIS_SENTENCE
    return condition


def _queued(entry: ExperimentEntry, first: str) -> Condition:
    message = (
        f"experiment {first} mirrors on target {entry.spec.target}, one at a time: copies to "
        f"{entry.run.shadow_variant} begin when it has ended or gone on"
    )
    return Condition(type=SHADOW_QUEUED, status=True, message=message)


def _fresh(seen: Seen, now_ms: int) -> Condition:
    connected = [s for s in seen.sidecars if s.connected]
    late = [s.node for s in seen.sidecars if now_ms - s.last_seen_unix_ms > FRESH_MS]
    condition = Condition(type=TELEMETRY_FRESH, status=bool(connected) and not late)
    if not connected:
        condition.reason = experiment_pb2.REASON_NO_SIDECARS
        condition.message = "no sidecar is connected"
    elif late:
        condition.reason = experiment_pb2.REASON_STALE
        condition.message = f"nothing from {late[0]} for more than {FRESH_MS // 1000} s"
    return condition


# -- Results ---------------------------------------------------------------------------------------


def results(tenant: Tenant, entry: ExperimentEntry, *, now_ms: int) -> ExperimentResults:
    """What is known of an experiment's variants."""
    run, evidence = entry.run, tenant.evidence
    message = ExperimentResults(
        name=f"tenants/{tenant.name}/experiments/{entry.name}",
        state=views.state_value(run.state),
        epoch=run.epoch,
        as_of_time=views.timestamp(now_ms),
    )
    names = [entry.policy.control, *entry.policy.candidates]
    for variants, epoch in ((message.epoch_variants, run.epoch), (message.variants, None)):
        seen, aside = evidence.variants(entry.name, epoch), evidence.beside(entry.name, epoch)
        variants.extend(_results(names, seen, aside))
    latest = tenant.latest.get(entry.name)
    if latest is not None:
        message.lanes.extend(views.lane_message(lane) for lane in latest.decision.lanes)
        message.checks.extend(views.check_message(check) for check in latest.decision.checks)
    elif entry.last_decision is not None:
        message.lanes.extend(entry.last_decision.lanes)
        message.checks.extend(entry.last_decision.checks)
    cells = evidence.cells(run, entry.policy)
    fill(message, entry, cells, shown(tenant, entry, cells, now_ms=now_ms), now_ms=now_ms)
    if entry.policy.primary is not None or run.phase is Phase.AB:
        verdict = next(iter(message.verdicts), None)
        message.primary_reason = views.reason_value(
            ROW_REASONS[Row(TableRow.Name(verdict.row).removeprefix("TABLE_ROW_"))]
            if verdict is not None
            else Reason.ANALYSIS_PENDING
        )
        message.primary_sentence = verdict.sentence if verdict else ANALYSIS_SENTENCE
    if (seen_bandit := earned(tenant, entry)) is not None:
        message.bandit.CopyFrom(views.bandit_message(entry, seen_bandit))
        if run.phase is Phase.BANDIT:  # which asks no table what to do
            message.sentence = message.bandit.sentence
    # Whole Envoys (target "") are exact; what is counted by target is among it and may be less.
    whole = evidence.target("", since_start_of=entry.name).unstamped
    by_target = evidence.target(entry.spec.target, since_start_of=entry.name).unstamped
    for why, count in (whole or by_target).items():
        message.unstamped[why] += count
    for why, count in by_target.items():
        message.target_unstamped[why] = count
    beside = evidence.target(entry.spec.target, since_start_of=entry.name).beside
    for why, count in beside.items():
        if count and why != "answered":
            message.beside[why] = count
    return message


def _results(
    names: list[str], seen: dict[str, VariantSeen], beside: Mapping[str, tuple[int, int, int]]
) -> list[VariantResult]:
    order = [*names, *sorted(seen.keys() - set(names))]
    return [
        _result(
            name,
            seen.get(name, VariantSeen()),
            beside.get(name, (0, 0, 0)),
            control=name == names[0],
        )
        for name in order
    ]


def _result(
    name: str, seen: VariantSeen, beside: tuple[int, int, int], *, control: bool
) -> VariantResult:
    def quantile(q: float) -> float:
        return seen.latency.quantile(q) or 0.0

    return VariantResult(
        variant=name,
        control=control,
        decided=seen.decided,
        requests=seen.requests,
        errors=seen.errors,
        slow=seen.slow,
        client_cancelled=seen.client_cancelled,
        latency_p50_ms=quantile(0.5),
        latency_p90_ms=quantile(0.9),
        latency_p95_ms=quantile(0.95),
        latency_p99_ms=quantile(0.99),
        labelled=seen.labelled,
        correct=seen.correct,
        label_coverage=seen.labelled / seen.requests if seen.requests else 0.0,
        loss=max(0, seen.decided - seen.requests) / seen.decided if seen.decided else 0.0,
        shadow_requests=seen.shadow_requests,
        shadow_errors=seen.shadow_errors,
        shadow_latency_p95_ms=seen.shadow_latency.quantile(0.95) or 0.0,
        shadow_labelled=seen.shadow_labelled,
        shadow_correct=seen.shadow_correct,
        first_bad_unix_ms=seen.first_bad_unix_ms,
        warm_up=beside[0],
        missing=beside[1],
        units=seen.units or 0,
        unit_sample_shift=beside[2],
    )
