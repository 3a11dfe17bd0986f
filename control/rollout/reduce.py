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
from control.rollout.cells import NO_COUNTS, Cell, CellKey, Cells
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
from control.stats.bucketed import BucketedDifference, BucketSums, Rows, bucket_sums
from control.stats.confseq import asymptotic_sequence
from control.stats.counts import count_evidence
from control.stats.distributions import chi2_sf
from control.stats.errors import Alternative
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
_LABELS: Final = "labels"
LABEL_METRICS: Final = tuple(name for name in RATIOS if name != "error_rate")


def _sums_of(what: str | float) -> Sums:
    if isinstance(what, str):
        return _labels if what == _LABELS else RATIOS[what]
    return lambda cell: (cell.latency_over.get(what, NO_COUNTS), cell.requests)


class Pair(NamedTuple):
    """Cells of one epoch and stratum, control's and a candidate's."""

    epoch: int
    stratum: int
    arms: tuple[Cell, Cell]


class Known(NamedTuple):
    """Sums of both arms for some pairs, control's first."""

    control: BucketSums
    treatment: BucketSums

    def of(self, rows: Rows) -> Known:
        """Some of the pairs."""
        return Known(self.control.of(rows), self.treatment.of(rows))


class Pairs:
    """All pairs of a candidate, or those of one stratum or epoch; sums are computed once for all.

    A look asks every metric of the whole and of each stratum, a quantile of each epoch: parts take
    rows of what the whole has stacked.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = tuple(pairs)
        self._whole: Pairs | None = None
        self._places: list[int] = list(range(len(self.pairs)))
        self._known: dict[str | float, Known] = {}

    def __bool__(self) -> bool:
        return bool(self.pairs)

    @property
    def epochs(self) -> list[int]:
        """In order."""
        return sorted({pair.epoch for pair in self.pairs})

    def of_stratum(self, number: int) -> Pairs:
        """Those of one stratum."""
        return self._part(at for at, pair in enumerate(self.pairs) if pair.stratum == number)

    def of_epoch(self, epoch: int) -> Pairs:
        """Those of one epoch."""
        return self._part(at for at, pair in enumerate(self.pairs) if pair.epoch == epoch)

    def cells(self, arm: int) -> list[Cell]:
        """Of control (0) or the candidate (1)."""
        return [pair.arms[arm] for pair in self.pairs]

    def sums(self, of: str | float) -> Known:
        """Sums of a ratio, of `_LABELS`, or of answers slower than so many milliseconds."""
        found = self._known.get(of)
        if found is None:
            found = self._stacked(of) if self._whole is None else self._rows(of, self._whole)
            self._known[of] = found
        return found

    def _part(self, places: Iterable[int]) -> Pairs:
        mine = list(places)
        part = Pairs([self.pairs[at] for at in mine])
        part._whole = self._whole or self
        part._places = [self._places[at] for at in mine]
        return part

    def _rows(self, of: str | float, whole: Pairs) -> Known:
        return whole.sums(of).of(_rows(self._places))

    def _stacked(self, of: str | float) -> Known:
        counted = _sums_of(of)
        arms = []
        for arm in (0, 1):
            rows = [counted(cell) for cell in self.cells(arm)]
            y, n = (np.stack([row[at] for row in rows]) for at in (0, 1))
            arms.append(bucket_sums(y, n))
        return Known(*arms)


def _rows(places: Sequence[int]) -> Rows:
    if places and places[-1] - places[0] == len(places) - 1:
        return slice(places[0], places[-1] + 1)
    return np.array(places, np.intp)


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


class Found(NamedTuple):
    """A look, and what its sequences are yet to be computed from.

    variance: Of its difference; None when its bounds are exact, or nothing bounds it.
    """

    question: Question
    look: MetricLook
    variance: float | None = None


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
    requests = _by_variant(cells, lambda cell: int(cell.requests.sum()))
    served = sum(requests.values())
    missing = sum(cell.missing for cell in cells.cells.values())
    if not served or missing > MISSING_MOST * (served + missing):
        return None
    candidates = _candidates(cells, policy)
    if not candidates:
        return None
    guards = guardrails(policy)
    shown = [GuardrailPolicy(name) for name in metrics if name not in {g.metric for g in guards}]
    found: list[Found] = []
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
                    doubts += _doubts(overall.look, [one.look for one in strata])
        if any(guard.metric in LABEL_METRICS for guard in guards):
            losses += _losses(name, pairs)
    return Looks(
        metrics=_bounded(found),
        sample_ratios=tuple(_sample_ratios(cells, policy)),
        losses=tuple(losses),
        doubts=tuple(doubts),
        units=_units(cells),
        requests=requests,
        warm_up=_by_variant(cells, lambda cell: cell.warm_up),
        missing=missing,
    )


def primary_alpha(policy: Policy) -> float:
    """Of the two-sided sequences of all candidates together: the strictest `ab` step's."""
    steps = [step.alpha for step in policy.steps if step.phase is Phase.AB]
    return min(steps, default=SAFE_ALPHA)


def strata_of(policy: Policy) -> int:
    """How many strata share a question's alpha: those declared and the rest; 1 without any."""
    return len(policy.strata) + 1


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


def _pairs(cells: Cells, control: str, name: str) -> Pairs:
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
    return Pairs(found)


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


def _strata(question: Question, pairs: Pairs, policy: Policy) -> list[Found]:
    """The same question to each stratum; its share of alpha is that of all strata together."""
    if not policy.strata:
        return []
    names = dict(enumerate((REST, *policy.strata)))
    looks = []
    for number, name in names.items():
        mine = pairs.of_stratum(number)
        share = Question(
            question.metric,
            question.variant,
            name,
            question.alpha / strata_of(policy),
            question.harm_alpha / strata_of(policy),
            question.margin,
            question.slo_ms,
        )
        looks.append(_look(share, mine))
    return looks


# -- Ratios ------------------------------------------------------------------------------------


def _bounded(found: Sequence[Found]) -> tuple[MetricLook, ...]:
    """The looks with their sequences, one call for all that share an alpha: each costs its checks.

    Of the two-sided one both ends are kept, of the one-sided ones the finite end.
    """
    places = [place for place, one in enumerate(found) if one.variance is not None]
    looks = [one.look for one in found]
    if not places:
        return tuple(looks)
    some = [found[place] for place in places]
    two = _sequences(some, [one.question.alpha for one in some], "two-sided")
    best = _sequences(some, [one.question.harm_alpha for one in some], "less")
    worst = _sequences(some, [SAFE_ALPHA] * len(some), "greater")
    for at, place in enumerate(places):
        looks[place] = replace(
            looks[place],
            low=_finite(two[0][at]),
            high=_finite(two[1][at]),
            best=_finite(best[1][at]),
            worst=_finite(worst[0][at]),
        )
    return tuple(looks)


def _sequences(
    found: Sequence[Found], alphas: Sequence[float], alternative: Alternative
) -> tuple[Floats, Floats]:
    """Both ends of each one's sequence; of the difference if two-sided, else of the gain."""
    of = [one.look.difference if alternative == "two-sided" else one.look.gain for one in found]
    diff, variance = np.array(of, np.float64), np.array([one.variance for one in found], np.float64)
    n, levels = np.array([one.look.effective for one in found]), np.array(alphas)
    low, high = np.empty_like(diff), np.empty_like(diff)
    for alpha in set(alphas):
        mine = levels == alpha
        ends = asymptotic_sequence(
            diff[mine],
            variance[mine],
            n=n[mine],
            n_star=N_STAR,
            alpha=alpha,
            alternative=alternative,
        )
        low[mine], high[mine] = ends.ci_low, ends.ci_high
    return low, high


def _look(question: Question, pairs: Pairs) -> Found:
    if question.metric.startswith(METRIC_LATENCY_PREFIX) and question.slo_ms is None:
        return _quantile_look(question, pairs)
    if not pairs or (question.slo_ms is None and question.metric not in RATIOS):
        return _unknown(question)
    sums = pairs.sums(_asked(question))
    whole = sums.treatment.minus(sums.control)
    control = _arm(sums.control, whole.control)
    candidate = _arm(sums.treatment, whole.treatment)
    if question.metric in LABEL_METRICS:
        labels = pairs.sums(_LABELS)
        control = _covered(control, labels.control)
        candidate = _covered(candidate, labels.treatment)
    if not whole.strata:
        return _unknown(question, control, candidate)
    margin = _margin(question, whole)
    if _believed(control) and _believed(candidate) and whole.variance > 0:
        return _clustered(question, whole, control, candidate, margin, Method.BUCKETS)
    now = pairs.of_epoch(pairs.epochs[-1])
    return _exact(question, now.sums(_asked(question)), whole, (control, candidate), margin)


def _asked(question: Question) -> str | float:
    return question.metric if question.slo_ms is None else question.slo_ms


def _arm(sums: BucketSums, value: float) -> ArmLook:
    return ArmLook(
        n=int(sums.n_total.sum()),
        events=int(sums.y_total.sum()),
        value=_finite(value),
        buckets=int(np.count_nonzero(sums.n.any(axis=0))),
    )


def _covered(arm: ArmLook, labels: BucketSums) -> ArmLook:
    labelled, answered = int(labels.y_total.sum()), int(labels.n_total.sum())
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
) -> Found:
    look = replace(
        _look_of(question, control, candidate),
        method=method,
        difference=whole.diff,
        error=math.sqrt(whole.variance),
        margin=margin,
        effective=whole.effective,
    )
    return Found(question, look, whole.variance)


def _exact(
    question: Question,
    now: Known,
    whole: BucketedDifference,
    arms: tuple[ArmLook, ArmLook],
    margin: float | None,
) -> Found:
    """Exact bounds of both rates in the latest epoch that has both arms: never pooled over epochs.

    Not being worse is a question to requests. What may show harm, or a gain, counts units: all
    requests of one may go the same way, and of 30 users one that always fails is harm by requests.
    """
    requests = [(float(arm.y_total.sum()), float(arm.n_total.sum())) for arm in now]
    if min(n for _, n in requests) == 0:
        return _unknown(question, *arms)
    units = [_as_units(arm) for arm in now]
    safe = _apart(requests, SAFE_ALPHA)
    harm = _apart(units, question.harm_alpha / 2)
    two = _apart(units, question.alpha / 2)
    look = replace(
        _look_of(question, *arms),
        method=Method.EXACT,
        difference=whole.diff,
        low=two[0],
        high=two[1],
        best=harm[1] if question.higher_is_better else -harm[0],
        worst=safe[0] if question.higher_is_better else -safe[1],
        margin=margin,
        effective=whole.effective,
    )
    return Found(question, look)


def _apart(counts: list[tuple[float, float]], alpha: float) -> tuple[float, float]:
    """Least and greatest difference of two rates, each within its bounds at alpha."""
    control, candidate = (rate_interval(*count, alpha=alpha) for count in counts)
    return candidate.low - control.high, candidate.high - control.low


def _as_units(arm: BucketSums) -> tuple[float, float]:
    """Events and trials of an arm if every unit were one trial.

    As many as units of equal traffic would tell as much: (sum n)^2 / sum n^2 over units, Kish 1965.
    Units fall into buckets at random, so that of buckets' shares s the sum of (s - 1 / buckets)^2
    is 1 over that number, but for 2 / buckets of its square.
    """
    by_bucket = arm.n.sum(axis=0)
    total = float(by_bucket.sum())
    spread = float(np.sum((by_bucket / total - 1 / len(by_bucket)) ** 2))
    trials = min(total, 1 / spread) if spread > 0 else total
    return float(arm.y_total.sum()) / total * trials, trials


def _unknown(
    question: Question, control: ArmLook | None = None, candidate: ArmLook | None = None
) -> Found:
    return Found(question, _look_of(question, control or ArmLook(), candidate or ArmLook()))


def _look_of(question: Question, control: ArmLook, candidate: ArmLook) -> MetricLook:
    return MetricLook(
        metric=question.metric,
        variant=question.variant,
        stratum=question.stratum,
        higher_is_better=question.higher_is_better,
        slo_ms=question.slo_ms,
        control=control,
        candidate=candidate,
    )


# -- Latency quantiles -------------------------------------------------------------------------


def _level(metric: str) -> float:
    return int(metric.removeprefix(METRIC_LATENCY_PREFIX)) / 100


def _quantile_look(question: Question, pairs: Pairs) -> Found:
    """The difference of quantiles, epoch by epoch, with errors widened by the design effect."""
    level = _level(question.metric)
    rows = []
    n_c = n_t = 0
    for epoch in pairs.epochs:
        mine = pairs.of_epoch(epoch)
        sketches = [merged(cell.latency for cell in mine.cells(arm)) for arm in (0, 1)]
        n_c, n_t = n_c + sketches[0].count, n_t + sketches[1].count
        if min(s.count for s in sketches) * min(level, 1 - level) < EVENTS_LEAST:
            continue
        estimates = [_quantile(sketch, level, mine, arm) for arm, sketch in enumerate(sketches)]
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


def _quantile(sketch: Sketch, level: float, pairs: Pairs, arm: int) -> tuple[float, float]:
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
    return value, error * math.sqrt(_latency_effect(value, pairs, arm))


def _latency_effect(value_ms: float, pairs: Pairs, arm: int) -> float:
    """The design effect of being slow, or one trial per unit where no threshold says."""
    cells = pairs.cells(arm)
    thresholds = sorted({ms for cell in cells for ms in cell.latency_over if ms > 0})
    for ms in sorted(thresholds, key=lambda ms: abs(math.log(ms / max(value_ms, 1e-9)))):
        effect = pairs.sums(ms)[arm].design_effect()
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


def _losses(name: str, pairs: Pairs) -> list[LossLook]:
    """Labels that are missing in one arm more than in the other, clustered by bucket."""
    if not pairs:
        return []
    control, candidate = pairs.sums(_LABELS)
    whole = candidate.minus(control)
    arms = _arm(control, whole.control), _arm(candidate, whole.treatment)
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
