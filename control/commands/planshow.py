"""A plan as tables and as plain data.

Owns columns and keys. Keys are those of resource files' spelling; lengths are in seconds, so
`median_s` is medianSeconds; null is "never" or "not known".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from control.commands.output import percent, print_line, print_table
from control.planning.checks import CheckPlan
from control.planning.results import CandidatePlan, ExperimentPlan, Found, StepPlan
from control.planning.words import chance, count, duration, times, value


def plain_plan(plan: ExperimentPlan) -> Any:
    """A plan as dictionaries, lists and scalars."""
    return _plain(plan)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {_key(one.name): _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _key(name: str) -> str:
    name = re.sub(r"_per_s$", "_per_second", name)
    name = re.sub(r"_s$", "_seconds", name)
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def print_plan(plans: Sequence[ExperimentPlan]) -> None:
    """Print plans, one after the other."""
    for index, plan in enumerate(plans):
        if index:
            print_line("")
        print_line(f"{plan.name} on {plan.target}")
        for text in plan.assumptions:
            print_line(f"  {text}")
        print_line("")
        print_table(
            ("STEP", "SHARE", "TIME", "REQUESTS", "CONTROL'S", "UNITS", "CONTROL'S", "DECIDES"),
            [row for step in plan.steps for row in _step_rows(step, len(plan.steps))],
        )
        _print_checks(plan)
        _print_lanes(plan)
        _print_comparisons(plan)
        print_line("")
        print_line(_lengths(plan))
        for doubt in plan.warnings:
            print_line(f"warning: {doubt.field}: {doubt.text}")


def _step_rows(step: StepPlan, steps: int) -> Iterator[tuple[object, ...]]:
    name = f"{step.index + 1}/{steps} {step.kind}"
    time = duration(step.most_s if step.most_s is not None else step.least_s)
    decides = "never" if step.expected_s is None else f"after {duration(step.expected_s)}"
    if step.expected_s is None and step.kind == "ab":
        decides = "not known"
    if not step.candidates:
        yield (name, "", time, "", "", "", "", decides)
    for plan in step.candidates:
        copies = " (copies)" if step.kind == "shadow" else ""
        yield (
            name,
            f"{plan.variant} {percent(plan.share)}{copies}",
            time,
            count(plan.requests),
            "" if copies else count(plan.control_requests),
            "" if plan.units is None else count(plan.units),
            "" if copies or plan.control_units is None else count(plan.control_units),
            decides,
        )


def _candidates(plan: ExperimentPlan) -> Iterator[tuple[str, CandidatePlan]]:
    for step in plan.steps:
        for candidate in step.candidates:
            yield f"{step.index + 1}/{len(plan.steps)} {step.kind}", candidate


def _print_checks(plan: ExperimentPlan) -> None:
    rows = [
        (
            step,
            candidate.variant,
            check.metric,
            _after(check),
            check.text,
        )
        for step, candidate in _candidates(plan)
        for check in candidate.checks
    ]
    if rows:
        print_line("")
        print_table(("STEP", "VARIANT", "CHECK", "PASSES AFTER", "WHY"), rows)


def _after(check: CheckPlan) -> str:
    if not check.known:
        return ""
    return "never" if check.seconds is None else duration(check.seconds)


def _print_lanes(plan: ExperimentPlan) -> None:
    ratios = sorted(
        {one.ratio for _, c in _candidates(plan) for lane in c.lanes for one in lane.found}
    )
    rows = []
    for step, candidate in _candidates(plan):
        for lane in candidate.lanes:
            found = {one.ratio: _cell(one) for one in lane.found}
            least = "nothing"
            if lane.smallest_ratio is not None:
                least = f"{times(lane.smallest_ratio)}x"
            elif lane.smallest_rate is not None:
                least = value("", lane.smallest_rate)
            row = (step, candidate.variant, lane.kind, value("", lane.base), least)
            rows.append((*row, *(found.get(ratio, "") for ratio in ratios)))
    if rows:
        print_line("")
        columns = ("STEP", "VARIANT", "HARM", "CONTROL'S", "FOUND FROM")
        print_table((*columns, *(f"{times(ratio)}x" for ratio in ratios)), rows)


def _cell(found: Found) -> str:
    if found.median_s is None:
        return chance(found.chance)
    late = "-" if found.p95_s is None else duration(found.p95_s)
    return f"{duration(found.median_s)} / {late}"


def _print_comparisons(plan: ExperimentPlan) -> None:
    for step, candidate in _candidates(plan):
        found = candidate.comparison
        if found is None:
            continue
        print_line(f"\n{step}, {candidate.variant}: {found.text}")
        if found.detectable is not None:
            print_line(
                f"  its maximum duration can find {value(found.metric, found.detectable)} or more"
            )


def _lengths(plan: ExperimentPlan) -> str:
    text = f"At least {duration(plan.least_s)}"
    if plan.expected_s is None:
        return f"{text} in all; a step may never decide, or nobody can say when: see the table."
    if plan.expected_s > plan.least_s:
        text += f", {duration(plan.expected_s)} when every step decides as soon as it can"
    if plan.most_s is not None and plan.most_s > plan.expected_s:
        text += f", {duration(plan.most_s)} at most"
    return f"{text}."
