"""A whole rollout, planned: each step's traffic, checks, lanes and comparison; how long it takes.

Owns the order of a plan and its doubts. Imports numpy only for margins and ab steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from control.model.durations import milliseconds
from control.planning.detection import Arm, Detection, Lane, detect, smallest_found
from control.planning.inputs import Assumptions, Caution, Traffic
from control.planning.latencies import latency_of
from control.planning.results import (
    CandidatePlan,
    ComparisonPlan,
    ExperimentPlan,
    Found,
    LanePlan,
    StepPlan,
)
from control.planning.stages import Stage, lane_kinds, margin_of, stages_of
from control.planning.structure import (
    check_of,
    experiment_traffic,
    late_doubts,
    segment_share,
    structural,
)
from control.planning.words import chance, count, duration, times, value
from control.rollout.plain import percent
from control.rollout.run import BLOCK_EVERY_MS
from control.rollout.words import Kind
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec

RATIOS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)
WEEK_S: Final = 7 * 86_400.0
# Fewer units of an arm are no sample of users; live comparisons wait for as many.
UNITS_LEAST: Final = 100
# Below it the smaller arm decides how long everything takes.
ARM_SHARE_LEAST: Final = 0.1
# How many times its length a lane's block is asked for at most: plans need no more.
LANE_HORIZON_S: Final = 24 * 3600.0
_WATCHED: Final = {Kind.ERROR: "error_rate", Kind.SLOW: "latency", Kind.WRONG: "accuracy"}
_NAMES: Final = {Kind.ERROR: "errors", Kind.SLOW: "slow answers", Kind.WRONG: "wrong answers"}


def plan_experiment(
    name: str, spec: ExperimentSpec, assumed: Assumptions, *, ratios: tuple[float, ...] = RATIOS
) -> ExperimentPlan:
    """Plan one experiment.

    Args:
        name: Its id.
        spec: Accepted by `control.model`, its declared metrics resolved.
        assumed: Traffic, baselines, power.
        ratios: Multiples of the error rate to look at, > 1.

    Raises:
        ValueError: A baseline is outside its range.
        ImportError: There is a margin or an ab step with a primary metric, and no numpy or scipy.
    """
    _check_baselines(assumed)
    traffic = experiment_traffic(spec, assumed)
    planner = _Planner(spec, traffic, assumed, ratios)
    steps, doubts, begun_s = [], list(structural(spec)), 0.0
    for stage in stages_of(spec):
        step = planner.step(stage, blocks_before=int(begun_s * 1000 // BLOCK_EVERY_MS))
        steps.append(step)
        begun_s += step.expected_s if step.expected_s is not None else step.least_s
        doubts += late_doubts(spec, stage, traffic, assumed)
        doubts += planner.doubts(stage, step)
    expected = [step.expected_s for step in steps]
    most = [_most(step) for step in steps]
    return ExperimentPlan(
        name=name,
        target=spec.target,
        requests_per_s=traffic.requests_per_s,
        units_per_day=traffic.units_per_day,
        unit_random=spec.unit.random,
        steps=tuple(steps),
        least_s=sum(step.least_s for step in steps),
        expected_s=_total(expected),
        most_s=_total(most),
        assumptions=tuple(_assumptions(spec, assumed, traffic)),
        warnings=_distinct(doubts),
    )


def _total(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _most(step: StepPlan) -> float | None:
    if step.kind == "ab":
        return step.most_s
    return step.expected_s


def _distinct(doubts: list[Caution]) -> tuple[Caution, ...]:
    return tuple(dict.fromkeys(doubts))


def _check_baselines(assumed: Assumptions) -> None:
    for metric, number in assumed.baselines.items():
        if not metric.startswith("latency_") and metric in ("error_rate", "accuracy"):
            if not 0 <= number <= 1:
                raise ValueError(f"baseline {metric} == {number:g}, must be in 0..1")
        elif metric.startswith("latency_") and not number > 0:
            raise ValueError(f"baseline {metric} == {number:g} ms, must be > 0")
    latency_of(assumed.baselines)


@dataclass(frozen=True, slots=True)
class _Planner:
    """What all steps of one plan share."""

    spec: ExperimentSpec
    traffic: Traffic
    assumed: Assumptions
    ratios: tuple[float, ...]

    def step(self, stage: Stage, *, blocks_before: int) -> StepPlan:
        candidates = tuple(
            self._candidate(stage, name, blocks_before=blocks_before) for name in stage.shares
        )
        return StepPlan(
            index=stage.index,
            kind=stage.kind,
            control=stage.control,
            least_s=stage.dwell_s,
            expected_s=self._expected_s(stage, candidates),
            most_s=stage.maximum_s,
            candidates=candidates,
        )

    def _expected_s(self, stage: Stage, candidates: tuple[CandidatePlan, ...]) -> float | None:
        if stage.kind in ("canary", "ab") and not candidates:
            return None
        times = [stage.dwell_s, *(plan.minimum_s for plan in candidates)]
        for plan in candidates:
            for check in plan.checks:
                if check.known and check.seconds is None:
                    return None
                times += [check.seconds] if check.seconds is not None else []
            if stage.kind == "ab":
                found = plan.comparison.seconds if plan.comparison else None
                if found is None:
                    return None
                times += [found, self._minimum_units_s(stage, plan.share) or 0.0]
        longest = max(times)
        return longest if stage.maximum_s is None else min(longest, stage.maximum_s)

    def _minimum_units_s(self, stage: Stage, share: float) -> float | None:
        arm = self.traffic.scaled(min(share, stage.control or share))
        return arm.seconds_until(stage.minimum_units, random=self.spec.unit.random)

    def _candidate(self, stage: Stage, name: str, *, blocks_before: int) -> CandidatePlan:
        share, rps = stage.shares[name], self.traffic.requests_per_s
        length_s = stage.maximum_s if stage.maximum_s is not None else stage.dwell_s
        random = self.spec.unit.random
        compared = stage.kind != "shadow" and stage.control > 0
        return CandidatePlan(
            variant=name,
            share=share,
            requests=rps * share * length_s,
            control_requests=rps * stage.control * length_s,
            units=self.traffic.scaled(share).units_after(length_s, random=random),
            control_units=(
                self.traffic.scaled(stage.control).units_after(length_s, random=random)
                if stage.control
                else 0.0
            ),
            minimum_s=stage.minimum_requests / (rps * share),
            checks=tuple(
                check_of(self.spec, stage, name, metric, self.traffic, self.assumed)
                for metric in (stage.checks if compared else ())
            ),
            lanes=(
                tuple(self._lanes(stage, name, length_s, blocks_before))
                if compared and length_s > 0
                else ()
            ),
            comparison=self._comparison(stage, name) if compared else None,
        )

    # -- Lanes ----------------------------------------------------------------------------------

    def _lanes(
        self, stage: Stage, name: str, length_s: float, blocks_before: int
    ) -> Iterator[LanePlan]:
        kinds = lane_kinds(self.spec)
        alpha = self.spec.safety.alpha if self.spec.safety.HasField("alpha") else 0.001
        for kind in kinds:
            base = self._base(kind)
            if base is None:
                continue
            observed = self.assumed.labels if kind is Kind.WRONG else 1.0
            lane = Lane(
                self._arm(stage.shares[name], observed),
                self._arm(stage.control, observed),
                alpha / (len(kinds) * len(stage.shares)),
                blocks_before,
            )
            yield self._lane(stage, name, kind, lane, base, min(length_s, LANE_HORIZON_S))

    def _base(self, kind: Kind) -> float | None:
        baselines = self.assumed.baselines
        if kind is Kind.ERROR:
            return baselines.get("error_rate")
        if kind is Kind.WRONG:
            return None if "accuracy" not in baselines else 1 - baselines["accuracy"]
        slos = [g.slo for g in self.spec.metrics.guardrails if g.HasField("slo")]
        shape = latency_of(baselines)
        return shape.above(min(map(milliseconds, slos))) if slos and shape else None

    def _arm(self, share: float, observed: float) -> Arm:
        arm = self.traffic.scaled(share)
        units = None if self.spec.unit.random else arm.units_per_hour
        return Arm(arm.requests_per_s * observed, units)

    def _lane(
        self, stage: Stage, name: str, kind: Kind, lane: Lane, base: float, within_s: float
    ) -> LanePlan:
        smallest = smallest_found(lane, base=base, within_s=within_s)
        found = tuple(
            _found(ratio, detect(lane, base=base, rate=base * ratio, within_s=within_s))
            for ratio in self.ratios
            if 0 < base * ratio <= 1
        )
        ratio = smallest / base if smallest is not None and base > 0 else None
        text = self._lane_sentence(stage, name, kind, base, smallest, found, within_s)
        return LanePlan(kind.lower(), base, smallest, ratio, found, text)

    def _lane_sentence(
        self,
        stage: Stage,
        name: str,
        kind: Kind,
        base: float,
        smallest: float | None,
        found: tuple[Found, ...],
        within_s: float,
    ) -> str:
        rps, time = self.traffic.requests_per_s * stage.shares[name], duration(within_s)
        what = _NAMES[kind]
        text = f"at {rps:.3g} requests/s to {name} and {percent(base)} {what} "
        double = next((one for one in found if one.ratio == 2.0), None)
        if double is not None and double.median_s is None:
            text += f"a doubling is not detectable in {time} ({chance(double.chance)} chance); "
        elif double is not None and double.median_s is not None:
            text += f"a doubling is found in {duration(double.median_s)} in half of the cases; "
        if smallest is None:
            return f"{text}nothing is found in {time}, not even if all requests are such"
        if base > 0:
            return f"{text}{times(smallest / base)} times is the least found in {time}"
        return f"{text}{percent(smallest)} is the least found in {time}"

    # -- Comparison -----------------------------------------------------------------------------

    def _comparison(self, stage: Stage, name: str) -> ComparisonPlan | None:
        metric = self.spec.metrics.primary.metric
        if stage.kind != "ab" or not metric or stage.confidence is None:
            return None
        from control.planning import comparison

        primary = self.spec.metrics.primary
        margin = (
            margin_of(primary.minimum_improvement)
            if primary.HasField("minimum_improvement")
            else None
        )
        effect = comparison.effect_of(margin, self.assumed.baselines.get(metric))
        asked = comparison.Comparison(
            metric=metric,
            effect=effect,
            alpha=(1 - stage.confidence) / len(stage.shares),
            confidence=stage.confidence,
            power=self.assumed.power,
            candidate=stage.shares[name],
            control=stage.control,
            random=self.spec.unit.random,
        )
        return comparison.plan_comparison(
            asked,
            self.traffic,
            self.assumed,
            maximum_s=stage.maximum_s,
            warm_up_s=milliseconds(self.spec.metrics.warm_up) / 1e3,
        )

    # -- Doubts ---------------------------------------------------------------------------------

    def doubts(self, stage: Stage, step: StepPlan) -> Iterator[Caution]:
        """Doubts of a step beside those of `structure`."""
        if not stage.control or stage.kind == "shadow":
            return
        smaller = min([*stage.shares.values(), stage.control], default=1.0)
        if stage.kind == "ab" and smaller < ARM_SHARE_LEAST:
            which = "control" if smaller == stage.control else "a candidate"
            text = f"{which} has {percent(smaller)}: its few units decide how long it takes"
            yield Caution("ARM_SMALL", f"{stage.field}.split", text)
        elif stage.kind == "canary" and stage.control < min(0.05, *stage.shares.values()):
            text = f"control keeps {percent(stage.control)}: it has too few events to compare with"
            yield Caution("CONTROL_SMALL", f"{stage.field}.split", text)
        for plan in step.candidates:
            yield from self._window_doubt(stage, plan)
            yield from self._units_doubt(stage, plan)
            for lane in plan.lanes:
                double = next((one for one in lane.found if one.ratio == 2.0), None)
                if lane.smallest_rate is None:
                    yield Caution("LANE_BLIND", stage.field, lane.text)
                elif lane.kind == "error" and double is not None and double.median_s is None:
                    yield Caution("DOUBLING_NOT_SEEN", stage.field, lane.text)
            if stage.kind == "ab":
                yield from self._comparison_doubts(stage, plan)

    def _window_doubt(self, stage: Stage, plan: CandidatePlan) -> Iterator[Caution]:
        window = self.spec.safety.window
        length_s = milliseconds(window.length) / 1e3 if window.HasField("length") else 900.0
        least = window.minimum_requests if window.HasField("minimum_requests") else 300
        stays_s = stage.maximum_s if stage.maximum_s is not None else stage.dwell_s
        rps = self.traffic.requests_per_s * min(plan.share, stage.control)
        if rps * min(length_s, stays_s) >= least:
            return
        text = (
            f"the window rule does not watch {plan.variant}: it wants {count(least)} requests in "
            f"both arms, one has {count(rps * min(length_s, stays_s))} in "
            f"{duration(min(length_s, stays_s))}"
        )
        yield Caution("WINDOW_RULE_BLIND", stage.field, text)

    def _units_doubt(self, stage: Stage, plan: CandidatePlan) -> Iterator[Caution]:
        """Many requests of few units say little: whoever always fails is in one of the arms."""
        if self.spec.unit.random or plan.units is None or plan.control_units is None:
            return
        units = min(plan.units, plan.control_units)
        if units >= UNITS_LEAST or min(plan.requests, plan.control_requests) < 2 * units:
            return
        which = plan.variant if plan.units <= plan.control_units else self.spec.control
        requests = min(plan.requests, plan.control_requests)
        text = (
            f"{count(requests)} requests to {which} are those of {count(units)} units, below "
            f"{UNITS_LEAST}: a unit that always fails decides for all"
        )
        yield Caution("FEW_UNITS", stage.field, text)

    def _comparison_doubts(self, stage: Stage, plan: CandidatePlan) -> Iterator[Caution]:
        found = plan.comparison
        if found is None:
            return
        here, maximum_s = f"{stage.field}.maximumDuration", stage.maximum_s
        if found.seconds_most is not None and maximum_s is not None:
            if found.seconds is not None and maximum_s < found.seconds:
                least = "nothing possible"
                if found.detectable is not None:
                    least = value(found.metric, found.detectable)
                text = (
                    f"{duration(maximum_s)} are too short for {plan.variant}: the minimum "
                    f"improvement needs {duration(found.seconds)} to "
                    f"{duration(found.seconds_most)}; {least} is what they can find"
                )
                yield Caution("MAXIMUM_TOO_SHORT", here, text)
            elif maximum_s < found.seconds_most:
                text = (
                    f"{duration(maximum_s)} may end undecided for {plan.variant}: a look at any "
                    f"time needs up to {duration(found.seconds_most)}"
                )
                yield Caution("MAXIMUM_SHORT", here, text)
        length_s = max(stage.dwell_s, min(found.seconds or WEEK_S, maximum_s or WEEK_S))
        if length_s < WEEK_S:
            text = (
                "it may decide within less than a week: days of the week are not balanced; "
                "minimumDuration: 168h waits for all of them"
            )
            yield Caution("BELOW_A_WEEK", f"{stage.field}.minimumDuration", text)


def _found(ratio: float, detection: Detection) -> Found:
    return Found(ratio, detection.rate, detection.chance, detection.median_s, detection.p95_s)


def _assumptions(spec: ExperimentSpec, assumed: Assumptions, traffic: Traffic) -> Iterator[str]:
    """What a plan takes for granted, in sentences."""
    whole = assumed.traffic.requests_per_s
    text = f"{whole:.4g} requests/s to the target"
    if traffic.requests_per_s != whole:
        text += f", {traffic.requests_per_s:.4g} to the experiment"
    if spec.unit.random:
        yield f"{text}; every request is a unit"
    elif traffic.units_per_day is None:
        yield (
            f"{text}; units not known: the lanes take every request for another unit's, which is "
            "too good (say --units-per-day or --requests-per-unit)"
        )
    else:
        each = traffic.requests_per_unit
        yield f"{text}, {count(traffic.units_per_day)} units a day with {each:.3g} requests each"
    if spec.HasField("segment") and assumed.eligible == 1 and segment_share(spec.segment) is None:
        yield "the segment is taken to let everybody in (say --eligible SHARE)"
    for kind in lane_kinds(spec):
        metric = _WATCHED[kind]
        if not any(name.startswith(metric) for name in assumed.baselines):
            name = "latency_p95" if kind is Kind.SLOW else metric
            yield f"{_NAMES[kind]} are left out: no --baseline {name}=VALUE"
    shape = latency_of(assumed.baselines)
    if shape is not None and shape.assumed:
        yield "a single latency is known: its spread is assumed (give latency_p50 and latency_p95)"
    if "accuracy" in {*assumed.baselines} and assumed.labels == 1:
        yield "every request gets its label at once (say --labels SHARE)"
