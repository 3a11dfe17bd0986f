"""Evidence -> verdicts: harm, doubts, and one named check per guardrail and candidate.

Judges; does not act. No data never passes and never fails. Harm (lanes, window rule, breakers)
rolls back; everything else only decides whether a step may pass. The checks are confidence
sequences, valid at every look; they treat the requests of one unit as independent, so a check may
hold a step and never roll back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from control.model.defaults import LATENCY_METRICS
from control.rollout import judging, plain
from control.rollout.bounds import log_sample_ratio, pooled_errors, rate_interval
from control.rollout.checks import Check, look_check
from control.rollout.judging import CandidateVerdict
from control.rollout.policy import (
    METRIC_ACCURACY,
    METRIC_ERROR_RATE,
    METRIC_LATENCY_PREFIX,
    BreakerPolicy,
    GuardrailPolicy,
    Margin,
    Policy,
    StepPolicy,
)
from control.rollout.run import Run
from control.rollout.seen import (
    SIDECAR_FORGOTTEN_AFTER_MS,
    BucketSeen,
    LaneState,
    Seen,
    SidecarSeen,
    Sketch,
    VariantSeen,
    WindowSeen,
)
from control.rollout.words import Gate, Kind, Phase, Reason, Verdict
from control.stats.verdicts import Kind as Row
from turnout.contract import LATENCY_SKETCH_ALPHA, TIME_BUCKET_S

FRESH_MS: Final = 5_000
# Each arm's interval in a check; see bounds.rate_interval.
CHECK_ALPHA: Final = 0.05
SAMPLE_RATIO_ALPHA: Final = 0.001
LOSS_DIFFERENCE: Final = 0.01
# Differences by the window rule and of losses must also be this many pooled standard errors.
STANDARD_ERRORS: Final = 5.0
# Standard errors over requests say nothing of users who always fail. Where 1 % of 3,000 users do,
# they alone let the window rule roll back 4 to 6 % of harmless 1 % canaries within an hour
# (tests/simulation). So the errors must come from several units, unless most requests fail.
WINDOW_UNITS: Final = 5
WINDOW_RATE_CERTAIN: Final = 0.5
# Metrics that can be judged without evidence by bucket, as counts.
METRICS_COUNTED: Final = (METRIC_ERROR_RATE, METRIC_ACCURACY, *LATENCY_METRICS)
METRIC_SAMPLE_RATIO: Final = "sample_ratio"
METRIC_LOSS: Final = "loss"

_LANE_REASON: Final = {
    Kind.ERROR: Reason.LANE_ERROR,
    Kind.SLOW: Reason.LANE_SLOW,
    Kind.WRONG: Reason.LANE_WRONG,
}
_KIND_OF: Final = {METRIC_ERROR_RATE: Kind.ERROR}
_EMPTY: Final = VariantSeen()
# A quantile read from a sketch is within 1 % of the true one.
_SKETCH_SLACK: Final = 1 + LATENCY_SKETCH_ALPHA


@dataclass(frozen=True, slots=True)
class Harm:
    """Evidence that takes traffic away: a lane, the window rule or a breaker."""

    variant: str
    kind: Kind
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a step cannot pass now although nothing is harmful."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """Everything `decide` distinguishes.

    Attributes:
        harms: Lanes by how far they crossed, then window rule, then breakers; () = none shown.
        doubts: About validity, telemetry, traffic, checks, and the dwell last; () = it passes.
        checks: Sample ratio, loss and every guardrail of every candidate that serves.
        lanes: As seen.
        verdicts: Of every candidate that serves, where there are looks; () else.
    """

    harms: tuple[Harm, ...]
    doubts: tuple[Doubt, ...]
    checks: tuple[Check, ...]
    lanes: tuple[LaneState, ...]
    verdicts: tuple[CandidateVerdict, ...] = ()


def assess(run: Run, policy: Policy, seen: Seen, *, now_ms: int) -> Assessment:
    """Judge the present step of a live run.

    Args:
        run: RUNNING or PAUSED.
        policy: Of the revision that runs.
        seen: Of the run's present epoch.
        now_ms: Unix milliseconds.
    """
    step = policy.steps[run.step]
    serving = [name for name in policy.candidates if run.split_ppm.get(name, 0) > 0]
    verdicts = _verdicts(run, policy, step, seen, serving, now_ms)
    checks = (
        *_validity(run, policy, seen, serving),
        *(
            _guardrail(g, name, run, policy, step, seen)
            for g in policy.guardrails
            for name in serving
        ),
        *_default_checks(run, policy, step, seen, serving),
    )
    doubts = (
        *(Doubt(c.reason, c.sentence) for c in checks[:2] if c.verdict is Verdict.FAIL),
        *_invalid(verdicts),
        *_telemetry(seen, now_ms),
        *_traffic(run, step, seen, serving),
        *_stratum_doubts(seen, serving),
        *_check_doubts(step, checks),
        *_dwell(run, step, now_ms),
    )
    harms = (*_harms(run, policy, seen), *_verdict_harms(verdicts))
    return Assessment(harms, doubts, checks, seen.lanes, verdicts)


# -- Verdicts -----------------------------------------------------------------------------------


def _verdicts(
    run: Run, policy: Policy, step: StepPolicy, seen: Seen, serving: list[str], now_ms: int
) -> tuple[CandidateVerdict, ...]:
    """The decision table's answers; () for copies, without control, and without looks."""
    looks = seen.looks
    if looks is None or step.phase is Phase.SHADOW or not run.split_ppm.get(policy.control, 0):
        return ()
    return tuple(
        judging.verdict(looks, policy, step, name, run=run, now_ms=now_ms) for name in serving
    )


def _verdict_harms(verdicts: tuple[CandidateVerdict, ...]) -> Iterator[Harm]:
    for verdict in verdicts:
        if verdict.kind != Row.ROLLBACK.value:
            continue
        kind = _KIND_OF.get(verdict.metric, Kind.WRONG)
        if verdict.metric.startswith(METRIC_LATENCY_PREFIX):
            kind = Kind.SLOW
        reason = Reason.STRATUM_HARM if verdict.stratum else Reason.GUARDRAIL
        yield Harm(verdict.variant, kind, reason, verdict.text)


def _invalid(verdicts: tuple[CandidateVerdict, ...]) -> Iterator[Doubt]:
    for verdict in verdicts:
        if verdict.kind == Row.INVALID.value:
            ratio = "sample_ratio" in verdict.codes
            reason = Reason.SAMPLE_RATIO_MISMATCH if ratio else Reason.DIFFERENTIAL_LOSS
            yield Doubt(reason, verdict.sentence)


def _stratum_doubts(seen: Seen, serving: list[str]) -> Iterator[Doubt]:
    """A metric that is worse in one stratum holds every step, tolerated or not."""
    if seen.looks is None:
        return
    for name in serving:
        for look in judging.harmed_strata(seen.looks, name):
            sentence = f"{look.metric} of {name} is worse in stratum {look.stratum}: "
            yield Doubt(Reason.STRATUM_HARM, sentence + judging.gap(look))


# -- Harm ---------------------------------------------------------------------------------------


def _harms(run: Run, policy: Policy, seen: Seen) -> tuple[Harm, ...]:
    crossed = sorted(
        (lane for lane in seen.lanes if lane.crossed),
        key=lambda lane: lane.log_threshold - lane.log_e_value,
    )
    harms = [_lane_harm(lane, policy) for lane in crossed]
    arms = [(name, False) for name in policy.candidates if run.split_ppm.get(name, 0) > 0]
    if run.shadow_variant:
        arms.append((run.shadow_variant, True))
    for name, shadow in arms:
        harms += _window_rule(name, policy, seen, shadow=shadow)
    if policy.breaker is not None:
        for name, shadow in arms:
            harms += _breaker(name, run, policy, seen.buckets.get(name, ()), shadow=shadow)
    return tuple(harms)


def _lane_harm(lane: LaneState, policy: Policy) -> Harm:
    first = "" if policy.unit_random else "first "
    metric, events = {
        Kind.ERROR: ("error_rate", f"{first}errors"),
        Kind.SLOW: ("latency", f"{first}slow answers"),
        Kind.WRONG: ("accuracy", f"{first}wrong answers"),
    }[lane.kind]
    if lane.kind is Kind.SLOW and policy.slow_after_ms is not None:
        events += f" (over {plain.milliseconds(policy.slow_after_ms)})"
    total = lane.candidate_events + lane.control_events
    sentence = (
        f"{metric}: {plain.count(lane.candidate_events)} of {plain.count(total)} {events} came "
        f"from {lane.variant}, expected {plain.percent(lane.theta)}, e-value "
        f"{plain.e_value(lane.log_e_value)} > {plain.e_value(lane.log_threshold)} "
        f"(block {lane.block})"
    )
    return Harm(lane.variant, lane.kind, _LANE_REASON[lane.kind], sentence)


def _window_rule(name: str, policy: Policy, seen: Seen, *, shadow: bool) -> Iterator[Harm]:
    window = seen.window.get(name, WindowSeen())
    control = seen.window.get(policy.control, WindowSeen())
    mine = (
        (window.shadow_errors, window.shadow_requests)
        if shadow
        else (window.errors, window.requests)
    )
    theirs = (control.errors, control.requests)
    limits = policy.window
    if min(mine[1], theirs[1]) < limits.minimum_requests:
        return
    difference, error = pooled_errors(mine, theirs)
    if difference <= limits.difference or difference <= STANDARD_ERRORS * error:
        return
    if not shadow and _few_units(name, mine, seen):
        return
    what = "copies" if shadow else "requests"
    sentence = (
        f"error_rate: {plain.percent(mine[0] / mine[1])} of {plain.count(mine[1])} {what} to "
        f"{name} failed in the last {plain.duration(limits.length_ms)}, "
        f"{plain.percent(theirs[0] / theirs[1])} of {plain.count(theirs[1])} to {policy.control}; "
        f"a difference of {plain.percent(limits.difference)} is allowed"
    )
    yield Harm(name, Kind.ERROR, Reason.WINDOW_RULE, sentence)


def _few_units(name: str, mine: tuple[int, int], seen: Seen) -> bool:
    units = [s.candidate_events for s in seen.lanes if (s.variant, s.kind) == (name, Kind.ERROR)]
    return bool(units) and max(units) < WINDOW_UNITS and mine[0] < WINDOW_RATE_CERTAIN * mine[1]


def _breaker(
    name: str, run: Run, policy: Policy, buckets: tuple[BucketSeen, ...], *, shadow: bool
) -> Iterator[Harm]:
    breaker = policy.breaker
    assert breaker is not None
    warm_ms = run.epoch_start_ms + policy.warm_up_ms if policy.warm_up_ms else 0
    judged = [_broken(bucket, breaker, warm_ms, shadow=shadow) for bucket in buckets]
    for kind in (Kind.ERROR, Kind.SLOW):
        chain, previous_s = 0, 0
        for bucket, broken in zip(buckets, judged, strict=True):
            follows = bucket.start_unix_s == previous_s + TIME_BUCKET_S
            chain = (chain + 1 if follows else 1) if kind in broken else 0
            previous_s = bucket.start_unix_s
            if chain >= breaker.windows:
                yield _breaker_harm(name, breaker, kind, broken[kind], shadow=shadow)
                break


def _broken(
    bucket: BucketSeen, breaker: BreakerPolicy, warm_ms: int, *, shadow: bool
) -> dict[Kind, float]:
    """Limits that this bucket breaks, with the bucket's value.

    Until `warm_ms` (Unix time) caches are cold: a bucket that begins before has only errors.
    """
    requests = bucket.shadow_requests if shadow else bucket.requests
    errors = bucket.shadow_errors if shadow else bucket.errors
    latency = bucket.shadow_latency if shadow else bucket.latency
    if requests < max(1, breaker.minimum_requests):
        return {}
    broken = {}
    if breaker.error_rate is not None and errors / requests > breaker.error_rate:
        broken[Kind.ERROR] = errors / requests
    p99_ms = latency.quantile(0.99)
    limit_ms = breaker.latency_p99_ms
    warm = bucket.start_unix_s * 1000 >= warm_ms
    if warm and limit_ms is not None and p99_ms is not None and p99_ms > limit_ms * _SKETCH_SLACK:
        broken[Kind.SLOW] = p99_ms
    return broken


def _breaker_harm(
    name: str, breaker: BreakerPolicy, kind: Kind, value: float, *, shadow: bool
) -> Harm:
    if kind is Kind.ERROR:
        metric, limit = "error_rate", plain.percent(breaker.error_rate or 0.0)
        shown = plain.percent(value)
    else:
        metric, limit = "latency_p99", plain.milliseconds(breaker.latency_p99_ms or 0.0)
        shown = plain.milliseconds(value)
    copies = " (copies)" if shadow else ""
    sentence = (
        f"{metric}: {name}{copies} was above its limit of {limit} in {breaker.windows} consecutive "
        f"windows of {TIME_BUCKET_S}s, {shown} in the last"
    )
    return Harm(name, kind, Reason.BREAKER, sentence)


# -- Validity -----------------------------------------------------------------------------------


def _validity(run: Run, policy: Policy, seen: Seen, serving: list[str]) -> tuple[Check, Check]:
    names = [policy.control, *serving]
    shown = [name for name in names if run.split_ppm.get(name, 0) > 0]
    return _sample_ratio(run, seen, shown), _differential_loss(policy, seen, serving)


def _sample_ratio(run: Run, seen: Seen, names: list[str]) -> Check:
    """Do the units fall into the arms as designed?

    Undecided, and then no obstacle, where units are not counted: the traffic itself still has to be
    there.
    """
    units = [seen.variants.get(name, _EMPTY).units for name in names]
    counts = [n for n in units if n is not None]
    if len(names) < 2 or len(counts) < len(names):
        sentence = "sample ratio: units are not counted" if len(names) > 1 else "one arm only"
        return Check(METRIC_SAMPLE_RATIO, "", Verdict.UNDECIDED, Reason.LOW_POWER, sentence)
    if sum(counts) == 0:
        sentence = "sample ratio: no units yet"
        return Check(METRIC_SAMPLE_RATIO, "", Verdict.UNDECIDED, Reason.NO_TRAFFIC, sentence)
    total_ppm = sum(run.split_ppm[name] for name in names)
    shares = [run.split_ppm[name] / total_ppm for name in names]
    log_e = log_sample_ratio(counts, shares)
    crossed = log_e >= -math.log(SAMPLE_RATIO_ALPHA)
    arms = ", ".join(
        f"{name} {plain.count(n)} ({plain.percent(share)} designed)"
        for name, n, share in zip(names, counts, shares, strict=True)
    )
    limit = plain.e_value(-math.log(SAMPLE_RATIO_ALPHA))
    sentence = f"sample ratio: units {arms}; e-value {plain.e_value(log_e)}, limit {limit}"
    return Check(
        METRIC_SAMPLE_RATIO,
        "",
        Verdict.FAIL if crossed else Verdict.PASS,
        Reason.SAMPLE_RATIO_MISMATCH if crossed else Reason.WITHIN_LIMITS,
        sentence,
        control_count=counts[0],
        candidate_count=sum(counts[1:]),
    )


def _differential_loss(policy: Policy, seen: Seen, serving: list[str]) -> Check:
    """Are the entries of one arm lost more often than control's? The worst candidate."""
    control = seen.variants.get(policy.control, _EMPTY)
    worst: tuple[float, str] | None = None
    for name in serving:
        candidate = seen.variants.get(name, _EMPTY)
        if not candidate.decided or not control.decided:
            continue
        difference, error = pooled_errors(_lost(candidate), _lost(control))
        beyond = abs(difference) if abs(difference) > STANDARD_ERRORS * error else 0.0
        worst = max(worst or (beyond, name), (beyond, name))
    if worst is None:
        sentence = "loss: nothing was decided for both arms yet"
        return Check(METRIC_LOSS, "", Verdict.UNDECIDED, Reason.NO_TRAFFIC, sentence)
    beyond, name = worst
    candidate = seen.variants.get(name, _EMPTY)
    (x_t, n_t), (x_c, n_c) = _lost(candidate), _lost(control)
    failed = beyond > LOSS_DIFFERENCE
    return Check(
        METRIC_LOSS,
        name,
        Verdict.FAIL if failed else Verdict.PASS,
        Reason.DIFFERENTIAL_LOSS if failed else Reason.WITHIN_LIMITS,
        f"loss: {plain.percent(x_t / n_t)} of {plain.count(n_t)} requests decided for {name} were "
        f"never logged, {plain.percent(x_c / n_c)} of {plain.count(n_c)} for {policy.control}",
        control_value=x_c / n_c,
        candidate_value=x_t / n_t,
        control_count=n_c,
        candidate_count=n_t,
    )


def _lost(variant: VariantSeen) -> tuple[int, int]:
    return min(max(0, variant.decided - variant.requests), variant.decided), variant.decided


# -- Telemetry, traffic, dwell ------------------------------------------------------------------


def _telemetry(seen: Seen, now_ms: int) -> Iterator[Doubt]:
    known = [s for s in seen.sidecars if not _forgotten(s, now_ms)]
    if not known:
        yield Doubt(Reason.NO_SIDECARS, "no sidecar is connected")
        return
    waiting = [s for s in known if s.gate in (Gate.CLOSED, Gate.UNKNOWN)]
    if waiting:
        clusters = sorted({cluster for s in waiting for cluster in s.waiting_for})
        what = f": no healthy host in {', '.join(clusters)}" if clusters else ""
        sentence = f"{len(waiting)} of {len(known)} sidecars wait for upstreams{what}"
        yield Doubt(Reason.WAITING_FOR_UPSTREAM, sentence)
    oldest = min(known, key=lambda s: s.last_seen_unix_ms)
    age_ms = now_ms - oldest.last_seen_unix_ms
    if age_ms > FRESH_MS:
        sentence = f"sidecar {oldest.node} has not been heard for {plain.duration(age_ms)}"
        yield Doubt(Reason.STALE, sentence)


def _forgotten(sidecar: SidecarSeen, now_ms: int) -> bool:
    age_ms = now_ms - sidecar.last_seen_unix_ms
    return not sidecar.connected and age_ms > SIDECAR_FORGOTTEN_AFTER_MS


def _traffic(run: Run, step: StepPolicy, seen: Seen, serving: list[str]) -> Iterator[Doubt]:
    if step.phase is Phase.SHADOW:
        copies = seen.variants.get(run.shadow_variant, _EMPTY).shadow_requests
        yield from _enough(copies, step, f"copies answered by {run.shadow_variant}")
        return
    if not serving:
        yield Doubt(Reason.NO_TRAFFIC, "no candidate is served at this step")
    for name in serving:
        yield from _enough(seen.variants.get(name, _EMPTY).requests, step, f"requests to {name}")


def _enough(number: int, step: StepPolicy, what: str) -> Iterator[Doubt]:
    if number == 0:
        yield Doubt(Reason.NO_TRAFFIC, f"no {what} yet")
    elif number < step.minimum_requests:
        sentence = f"{plain.count(number)} of at least {plain.count(step.minimum_requests)} {what}"
        yield Doubt(Reason.TOO_FEW_REQUESTS, sentence)


def _dwell(run: Run, step: StepPolicy, now_ms: int) -> Iterator[Doubt]:
    left_ms = run.step_start_ms + step.dwell_ms - now_ms
    if left_ms > 0:
        sentence = f"{plain.duration(left_ms)} of {plain.duration(step.dwell_ms)} are left"
        yield Doubt(Reason.DWELL_NOT_OVER, sentence)


def _check_doubts(step: StepPolicy, checks: tuple[Check, ...]) -> Iterator[Doubt]:
    asked = [c for c in checks if c.metric in step.checks]
    for check in sorted(asked, key=lambda c: c.verdict is not Verdict.FAIL):
        if check.verdict is not Verdict.PASS:
            yield Doubt(check.reason, check.sentence)


# -- Guardrails ---------------------------------------------------------------------------------


def _default_checks(
    run: Run, policy: Policy, step: StepPolicy, seen: Seen, serving: list[str]
) -> Iterator[Check]:
    """Checks that the step asks for without a guardrail: any significant harm fails."""
    declared = {guardrail.metric for guardrail in policy.guardrails}
    for metric in step.checks:
        if metric not in declared:
            for name in serving:
                yield _guardrail(GuardrailPolicy(metric), name, run, policy, step, seen)


def _guardrail(
    guardrail: GuardrailPolicy, name: str, run: Run, policy: Policy, step: StepPolicy, seen: Seen
) -> Check:
    if run.split_ppm.get(policy.control, 0) == 0:
        # The split leaves no control: nothing to compare with, and waiting would not change that.
        sentence = f"{guardrail.metric}: no control at this split; only absolute limits apply"
        return Check(guardrail.metric, name, Verdict.PASS, Reason.WITHIN_LIMITS, sentence)
    candidate = seen.variants.get(name, _EMPTY)
    control = seen.variants.get(policy.control, _EMPTY)
    minimum = step.minimum_requests
    if seen.looks is not None:
        found = seen.looks.of(guardrail.metric, name)
        if found:
            return look_check(found, policy, step)
    elif policy.warm_up_ms and candidate.requests:
        # Counts know no warm-up: what was left out of the comparison shall not pass a step, either.
        sentence = f"{guardrail.metric}: no evidence by bucket of units after the warm-up yet"
        return Check(guardrail.metric, name, Verdict.UNDECIDED, Reason.NO_TRAFFIC, sentence)
    if guardrail.metric not in METRICS_COUNTED:
        sentence = f"{guardrail.metric}: no evidence by bucket of units yet"
        return Check(guardrail.metric, name, Verdict.UNDECIDED, Reason.NO_TRAFFIC, sentence)
    if guardrail.metric == METRIC_ERROR_RATE:
        mine, theirs = (candidate.errors, candidate.requests), (control.errors, control.requests)
        return _rate_check(
            guardrail, name, policy.control, mine, theirs, "errors of requests", minimum
        )
    if guardrail.metric == METRIC_ACCURACY:
        return _accuracy_check(guardrail, name, policy.control, candidate, control, minimum)
    assert guardrail.metric.startswith(METRIC_LATENCY_PREFIX)
    return _latency_check(
        guardrail, name, policy.control, candidate.latency, control.latency, minimum
    )


def _rate_check(
    guardrail: GuardrailPolicy,
    name: str,
    control_name: str,
    mine: tuple[int, int],
    theirs: tuple[int, int],
    what: str,
    minimum: int,
) -> Check:
    """A rate of bad events against control's plus the tolerated harm.

    PASS with a margin: shown to be within it. Without: enough requests, no significant harm.
    """
    few = _too_few(mine[1], theirs[1], minimum)
    own, other = rate_interval(*mine, alpha=CHECK_ALPHA), rate_interval(*theirs, alpha=CHECK_ALPHA)
    margin = guardrail.maximum_harm
    floor = other.low + (margin.of(other.low) if margin else 0.0)
    ceiling = other.high + (margin.of(other.high) if margin else 0.0)
    rate_t, rate_c = mine[0] / max(1, mine[1]), theirs[0] / max(1, theirs[1])
    numbers = (
        f"{guardrail.metric}: {name} {plain.percent(rate_t)} {what} ({plain.count(mine[1])}), "
        f"{control_name} {plain.percent(rate_c)} ({plain.count(theirs[1])})"
    )
    allowed = f"; {_margin_text(margin)} more is allowed" if margin else ""
    if few is not None:
        verdict, reason, rest = Verdict.UNDECIDED, few, f"; at least {minimum} each are needed"
    elif own.low > ceiling:
        verdict, reason, rest = Verdict.FAIL, Reason.GUARDRAIL, allowed or "; worse beyond doubt"
    elif margin is None or own.high <= floor:
        verdict, reason, rest = Verdict.PASS, Reason.WITHIN_LIMITS, allowed
    else:
        verdict, reason = Verdict.UNDECIDED, Reason.LOW_POWER
        rest = f"{allowed}, not shown yet (at most {plain.percent(own.high)})"
        if margin.relative and theirs[0] == 0:
            rest += f"; that is 0 while {control_name} has none: it needs 1 or more"
    return Check(
        guardrail.metric, name, verdict, reason, numbers + rest, rate_c, rate_t, theirs[1], mine[1]
    )


def _too_few(mine: int, theirs: int, minimum: int) -> Reason | None:
    if min(mine, theirs) == 0:
        return Reason.NO_TRAFFIC
    return Reason.TOO_FEW_REQUESTS if min(mine, theirs) < minimum else None


def _margin_text(margin: Margin) -> str:
    if margin.absolute is not None:
        return plain.percent(margin.absolute)
    return f"{plain.percent(margin.relative or 0.0)} of control's"


def _accuracy_check(
    guardrail: GuardrailPolicy,
    name: str,
    control_name: str,
    candidate: VariantSeen,
    control: VariantSeen,
    minimum: int,
) -> Check:
    mine = (candidate.labelled - candidate.correct, candidate.labelled)
    theirs = (control.labelled - control.correct, control.labelled)
    if min(mine[1], theirs[1]) == 0:
        sentence = f"accuracy: {mine[1]} labels for {name}, {theirs[1]} for {control_name}"
        return Check(
            guardrail.metric,
            name,
            Verdict.UNDECIDED,
            Reason.NO_LABELS_YET,
            sentence,
            control_count=theirs[1],
            candidate_count=mine[1],
        )
    check = _rate_check(guardrail, name, control_name, mine, theirs, "wrong of labels", minimum)
    coverage = (
        f"; labels for {plain.percent(_coverage(candidate))} and "
        f"{plain.percent(_coverage(control))} of the requests"
    )
    return Check(
        check.metric,
        name,
        check.verdict,
        check.reason,
        check.sentence + coverage,
        control_value=control.correct / control.labelled,
        candidate_value=candidate.correct / candidate.labelled,
        control_count=check.control_count,
        candidate_count=check.candidate_count,
    )


def _coverage(variant: VariantSeen) -> float:
    return min(1.0, variant.labelled / variant.requests) if variant.requests else 0.0


def _latency_check(
    guardrail: GuardrailPolicy,
    name: str,
    control_name: str,
    candidate: Sketch,
    control: Sketch,
    minimum: int,
) -> Check:
    """A latency quantile against control's plus the tolerated harm.

    "p95 <= limit" is "at most 5 % are above the limit", a rate with an exact bound. With an SLO the
    limit is the stricter of both, as long as control itself keeps the SLO.
    """
    q = int(guardrail.metric.removeprefix(METRIC_LATENCY_PREFIX)) / 100
    few = _too_few(candidate.count, control.count, minimum)
    p_t, p_c = candidate.quantile(q), control.quantile(q)
    if few is not None or p_t is None or p_c is None:
        sentence = (
            f"{guardrail.metric}: {candidate.count} answers of {name}, {control.count} of "
            f"{control_name}; at least {minimum} each are needed"
        )
        return Check(
            guardrail.metric,
            name,
            Verdict.UNDECIDED,
            few or Reason.NO_TRAFFIC,
            sentence,
            control_count=control.count,
            candidate_count=candidate.count,
        )
    margin = guardrail.maximum_harm
    limit_ms = p_c * _SKETCH_SLACK**2 + (margin.of(p_c) if margin else 0.0)
    if guardrail.slo_ms is not None:
        limit_ms = min(limit_ms, max(guardrail.slo_ms, p_c * _SKETCH_SLACK**2))
    above = rate_interval(candidate.above(limit_ms), candidate.count, alpha=CHECK_ALPHA)
    numbers = (
        f"{guardrail.metric}: {name} {plain.milliseconds(p_t)} ({plain.count(candidate.count)}), "
        f"{control_name} {plain.milliseconds(p_c)} ({plain.count(control.count)}), "
        f"limit {plain.milliseconds(limit_ms)}"
    )
    if above.low > 1 - q:
        verdict, reason = Verdict.FAIL, Reason.GUARDRAIL
    elif margin is None or above.high <= 1 - q:
        verdict, reason = Verdict.PASS, Reason.WITHIN_LIMITS
    else:
        verdict, reason, numbers = Verdict.UNDECIDED, Reason.LOW_POWER, numbers + ", not shown yet"
    return Check(
        guardrail.metric, name, verdict, reason, numbers, p_c, p_t, control.count, candidate.count
    )
