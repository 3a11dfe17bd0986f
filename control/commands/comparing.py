"""Tables of `turnout results`: the sentence first, then metric by metric, then what is beside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from control.commands.output import percent, print_line, print_table
from control.model.metrics import BUILT_IN
from control.model.render import enum_text
from turnout.v1alpha1.experiment_pb2 import CandidateVerdict
from turnout.v1alpha1.experiment_service_pb2 import ArmValue, Comparison, ExperimentResults

COLUMNS: Final = (
    "METRIC",
    "VARIANT",
    "STRATUM",
    "CONTROL (N)",
    "CANDIDATE (N)",
    "DIFFERENCE",
    "SEQUENCE",
    "STANDING",
    "N NEEDED",
)

# Rows that act alike are told as what they do; names of the API and of records stay.
ROW_WORDS: Final = {
    "WARMING_UP": "CONTINUE (warm-up)",
    "KEEP_CONTROL_WORSE": "KEEP CONTROL (worse)",
    "KEEP_CONTROL_FUTILE": "KEEP CONTROL (futile)",
}


def print_verdicts(found: ExperimentResults) -> None:
    """What there is to know, in a sentence, and the decision table's rows."""
    if found.sentence:
        print_line(f"{found.sentence}\n")
    for verdict in found.verdicts:
        print_line(f"Verdict on {verdict.variant}: {_row(verdict)}")
        for reason in verdict.reasons:
            print_line(f"  {reason.code}: {reason.text}")
        for note in verdict.notes:
            print_line(f"  note: {note}")
        if verdict.HasField("projected_units"):
            print_line(f"  missing: about {_about(verdict.projected_units)} units in all")
    if found.verdicts:
        print_line("")


def print_comparisons(found: ExperimentResults) -> None:
    """Every metric of every candidate and stratum, and what validity rests on."""
    if not found.comparisons:
        return
    rows = [comparison_row(item) for item in found.comparisons]
    print_line(f"\nMetrics ({levels(found.comparisons)}: valid however often you look)")
    strata = any(item.stratum for item in found.comparisons)
    kept = [i for i, name in enumerate(COLUMNS) if strata or name != "STRATUM"]
    print_table([COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows])
    for line in beside(found):
        print_line(line)


def levels(items: Iterable[Comparison]) -> str:
    """At which levels the sequences hold: candidates share alpha, and so do a metric's strata."""
    rows = list(items)
    whole = [item.confidence for item in rows if not item.stratum]
    parts = [item.confidence for item in rows if item.stratum]
    said = f"{percent((whole or parts)[0])} confidence sequences"
    if len({item.variant for item in rows}) > 1:
        said += " of each candidate"
    if whole and parts:
        said += f", of a stratum {percent(parts[0])} so that all strata of a metric together hold "
        said += percent(whole[0])
    return said


def beside(found: ExperimentResults) -> Iterator[str]:
    """Sample ratio, fairness gaps, balance over the day, throughput, warm-up: a line each."""
    for ratio in found.sample_ratios:
        arms = ", ".join(
            f"{name} {ratio.units[name]} ({percent(ratio.shares[name])} designed)"
            for name in sorted(ratio.units)
        )
        where = f", stratum {ratio.stratum}" if ratio.stratum else ""
        yield f"\nSample ratio of epoch {ratio.epoch}{where}: {arms}; ln e {ratio.log_e_value:.2f}"
    for gap in found.fairness_gaps:
        if gap.lowest == gap.highest:
            yield f"Strata of {gap.variant}: {gap.metric} {_number(gap.metric, gap.lowest)} in all"
            continue
        shown = [_number(gap.metric, value) for value in (gap.lowest, gap.highest)]
        yield (
            f"Strata of {gap.variant}: {gap.metric} from {shown[0]} ({gap.lowest_stratum}) to "
            f"{shown[1]} ({gap.highest_stratum})"
        )
    if found.hours:
        count = len(found.hours)
        hours = "1 hour" if count == 1 else f"{count} hours"
        yield (
            f"Time of day: {hours} seen; the arms' shares of an hour differ by at most "
            f"{percent(found.hour_gap)}"
        )
    if found.throughput:
        rates = (f"{name} {found.throughput[name]:.3g}/s" for name in sorted(found.throughput))
        yield f"Throughput (the split's, not judged): {', '.join(rates)}"
    left_out = [v for v in found.epoch_variants if v.warm_up]
    if left_out:
        counts = (f"{v.variant} {v.warm_up}" for v in left_out)
        yield f"Left out as of the warm-up: {', '.join(counts)}"


def comparison_row(item: Comparison) -> tuple[object, ...]:
    """A comparison as a row of a table."""
    over = f" > {item.slo.ToMilliseconds()} ms" if item.HasField("slo") else ""
    share = bool(over)
    sequence = ""
    if item.HasField("low") and item.HasField("high"):
        ends = (_signed(item.metric, value, share=share) for value in (item.low, item.high))
        sequence = f"[{', '.join(ends)}]"
    difference = item.HasField("difference")
    return (
        item.metric + over,
        item.variant,
        item.stratum or "all",
        _arm(item.metric, item.control, share=share),
        _arm(item.metric, item.candidate, share=share),
        _signed(item.metric, item.difference, share=share) if difference else "",
        sequence,
        enum_text(item.DESCRIPTOR.fields_by_name["standing"], item.standing)
        .replace("_", " ")
        .lower(),
        _about(item.projected_n) if item.HasField("projected_n") else "",
    )


def _row(verdict: CandidateVerdict) -> str:
    row = str(enum_text(verdict.DESCRIPTOR.fields_by_name["row"], verdict.row))
    return ROW_WORDS.get(row, row.replace("_", " "))


def _arm(metric: str, arm: ArmValue, *, share: bool) -> str:
    value = _number(metric, arm.value, share=share) if arm.HasField("value") else "-"
    return f"{value} ({arm.n:,})"


def _signed(metric: str, value: float, *, share: bool = False) -> str:
    return f"{'-' if value < 0 else '+'}{_number(metric, abs(value), share=share)}"


def _number(metric: str, value: float, *, share: bool = False) -> str:
    known = BUILT_IN.get(metric)
    if known is not None and known.unit and not share:
        return f"{value:.4g} {known.unit}"
    return percent(value)


def _about(number: float) -> str:
    """A number of three digits: "12,300"."""
    return f"{float(f'{number:.3g}'):,.0f}"


def changed(before: ExperimentResults | None, now: ExperimentResults) -> bool:
    """Whether results say something that the ones before did not."""
    return before is None or _said(before) != _said(now)


def _said(found: ExperimentResults) -> list[str]:
    return [found.sentence, *_rows(found.comparisons)]


def _rows(items: Iterable[Comparison]) -> Iterator[str]:
    for item in items:
        yield "|".join(map(str, comparison_row(item)))
