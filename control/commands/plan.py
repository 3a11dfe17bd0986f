"""`turnout plan`: what a rollout's steps can find out, and when, before it starts.

Owns the options and what they mean. Computes nothing: see `control.planning`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from control.commands.client import (
    DEFAULT_CONTROL,
    EXIT_UNREACHABLE,
    ControlOption,
    TenantOption,
    command_with,
    connected,
)
from control.commands.files import (
    DEFAULT_TENANT,
    EXIT_FAILED,
    EXIT_INVALID,
    read_documents,
    refuse,
)
from control.commands.measuring import Measured, measure
from control.commands.output import Format, FormatOption, print_data
from control.commands.planshow import plain_plan, print_plan
from control.model import METRICS, Document, durations
from control.model.defaults import resolved
from control.model.metrics import BUILT_IN, LATENCY, Kind, KnownMetrics
from control.planning.inputs import Assumptions, traffic_of
from control.planning.results import ExperimentPlan
from control.planning.rollout import plan_experiment
from control.planning.structure import segment_share
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec
from turnout.v1alpha1.metric_pb2 import MetricSpec

EXIT_CODES: Final = (
    "Exit codes: 0 planned, whatever the warnings, 1 failed (a file cannot be read, or numpy and "
    "scipy are missing), 2 usage (the traffic is missing, or a number is no number), 3 a resource "
    f"is invalid, {EXIT_UNREACHABLE} control plane unreachable (--server), 7 not implemented."
)
_RATES: Final = (Kind.PROPORTION, Kind.CLASSIFIER)
_INSTALL: Final = "planning needs numpy and scipy: pip install numpy scipy"

Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        metavar="METRIC=VALUE",
        help="Control's value: error_rate=0.01, accuracy=0.92, latency_p95=180ms; repeatable.",
    ),
]
Deviations = Annotated[
    list[str] | None,
    typer.Option(
        "--standard-deviation",
        metavar="METRIC=VALUE",
        help="Between units, for means and where a rate's own is too careful; repeatable.",
    ),
]


Files = Annotated[
    list[Path], typer.Option("--file", "-f", help="Resource file (YAML), or -; repeatable.")
]
Rate = Annotated[float | None, typer.Option(help="To the target, in a mean hour.")]
Units = Annotated[float | None, typer.Option(help="Distinct units (users) among a day's requests.")]
PerUnit = Annotated[
    float | None, typer.Option(help="Of one unit in a day; with one of the two above.")
]
Returning = Annotated[
    float, typer.Option(help="Share of a day's units that came on a day before, 0..1.")
]
Eligible = Annotated[
    float | None, typer.Option(help="Share of the units that the segment lets in, 0..1.")
]
Labels = Annotated[float | None, typer.Option(help="Share of the requests that get a label, 0..1.")]
Power = Annotated[float, typer.Option(help="Chance of finding the minimum improvement, 0.5..1.")]
Server = Annotated[
    bool, typer.Option("--server", help="Ask the control plane for what is not given.")
]


class _Given(NamedTuple):
    """What the options say, as they were read."""

    requests_per_second: float | None
    units_per_day: float | None
    requests_per_unit: float | None
    returning: float
    baselines: dict[str, float]
    deviations: dict[str, float]
    eligible: float | None
    labels: float | None
    power: float


@command_with(EXIT_CODES)
def plan(
    *,
    files: Files,
    requests_per_second: Rate = None,
    units_per_day: Units = None,
    requests_per_unit: PerUnit = None,
    returning: Returning = 0.0,
    baseline: Baselines = None,
    standard_deviation: Deviations = None,
    eligible: Eligible = None,
    labels: Labels = None,
    power: Power = 0.8,
    server: Server = False,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say what a rollout can find out, and when, before it starts.

    Takes the files that apply takes, and traffic and baselines from options, or with --server from
    what the control plane counted in an experiment on the same target. Nothing is changed.

    Per step and candidate: requests and units in its time; when its checks can be decided if the
    candidate is as good as control (a step holds until then); and which rise of errors, slow
    answers or wrong answers the safety lanes find in its time, and how soon: "12m / 31m" is by
    when in half, in 95 % of the cases; "17 %" is the chance where it is less than half.

    Per ab step: units for minimumImprovement with one look at the end, and with a look at any time
    (at most 1.9 to 2.5 times as many; half of the tests have decided by about the first number when
    the improvement is just that), the time they take, and what maximumDuration can find. A unit
    counts once, however many requests it makes: say --standard-deviation where that is too careful.
    Checks take the requests of a unit to fail independently.

    Warnings say which step can never decide, or not in its time. They never change the exit code.

    \b
      turnout plan -f fraud.yaml --requests-per-second 20 --requests-per-unit 12 \\
        --baseline error_rate=0.01 --baseline latency_p50=60ms --baseline latency_p95=180ms
      turnout plan -f fraud.yaml --units-per-day 50000 --requests-per-unit 12 \\
        --baseline accuracy=0.92 --labels 0.4 --power 0.9 -o json
      turnout plan -f fraud-v3.yaml --server      # what fraud-v2 measured on the same target
    """  # noqa: D301 - click reads the escape
    with refuse():
        documents = [document for _, document in read_documents(files, tenant=tenant)]
    wanted = [one for one in documents if isinstance(one.spec, ExperimentSpec)]
    if not wanted:
        typer.echo("the files hold no Experiment: there is nothing to plan", err=True)
        raise typer.Exit(EXIT_INVALID)
    known = KnownMetrics(
        {one.name: one.spec for one in documents if isinstance(one.spec, MetricSpec)}
    )
    given = _Given(
        requests_per_second,
        units_per_day,
        requests_per_unit,
        returning,
        _numbers("--baseline", baseline or [], known),
        _numbers("--standard-deviation", standard_deviation or [], known),
        eligible,
        labels,
        power,
    )
    measured = _measure(wanted, control, tenant) if server else {}
    plans: list[ExperimentPlan] = []
    for document in wanted:
        assert isinstance(document.spec, ExperimentSpec)
        found = measured.get(document.spec.target)
        held_out = _held_out(documents, document, tenant)
        try:
            plans.append(_planned(document, known, given, found, held_out=held_out))
        except ValueError as error:
            raise typer.BadParameter(_said(error, server=server, found=found)) from error
        except ImportError as error:
            typer.echo(f"{_INSTALL} ({error})", err=True)
            raise typer.Exit(EXIT_FAILED) from error
    if output is Format.TABLE:
        print_plan(plans)
    else:
        print_data([plain_plan(one) for one in plans], output)


def _planned(
    document: Document,
    known: KnownMetrics,
    given: _Given,
    found: Measured | None,
    *,
    held_out: float,
) -> ExperimentPlan:
    """The plan of one experiment; what is given counts before what was measured.

    Raises:
        ValueError: The traffic is missing, or a number is outside its range.
        ImportError: It needs numpy and scipy, and they are not there.
    """
    assert isinstance(document.spec, ExperimentSpec)
    spec = resolved(document.spec, _measured_as(document.spec, known))
    labels = given.labels if given.labels is not None else (found and found.labels) or 1.0
    assumed = Assumptions(
        traffic=traffic_of(
            _rate(given, found),
            given.units_per_day,
            given.requests_per_unit,
            returning=given.returning,
        ),
        baselines={**(found.baselines if found else {}), **given.baselines},
        deviations=given.deviations,
        eligible=_eligible(spec, given.eligible),
        held_out=held_out,
        labels=labels,
        power=given.power,
    )
    return _with_source(plan_experiment(document.name, spec, assumed), found)


def _numbers(option: str, texts: Sequence[str], known: KnownMetrics) -> dict[str, float]:
    """METRIC=VALUE as given; latencies in milliseconds, by the built-in name.

    Raises:
        typer.BadParameter: One is not of that form, or the metric is unknown.
    """
    found: dict[str, float] = {}
    for text in texts:
        given, separator, value = text.partition("=")
        metric = given if given in BUILT_IN else known.measured_as(given)
        if not separator or not metric:
            names = ", ".join((*METRICS, *known.declared))
            raise typer.BadParameter(
                f"{text!r} is not METRIC=VALUE with one of {names}", param_hint=option
            )
        found[metric] = _number(option, text, metric, value)
    return found


def _number(option: str, text: str, metric: str, value: str) -> float:
    length = durations.parse(value) if metric in LATENCY else None
    if length is not None:
        return durations.milliseconds(length)
    rule = "a latency like 180ms" if metric in LATENCY else "a number"
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if metric in LATENCY or not math.isfinite(number) or number < 0:
        raise typer.BadParameter(f"{text!r}: the value must be {rule}", param_hint=option)
    if BUILT_IN[metric].kind in _RATES and number > 1:
        raise typer.BadParameter(f"{text!r}: a rate must be in 0..1", param_hint=option)
    return number


def _measured_as(spec: ExperimentSpec, known: KnownMetrics) -> Mapping[str, str]:
    named = {name: known.measured_as(name) for name in known.declared}
    return {name: built_in for name, built_in in named.items() if built_in}


def _measure(wanted: Sequence[Document], control: str, tenant: str) -> dict[str, Measured]:
    """Target -> what was counted on it; a target on which nothing was is not there."""
    found: dict[str, Measured] = {}
    with connected(control) as client:
        for document in wanted:
            assert isinstance(document.spec, ExperimentSpec)
            target = document.spec.target
            one = measure(client, document.tenant or tenant, target)
            if one is not None:
                found[target] = one
                continue
            typer.echo(
                f"target/{target}: no experiment on it has been counted yet: traffic and baselines "
                "must be given",
                err=True,
            )
    return found


def _rate(given: _Given, found: Measured | None) -> float | None:
    """Requests per second as given; as measured only where they do not follow from the rest."""
    follows = given.units_per_day is not None and given.requests_per_unit is not None
    if given.requests_per_second is not None or found is None or follows:
        return given.requests_per_second
    return found.requests_per_s


def _eligible(spec: ExperimentSpec, given: float | None) -> float:
    if given is not None:
        return given
    share = segment_share(spec.segment) if spec.HasField("segment") else None
    return share or 1.0


def _held_out(documents: Sequence[Document], document: Document, tenant: str) -> float:
    owner = document.tenant or tenant
    for other in documents:
        if isinstance(other.spec, HoldoutSpec) and (other.tenant or tenant) == owner:
            return other.spec.fraction
    return 0.0


def _said(error: ValueError, *, server: bool, found: Measured | None) -> str:
    text = str(error)
    if not text.startswith("the traffic is missing"):
        return text
    options = "--requests-per-second, or --units-per-day with --requests-per-unit"
    if server and found is None:
        return f"no traffic was measured: say {options}"
    return f"the traffic is missing: say {options}, or --server to measure it"


def _with_source(one: ExperimentPlan, found: Measured | None) -> ExperimentPlan:
    if found is None:
        return one
    missing = f"not measured: {', '.join(found.missing)}" if found.missing else ""
    return replace(
        one, assumptions=(found.source, *one.assumptions, *([missing] if missing else []))
    )
