"""Cells -> looks: every metric of every candidate against control, with its bounds. Pure.

Owns which sums make which metric, the strata (epochs of a ramp x declared strata), the floors below
which a variance is not believed, and how alpha is shared. Refuses to judge, and to pool raw counts
over epochs.

Alpha. The primary's two-sided sequences share `1 - confidence` over the candidates. Harm of
guardrails is one-sided at 0.01 in all: shared over guardrails and candidates, half of it over their
strata. Non-inferiority is one-sided at 0.05 each: all of them must pass (intersection).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.model.metrics import BUILT_IN, Direction
from control.rollout.bounds import rate_interval
from control.rollout.cells import Cell, CellKey, Cells
from control.rollout.looks import (
    REST,
    ArmLook,
    DoubtLook,
    Looks,
    LossLook,
    Method,
    MetricLook,
    SampleRatioLook,
)
from control.rollout.policy import (
    METRIC_LATENCY_PREFIX,
    GuardrailPolicy,
    Margin,
    Policy,
)
from control.rollout.seen import Sketch
from control.rollout.words import Phase
from control.stats.bucketed import BucketedDifference, bucketed_difference, design_effect
from control.stats.confseq import asymptotic_sequence
from control.stats.counts import count_evidence
from control.stats.distributions import chi2_sf
from turnout.contract import LATENCY_SKETCH_ALPHA

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Sums = Callable[[Cell], tuple[Counts, Counts]]

# Where the sequences are tightest, in trials at 50:50: at 0.1 to 10 times that they are at most a
# quarter wider. Fixed before the first look, whatever the traffic.
N_STAR: Final = 5_000
GUARDRAIL_ALPHA: Final = 0.01
SAFE_ALPHA: Final = 0.05
SAMPLE_RATIO_CONCENTRATION: Final = 1000.0
# Below these a variance over buckets is not believed: with no event in a small arm it is 0.
EVENTS_LEAST: Final = 10
BUCKETS_LEAST: Final = 50
# Labels must be missing more often by this to count as lost in one arm.
LOSS_LEAST: Final = 0.01
HETEROGENEITY_P: Final = 0.001
# More requests than this without buckets, and the arrays are not the evidence.
MISSING_MOST: Final = 0.01
_Z: Final = 1.96  # of the ranks around a quantile


def _errors(cell: Cell) -> tuple[Counts, Counts]:
    return cell.errors, cell.requests


def _accuracy(cell: Cell) -> tuple[Counts, Counts]:
    return cell.tp + cell.tn, cell.labelled


def _precision(cell: Cell) -> tuple[Counts, Counts]:
    return cell.tp, cell.tp + cell.fp


def _recall(cell: Cell) -> tuple[Counts, Counts]:
    return cell.tp, cell.tp + cell.fn


def _specificity(cell: Cell) -> tuple[Counts, Counts]:
    return cell.tn, cell.tn + cell.fp


def _false_positives(cell: Cell) -> tuple[Counts, Counts]:
    return cell.fp, cell.tn + cell.fp


def _f1(cell: Cell) -> tuple[Counts, Counts]:
    return 2 * cell.tp, 2 * cell.tp + cell.fp + cell.fn


def _labels(cell: Cell) -> tuple[Counts, Counts]:
    # An answer that failed has no prediction: the lanes see that, it is no loss of labels.
    answered = cell.requests - cell.errors
    return np.minimum(cell.labelled, answered), answered


# Numerator and denominator of every metric that is a ratio of sums.
RATIOS: Final[Mapping[str, Sums]] = {
    "error_rate": _errors,
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "specificity": _specificity,
    "false_positive_rate": _false_positives,
    "f1": _f1,
}
LABEL_METRICS: Final = tuple(name for name in RATIOS if name != "error_rate")


class Pair(NamedTuple):
    """Cells of one epoch and stratum, control's and a candidate's."""

    epoch: int
    stratum: int
    arms: tuple[Cell, Cell]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one metric of one candidate: with which alphas, and which margin."""

    metric: str
    variant: str
    stratum: str
    alpha: float
    harm_alpha: float
    margin: Margin | None
    slo_ms: float | None = None

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return BUILT_IN[self.metric].direction is Direction.HIGHER


def reduce(cells: Cells, policy: Policy, *, metrics: Sequence[str] = ()) -> Looks | None:
    """The looks at all of an experiment's evidence.

    Args:
        cells: Of the run's epochs, the present one last.
        policy: What is asked for.
        metrics: Further ones, to be shown.

    Returns:
        None when there is nothing to look at: no epoch in which a candidate served beside control,
        no request, or buckets of too few of the requests are known.
    """
    if not cells.epochs:
        return None
    served = sum(int(cell.requests.sum()) for cell in cells.cells.values())
    missing = sum(cell.missing for cell in cells.cells.values())
    if not served or missing > MISSING_MOST * (served + missing):
        return None
    candidates = _candidates(cells, policy)
    if not candidates:
        return None
    guards = guardrails(policy)
    shown = [GuardrailPolicy(name) for name in metrics if name not in {g.metric for g in guards}]
    found: list[MetricLook] = []
    losses: list[LossLook] = []
    doubts: list[DoubtLook] = []
    for name in candidates:
        pairs = _pairs(cells, policy.control, name)
        for guard in (*guards, *shown):
            for question in _questions(policy, guard, name, len(candidates), len(guards)):
                overall = _look(question, pairs)
                strata = _strata(question, pairs, policy)
                found += [overall, *strata]
                if policy.primary is not None and policy.primary.metric == guard.metric:
                    doubts += _doubts(overall, strata)
        if any(guard.metric in LABEL_METRICS for guard in guards):
            losses += _losses(name, pairs)
    return Looks(
        metrics=tuple(found),
        sample_ratios=tuple(_sample_ratios(cells, policy)),
        losses=tuple(losses),
        doubts=tuple(doubts),
        units=_units(cells),
        requests=_by_variant(cells, lambda cell: int(cell.requests.sum())),
        warm_up=_by_variant(cells, lambda cell: cell.warm_up),
        missing=missing,
    )


def primary_alpha(policy: Policy) -> float:
    """Of the two-sided sequences of all candidates together: the strictest `ab` step's."""
    steps = [step.alpha for step in policy.steps if step.phase is Phase.AB]
    return min(steps, default=SAFE_ALPHA)


def guardrails(policy: Policy) -> tuple[GuardrailPolicy, ...]:
    """Every metric that a verdict looks at, once: guardrails, checks without one, the primary."""
    found = {guardrail.metric: guardrail for guardrail in policy.guardrails}
    for step in policy.steps:
        for metric in step.checks:
            found.setdefault(metric, GuardrailPolicy(metric))
    if policy.primary is not None:
        found.setdefault(policy.primary.metric, GuardrailPolicy(policy.primary.metric))
    return tuple(found.values())


def _candidates(cells: Cells, policy: Policy) -> list[str]:
    return [
        name
        for name in policy.candidates
        if any(
            epoch.split_ppm.get(name, 0) > 0 and epoch.split_ppm.get(policy.control, 0) > 0
            for epoch in cells.epochs
        )
    ]


def _pairs(cells: Cells, control: str, name: str) -> list[Pair]:
    """The cells that can be compared: of epochs in which both arms had a share."""
    both = {
        epoch.epoch
        for epoch in cells.epochs
        if epoch.split_ppm.get(name, 0) > 0 and epoch.split_ppm.get(control, 0) > 0
    }
    found = []
    for key in sorted(cells.cells):
        if key.variant != name or key.epoch not in both:
            continue
        other = cells.cells.get(CellKey(key.epoch, control, key.stratum))
        if other is not None:
            found.append(Pair(key.epoch, key.stratum, (other, cells.cells[key])))
    return found


def _questions(
    policy: Policy, guard: GuardrailPolicy, name: str, candidates: int, guards: int
) -> list[Question]:
    alpha = primary_alpha(policy) / candidates
    harm = GUARDRAIL_ALPHA / max(1, guards * candidates) / (2 if policy.strata else 1)
    plain = Question(guard.metric, name, "", alpha, harm, guard.maximum_harm)
    if guard.slo_ms is None:
        return [plain]
    beyond = Question(guard.metric, name, "", alpha, harm / 2, None, guard.slo_ms)
    return [Question(guard.metric, name, "", alpha, harm / 2, guard.maximum_harm), beyond]


def _strata(question: Question, pairs: list[Pair], policy: Policy) -> list[MetricLook]:
    """The same question to each stratum; its share of alpha is that of all strata together."""
    if not policy.strata:
        return []
    names = dict(enumerate((REST, *policy.strata)))
    looks = []
    for number, name in names.items():
        mine = [pair for pair in pairs if pair.stratum == number]
        share = Question(
            question.metric,
            question.variant,
            name,
            question.alpha / len(names),
            question.harm_alpha / len(names),
            question.margin,
            question.slo_ms,
        )
        looks.append(_look(share, mine))
    return looks


# -- Ratios ------------------------------------------------------------------------------------


def _look(question: Question, pairs: list[Pair]) -> MetricLook:
    if question.metric.startswith(METRIC_LATENCY_PREFIX) and question.slo_ms is None:
        return _quantile_look(question, pairs)
    sums = _sums_of(question)
    if not pairs or sums is None:
        return _unknown(question)
    stacked = _stacked(pairs, sums)
    whole = bucketed_difference(*stacked)
    y_c, n_c, y_t, n_t = stacked
    control = _arm(y_c, n_c, whole.control)
    candidate = _arm(y_t, n_t, whole.treatment)
    if question.metric in LABEL_METRICS:
        control = _covered(control, [pair.arms[0] for pair in pairs])
        candidate = _covered(candidate, [pair.arms[1] for pair in pairs])
    if not whole.strata:
        return _unknown(question, control, candidate)
    margin = _margin(question, whole)
    if _believed(control) and _believed(candidate) and whole.variance > 0:
        return _clustered(question, whole, control, candidate, margin, Method.BUCKETS)
    return _exact(question, pairs, sums, whole, (control, candidate), margin)


def _sums_of(question: Question) -> Sums | None:
    if question.slo_ms is None:
        return RATIOS.get(question.metric)
    slo_ms = question.slo_ms
    return lambda cell: (cell.latency_over.get(slo_ms, np.zeros_like(cell.requests)), cell.requests)


def _stacked(pairs: list[Pair], sums: Sums) -> tuple[Floats, Floats, Floats, Floats]:
    rows: list[list[npt.NDArray[np.int64]]] = [[], [], [], []]
    for pair in pairs:
        for place, cell in zip((0, 2), pair.arms, strict=True):
            y, n = sums(cell)
            rows[place].append(y)
            rows[place + 1].append(n)
    y_c, n_c, y_t, n_t = (np.asarray(np.stack(row), np.float64) for row in rows)
    return y_c, n_c, y_t, n_t


def _arm(y: Floats, n: Floats, value: float) -> ArmLook:
    return ArmLook(
        n=int(n.sum()),
        events=int(y.sum()),
        value=_finite(value),
        buckets=int(np.count_nonzero(n.sum(axis=0))),
    )


def _covered(arm: ArmLook, cells: Iterable[Cell]) -> ArmLook:
    labelled = answered = 0
    for cell in cells:
        some, of = _labels(cell)
        labelled += int(some.sum())
        answered += int(of.sum())
    coverage = min(1.0, labelled / answered) if answered else None
    return ArmLook(arm.n, arm.events, arm.value, arm.buckets, coverage)


def _believed(arm: ArmLook) -> bool:
    events = arm.events or 0
    return arm.buckets >= BUCKETS_LEAST and min(events, arm.n - events) >= EVENTS_LEAST


def _margin(question: Question, whole: BucketedDifference) -> float | None:
    if question.slo_ms is not None:
        # The quantile may rise until as many answers are beyond the SLO as it leaves.
        allowed = 1 - _level(question.metric)
        return max(0.0, allowed - whole.control)
    return None if question.margin is None else question.margin.of(whole.control)


def _clustered(
    question: Question,
    whole: BucketedDifference,
    control: ArmLook,
    candidate: ArmLook,
    margin: float | None,
    method: Method,
) -> MetricLook:
    two = asymptotic_sequence(
        whole.diff, whole.variance, n=whole.effective, n_star=N_STAR, alpha=question.alpha
    )
    gain = whole.diff if question.higher_is_better else -whole.diff
    best = asymptotic_sequence(
        gain,
        whole.variance,
        n=whole.effective,
        n_star=N_STAR,
        alpha=question.harm_alpha,
        alternative="less",
    ).ci_high
    worst = asymptotic_sequence(
        gain,
        whole.variance,
        n=whole.effective,
        n_star=N_STAR,
        alpha=SAFE_ALPHA,
        alternative="greater",
    ).ci_low
    return replace(
        _unknown(question, control, candidate),
        method=method,
        difference=whole.diff,
        error=math.sqrt(whole.variance),
        low=_finite(two.ci_low),
        high=_finite(two.ci_high),
        best=_finite(best),
        worst=_finite(worst),
        margin=margin,
        effective=whole.effective,
    )


def _exact(
    question: Question,
    pairs: list[Pair],
    sums: Sums,
    whole: BucketedDifference,
    arms: tuple[ArmLook, ArmLook],
    margin: float | None,
) -> MetricLook:
    """Exact bounds of both rates in the latest epoch that has both arms: never pooled over epochs.

    Not being worse is a question to requests. What may show harm, or a gain, counts units: all
    requests of one may go the same way, and of 30 users one that always fails is harm by requests.
    """
    latest = max(pair.epoch for pair in pairs)
    y_c, n_c, y_t, n_t = _stacked([pair for pair in pairs if pair.epoch == latest], sums)
    requests = [(float(y.sum()), float(n.sum())) for y, n in ((y_c, n_c), (y_t, n_t))]
    if min(n for _, n in requests) == 0:
        return _unknown(question, *arms)
    units = [_as_units(y_c, n_c), _as_units(y_t, n_t)]
    safe = _apart(requests, SAFE_ALPHA)
    harm = _apart(units, question.harm_alpha / 2)
    two = _apart(units, question.alpha / 2)
    return replace(
        _unknown(question, *arms),
        method=Method.EXACT,
        difference=whole.diff,
        low=two[0],
        high=two[1],
        best=harm[1] if question.higher_is_better else -harm[0],
        worst=safe[0] if question.higher_is_better else -safe[1],
        margin=margin,
        effective=whole.effective,
    )


def _apart(counts: list[tuple[float, float]], alpha: float) -> tuple[float, float]:
    """Least and greatest difference of two rates, each within its bounds at alpha."""
    control, candidate = (rate_interval(*count, alpha=alpha) for count in counts)
    return candidate.low - control.high, candidate.high - control.low


def _as_units(y: Floats, n: Floats) -> tuple[float, float]:
    """Events and trials of an arm if every unit were one trial.

    As many as units of equal traffic would tell as much: (sum n)^2 / sum n^2 over units, Kish 1965.
    Units fall into buckets at random, so that of buckets' shares s the sum of (s - 1 / buckets)^2
    is 1 over that number, but for 2 / buckets of its square.
    """
    by_bucket = n.sum(axis=0)
    total = float(by_bucket.sum())
    spread = float(np.sum((by_bucket / total - 1 / len(by_bucket)) ** 2))
    trials = min(total, 1 / spread) if spread > 0 else total
    return float(y.sum()) / total * trials, trials


def _unknown(
    question: Question, control: ArmLook | None = None, candidate: ArmLook | None = None
) -> MetricLook:
    return MetricLook(
        metric=question.metric,
        variant=question.variant,
        stratum=question.stratum,
        higher_is_better=question.higher_is_better,
        slo_ms=question.slo_ms,
        control=control or ArmLook(),
        candidate=candidate or ArmLook(),
    )


# -- Latency quantiles -------------------------------------------------------------------------


def _level(metric: str) -> float:
    return int(metric.removeprefix(METRIC_LATENCY_PREFIX)) / 100


def _quantile_look(question: Question, pairs: list[Pair]) -> MetricLook:
    """The difference of quantiles, epoch by epoch, with errors widened by the design effect."""
    level = _level(question.metric)
    rows = []
    n_c = n_t = 0
    for epoch in sorted({pair.epoch for pair in pairs}):
        mine = [pair for pair in pairs if pair.epoch == epoch]
        sketches = [merged(pair.arms[arm].latency for pair in mine) for arm in (0, 1)]
        n_c, n_t = n_c + sketches[0].count, n_t + sketches[1].count
        if min(s.count for s in sketches) * min(level, 1 - level) < EVENTS_LEAST:
            continue
        estimates = [
            _quantile(sketch, level, [pair.arms[arm] for pair in mine])
            for arm, sketch in enumerate(sketches)
        ]
        if any(error <= 0 for _, error in estimates):
            continue
        counts = [sketch.count for sketch in sketches]
        (q_one, own), (q_two, other) = estimates
        # As of ratios: a small arm that has met no slow user yet underrates its own error.
        own = max(own, other * math.sqrt(max(1.0, counts[1] / counts[0])))
        other = max(other, own * math.sqrt(max(1.0, counts[0] / counts[1])))
        rows.append((q_one, own, q_two, other, counts[0] * counts[1] / sum(counts)))
    if not rows:
        return _unknown(question, ArmLook(n_c), ArmLook(n_t))
    q_c, error_c, q_t, error_t, harmonic = np.array(rows).T
    weights = harmonic / harmonic.sum()
    whole = BucketedDifference(
        diff=float(weights @ (q_t - q_c)),
        variance=float(weights**2 @ (error_c**2 + error_t**2)),
        control=float(weights @ q_c),
        treatment=float(weights @ q_t),
        effective=4 * float(harmonic.sum()),
        strata=len(rows),
    )
    margin = None if question.margin is None else question.margin.of(whole.control)
    return _clustered(
        question,
        whole,
        ArmLook(n_c, value=whole.control),
        ArmLook(n_t, value=whole.treatment),
        margin,
        Method.QUANTILE,
    )


def merged(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of all answers."""
    bins: dict[int, int] = {}
    zero, total = 0, 0.0
    for sketch in sketches:
        zero, total = zero + sketch.zero, total + sketch.sum_ms
        for index, count in sketch.bins:
            bins[index] = bins.get(index, 0) + count
    return Sketch(tuple(sorted(bins.items())), zero, total)


def _quantile(sketch: Sketch, level: float, cells: list[Cell]) -> tuple[float, float]:
    """A quantile (ms) and its standard error, clustered.

    Source: Deng, Knoblich, Lu 2018: ranks around the quantile, times the root of the design effect
    of "slower than it", here of the declared threshold nearest to it. The ends are the outer edges
    of their bins: the error is never below the sketch's own.
    """
    value = sketch.quantile(level) or 0.0
    n = sketch.count
    reach = _Z * math.sqrt(level * (1 - level) / n)
    low = (sketch.quantile(max(0.0, level - reach)) or 0.0) * (1 - LATENCY_SKETCH_ALPHA)
    high = (sketch.quantile(min(1.0, level + reach)) or 0.0) * (1 + LATENCY_SKETCH_ALPHA)
    error = (high - low) / (2 * _Z)
    return value, error * math.sqrt(_latency_effect(value, cells))


def _latency_effect(value_ms: float, cells: list[Cell]) -> float:
    """The design effect of being slow, or one trial per unit where no threshold says."""
    thresholds = sorted({ms for cell in cells for ms in cell.latency_over if ms > 0})
    for ms in sorted(thresholds, key=lambda ms: abs(math.log(ms / max(value_ms, 1e-9)))):
        over = np.stack([c.latency_over.get(ms, np.zeros_like(c.requests)) for c in cells])
        effect = design_effect(over, np.stack([c.requests for c in cells]))
        if effect is not None:
            return effect
    units = sum(cell.units << cell.unit_sample_shift for cell in cells)
    requests = sum(int(cell.requests.sum()) for cell in cells)
    return max(1.0, requests / units) if units else 1.0


# -- Validity ----------------------------------------------------------------------------------


def _sample_ratios(cells: Cells, policy: Policy) -> Iterable[SampleRatioLook]:
    present = cells.epochs[-1]
    for epoch in cells.epochs:
        total = sum(epoch.split_ppm.values())
        shares = {name: ppm / total for name, ppm in epoch.split_ppm.items() if ppm > 0}
        if len(shares) < 2:
            continue
        units = {name: cells.units.get((epoch.epoch, name), 0) for name in shares}
        yield from _sample_ratio(epoch.epoch, "", units, shares)
        if epoch is not present or not policy.strata:
            continue
        for number, stratum in enumerate((REST, *policy.strata)):
            found = {name: cells.cells.get(CellKey(epoch.epoch, name, number)) for name in shares}
            counts = {name: cell.units if cell else 0 for name, cell in found.items()}
            yield from _sample_ratio(epoch.epoch, stratum, counts, shares)


def _sample_ratio(
    epoch: int, stratum: str, units: dict[str, int], shares: dict[str, float]
) -> Iterable[SampleRatioLook]:
    if not any(units.values()):
        return
    names = sorted(shares)
    evidence = count_evidence(
        [units[name] for name in names],
        [shares[name] for name in names],
        concentration=SAMPLE_RATIO_CONCENTRATION,
    )
    yield SampleRatioLook(epoch, stratum, float(evidence.log_e), units, shares)


def _losses(name: str, pairs: list[Pair]) -> list[LossLook]:
    """Labels that are missing in one arm more than in the other, clustered by bucket."""
    if not pairs:
        return []
    y_c, n_c, y_t, n_t = _stacked(pairs, _labels)
    whole = bucketed_difference(y_c, n_c, y_t, n_t)
    arms = _arm(y_c, n_c, whole.control), _arm(y_t, n_t, whole.treatment)
    if not (whole.strata and all(map(_believed, arms)) and whole.variance > 0):
        return []
    log_e = 0.0
    if abs(whole.diff) > LOSS_LEAST:
        found = asymptotic_sequence(
            whole.diff, whole.variance, n=whole.effective, n_star=N_STAR, alpha=0.001
        )
        log_e = float(found.log_e)
    return [LossLook(name, log_e, whole.control, whole.treatment)]


def _doubts(overall: MetricLook, strata: list[MetricLook]) -> list[DoubtLook]:
    """Strata that contradict each other: one of them the other way, and not by chance.

    Strata that gain differently, but all gain, are no reason to wait.
    Source: Cochran 1954, Q over strata at 0.001.
    """
    known = [s for s in strata if s.method is Method.BUCKETS and s.error and s.gain is not None]
    if len(known) < 2 or overall.gain is None:
        return []
    gains = np.array([look.gain for look in known], np.float64)
    precision = 1 / np.array([look.error for look in known], np.float64) ** 2
    mean = float(precision @ gains / precision.sum())
    q = float(precision @ (gains - mean) ** 2)
    if mean * overall.gain < 0 and abs(mean) * math.sqrt(precision.sum()) > _Z:
        return [DoubtLook("simpson", overall.metric, overall.variant)]
    if float(gains.min()) < 0 and float(chi2_sf(q, len(known) - 1)) < HETEROGENEITY_P:
        return [DoubtLook("heterogeneity", overall.metric, overall.variant)]
    return []


# -- Beside ------------------------------------------------------------------------------------


def _units(cells: Cells) -> dict[str, int]:
    """Distinct units per variant, of its largest epoch: units come back in the next one."""
    found: dict[str, int] = {}
    shifts = {key.epoch: cell.unit_sample_shift for key, cell in cells.cells.items()}
    for (epoch, name), units in cells.units.items():
        found[name] = max(found.get(name, 0), units << shifts.get(epoch, 0))
    return found


def _by_variant(cells: Cells, count: Callable[[Cell], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, cell in cells.cells.items():
        found[key.variant] = found.get(key.variant, 0) + count(cell)
    return found


def _finite(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None
