"""Commands that look and change nothing: get, describe, watch, results, sidecars."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import grpc
import typer

from control.commands import comparing, describing, earning
from control.commands.client import (
    COLLECTIONS,
    DEFAULT_CONTROL,
    Client,
    ControlOption,
    TenantOption,
    client_command,
    collection,
    connected,
    metadata,
    reference,
)
from control.commands.files import DEFAULT_TENANT, check_tenant
from control.commands.output import (
    Format,
    FormatOption,
    percent,
    print_data,
    print_line,
    print_table,
    split_of,
    state_of,
    step_of,
    summary,
    why,
)
from control.model import document_of, holdout_name, plain, to_yaml
from control.model.metrics import Direction
from control.model.render import enum_text
from turnout.completing import any_names, experiment_names
from turnout.v1alpha1.config_service_pb2 import ListSidecarsRequest, Sidecar
from turnout.v1alpha1.experiment_pb2 import Experiment, VariantResult
from turnout.v1alpha1.experiment_service_pb2 import (
    ExperimentResults,
    GetExperimentRequest,
    GetExperimentResultsRequest,
    GetHoldoutRequest,
    GetTargetRequest,
    Holdout,
    ListDecisionsRequest,
    ListExperimentsRequest,
    ListTargetsRequest,
    WatchExperimentResultsRequest,
    WatchExperimentsRequest,
    WatchExperimentsResponse,
)
from turnout.v1alpha1.metric_pb2 import Metric
from turnout.v1alpha1.metric_service_pb2 import GetMetricRequest, ListMetricsRequest
from turnout.v1alpha1.target_pb2 import Target

PAGE_SIZE: Final = 500
DECISIONS_SHOWN: Final = 5
RECONNECT_S: Final = 1.0
# A control plane that stops cancels its streams, or is gone before it can.
LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
ENDED: Final = ("PROMOTED", "ROLLED_BACK", "STOPPED", "INCONCLUSIVE")

WordsArgument = Annotated[
    list[str],
    typer.Argument(
        help="KIND, KIND NAME, KIND/NAME or NAME.", metavar="WHAT", autocompletion=any_names
    ),
]
NameArgument = Annotated[
    list[str],
    typer.Argument(
        help="NAME (an experiment), KIND NAME or KIND/NAME.",
        metavar="WHAT",
        autocompletion=any_names,
    ),
]


# -- get -------------------------------------------------------------------------------------------


@client_command
def get(
    what: WordsArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """List targets, experiments or metrics, or print one, or the tenant's holdout.

    `turnout get experiments`, `turnout get target fraud -o yaml`, `turnout get holdout`,
    `turnout get metrics` (those that every tenant has are among them). What
    -o yaml prints can be edited and given to `turnout apply`, which refuses it when the resource
    has changed meanwhile.
    """
    resources: list[Any]
    if is_holdout(what):
        resources, kind = [held(control, tenant)], "holdout"
    elif len(what) == 1 and f"{what[0].lower().removesuffix('s')}s" in COLLECTIONS:
        kind = collection(what[0])
        with connected(control) as client:
            resources = _all(client, kind, check_tenant(tenant))
    else:
        name = reference(what, tenant)
        kind = name.collection
        with connected(control) as client:
            resources = [_one(client, kind, str(name))]
    if output is not Format.TABLE:
        print_data([document_of(resource) for resource in resources], output)
    elif kind == "holdout":
        print_table(("TENANT", "FRACTION", "REVISION"), [_holdout_row(resources[0])])
    elif kind == "targets":
        print_table(
            ("NAME", "HOSTS", "PATH", "BASELINE", "MODEL", "RUNNING", "REVISION"),
            [_target_row(target) for target in resources],
        )
    elif kind == "metrics":
        print_table(
            ("NAME", "KIND", "BETTER", "MEASURED", "WHERE", "OF", "USED BY"),
            [_metric_row(metric) for metric in resources],
        )
    else:
        print_table(
            ("NAME", "TARGET", "STATE", "STEP", "SPLIT", "EPOCH", "WHY"),
            [_experiment_row(experiment) for experiment in resources],
        )


def is_holdout(words: list[str]) -> bool:
    """True for the word that means the tenant's holdout."""
    return [word.lower() for word in words] == ["holdout"]


def held(control: str, tenant: str) -> Holdout:
    """A tenant's holdout.

    Raises:
        typer.Exit: The control plane does not say.
    """
    request = GetHoldoutRequest(name=holdout_name(check_tenant(tenant)))
    with connected(control) as client:
        found: Holdout = client.call(client.holdouts.GetHoldout, request)
    return found


def _holdout_row(holdout: Holdout) -> tuple[object, ...]:
    tenant = holdout.name.split("/")[1]
    return tenant, percent(holdout.spec.fraction), holdout.revision


def _metric_row(metric: Metric) -> tuple[object, ...]:
    found, status = describing.meaning(metric), metric.status
    used = [name.rpartition("/")[2] for name in status.experiments]
    return (
        found.name,
        str(found.kind),
        "higher" if found.direction is Direction.HIGHER else "lower",
        describing.measured(found),
        "live" if status.live else describing.elsewhere(found),
        "every tenant" if status.built_in else metric.name.split("/")[1],
        ", ".join(used),
    )


def _one(client: Client, kind: str, name: str) -> Target | Experiment | Metric:
    found: Target | Experiment | Metric
    if kind == "metrics":
        found = client.call(client.metrics.GetMetric, GetMetricRequest(name=name))
    elif kind == "targets":
        found = client.call(client.targets.GetTarget, GetTargetRequest(name=name))
    else:
        found = client.call(client.experiments.GetExperiment, GetExperimentRequest(name=name))
    return found


def _all(client: Client, kind: str, tenant: str) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        request: Any
        if kind == "targets":
            request = ListTargetsRequest(
                parent=f"tenants/{tenant}", page_size=PAGE_SIZE, page_token=token
            )
            page = client.call(client.targets.ListTargets, request)
            found.extend(page.targets)
        elif kind == "metrics":
            request = ListMetricsRequest(
                parent=f"tenants/{tenant}", page_size=PAGE_SIZE, page_token=token
            )
            page = client.call(client.metrics.ListMetrics, request)
            found.extend(page.metrics)
        else:
            request = ListExperimentsRequest(
                parent=f"tenants/{tenant}", page_size=PAGE_SIZE, page_token=token
            )
            page = client.call(client.experiments.ListExperiments, request)
            found.extend(page.experiments)
        token = page.next_page_token
        if not token:
            return found


def _target_row(target: Target) -> tuple[object, ...]:
    baseline = target.spec.baseline
    running = [name.rpartition("/")[2] for name in target.status.running_experiments]
    model = f"{baseline.model.id} {baseline.model.version}".strip()
    return (
        target.name.rpartition("/")[2],
        ", ".join(target.spec.match.hosts),
        target.spec.match.path_prefix,
        baseline.upstream.address or baseline.upstream.cluster,
        model,
        ", ".join(running),
        target.revision,
    )


def _experiment_row(experiment: Experiment) -> tuple[object, ...]:
    return (
        experiment.name.rpartition("/")[2],
        experiment.spec.target,
        state_of(experiment.status),
        step_of(experiment),
        split_of(experiment),
        experiment.status.epoch or None,
        why(experiment),
    )


# -- describe --------------------------------------------------------------------------------------


@client_command
def describe(
    what: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Tell an experiment's or a target's state, its conditions, the last decision and why.

    `turnout describe metric error_rate` tells what a metric means and who uses it,
    `turnout describe holdout` who is held out of everything.
    """
    if is_holdout(what):
        _describe_holdout(held(control, tenant), output)
        return
    name = reference(what, tenant)
    with connected(control) as client:
        resource = _one(client, name.collection, str(name))
        decisions, earned = [], None
        if isinstance(resource, Experiment):
            request = ListDecisionsRequest(parent=str(name), page_size=DECISIONS_SHOWN)
            decisions = list(client.call(client.experiments.ListDecisions, request).decisions)
            if any(step.HasField("bandit") for step in resource.spec.steps):
                asked = GetExperimentResultsRequest(name=str(name))
                answer = client.call(client.experiments.GetExperimentResults, asked)
                earned = answer.bandit if answer.HasField("bandit") else None
    if output is not Format.TABLE:
        document = document_of(resource)
        if isinstance(resource, Experiment):
            document["decisions"] = [plain(decision) for decision in decisions]
        if earned is not None:
            document["bandit"] = plain(earned)
        print_data([document], output)
    elif isinstance(resource, Target):
        print_line(describing.target(resource))
    elif isinstance(resource, Metric):
        print_line(describing.metric(resource))
    else:
        print_line(describing.experiment(resource, decisions))
        if earned is not None:
            print_line("\n".join(["Bandit:", *(f"  {line}" for line in earning.page(earned))]))


def _describe_holdout(holdout: Holdout, output: Format) -> None:
    if output is Format.TABLE:
        print_line(describing.holdout(holdout))
    else:
        print_data([document_of(holdout)], output)


# -- watch -----------------------------------------------------------------------------------------


@client_command
def watch(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only this experiment; default all of the tenant.",
            metavar="[NAME]",
            autocompletion=experiment_names,
        ),
    ] = None,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    until_ended: Annotated[
        bool, typer.Option("--until-ended", help="Stop when every experiment seen has ended.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Follow experiments: first as they are, then every change, until you interrupt it.

    A lost control plane is waited for, and said on standard error. With -o json every event is one
    line.
    """
    name = reference(what, tenant) if what else None
    owner = name.tenant if name else check_tenant(tenant)
    request = WatchExperimentsRequest(parent=f"tenants/{owner}", name=str(name) if name else "")
    show = _shower(output)
    live: dict[str, bool] = {}
    with connected(control) as client:
        while True:
            try:
                for event in client.experiments.WatchExperiments(request, metadata=metadata()):
                    show(event)
                    _follow(live, event)
                    if until_ended and live and not any(live.values()):
                        return
            except grpc.RpcError as error:
                if error.code() not in LOST or not live:
                    raise
            typer.echo(f"control plane at {control}: lost, trying again", err=True)
            threading.Event().wait(RECONNECT_S)


def _follow(live: dict[str, bool], event: WatchExperimentsResponse) -> None:
    """Note whether an experiment has not ended."""
    state = state_of(event.experiment.status)
    gone = event.type == WatchExperimentsResponse.TYPE_DELETED
    live[event.experiment.name] = not gone and state not in ENDED


def _shower(output: Format) -> Callable[[WatchExperimentsResponse], None]:
    """Prints one event; a table repeats a line only when it says something new."""
    last: dict[str, str] = {}

    def show(event: WatchExperimentsResponse) -> None:
        kind = enum_text(event.DESCRIPTOR.fields_by_name["type"], event.type)
        document = document_of(event.experiment)
        if output is Format.JSON:
            print_line(json.dumps({"type": kind, "experiment": document}, ensure_ascii=False))
        elif output is Format.YAML:
            print_line("---\n" + to_yaml([{"type": kind, "experiment": document}]).rstrip())
        else:
            name = event.experiment.name
            gone = event.type == WatchExperimentsResponse.TYPE_DELETED
            line = f"{name.rpartition('/')[2]}  DELETED" if gone else summary(event.experiment)
            if last.get(name) != line:
                print_line(line)
            last[name] = line

    return show


# -- results ---------------------------------------------------------------------------------------


@client_command
def results(
    what: NameArgument,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    all_epochs: Annotated[
        bool, typer.Option("--all-epochs", help="Add up all epochs: shown, never tested.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--watch", help="Print them again whenever they are others.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say what is known: a verdict on each candidate, metric by metric, lanes and checks.

    First one sentence. Then for each metric both arms with their numbers, the difference with a
    confidence sequence, which is valid however often you look, and what is missing for a verdict;
    by stratum, too, where the experiment declares strata.
    """
    name = reference(what, tenant)
    with connected(control) as client:
        if follow:
            _follow_results(client, str(name), output, all_epochs=all_epochs)
            return
        request = GetExperimentResultsRequest(name=str(name))
        found: ExperimentResults = client.call(client.experiments.GetExperimentResults, request)
    _print_results(found, output, all_epochs=all_epochs)


def _follow_results(client: Client, name: str, output: Format, *, all_epochs: bool) -> None:
    request = WatchExperimentResultsRequest(name=name)
    before = None
    for found in client.experiments.WatchExperimentResults(request, metadata=metadata()):
        if output is Format.JSON:
            print_line(json.dumps(plain(found), ensure_ascii=False))
        elif output is Format.YAML:
            print_line("---\n" + to_yaml([plain(found)]).rstrip())
        elif comparing.changed(before, found):
            _print_results(found, output, all_epochs=all_epochs)
            print_line("")
        before = found


def _print_results(found: ExperimentResults, output: Format, *, all_epochs: bool) -> None:
    if output is not Format.TABLE:
        print_data([plain(found)], output)
        return
    comparing.print_verdicts(found)
    _print_variants(found.variants if all_epochs else found.epoch_variants)
    if found.HasField("bandit"):
        print_line("")
        earning.print_bandit(found.bandit)
    if found.lanes:
        print_line("")
        print_table(
            ("LANE", "VARIANT", "BLOCK", "EVENTS", "CONTROL'S", "LOG E", "THRESHOLD", "CROSSED"),
            [describing.lane_row(lane) for lane in found.lanes],
        )
    if found.checks:
        print_line("")
        print_table(
            ("CHECK", "VARIANT", "VERDICT", "REASON", "CONTROL", "CANDIDATE", "WHY"),
            [describing.check_row(check) for check in found.checks],
        )
    comparing.print_comparisons(found)
    if found.primary_sentence and not found.verdicts:
        print_line(f"\nPrimary metric: {found.primary_sentence}")
    if found.unstamped:
        reasons = ", ".join(f"{key} {found.unstamped[key]}" for key in sorted(found.unstamped))
        print_line(f"\nUnstamped: {reasons}")
    if found.target_unstamped:
        by_target = found.target_unstamped
        reasons = ", ".join(f"{key} {by_target[key]}" for key in sorted(by_target))
        print_line(f"\nOf them, of the target: {reasons}")
    if found.beside:
        shown = (f"{key.replace('_', ' ')} {found.beside[key]}" for key in sorted(found.beside))
        print_line(f"\nBeside the variants: {', '.join(shown)}")
    _print_not_compared(found.variants if all_epochs else found.epoch_variants)


def _print_not_compared(variants: Iterable[VariantResult]) -> None:
    """What the counts have and the comparison has not."""
    found = list(variants)
    for left_out, counts in (
        ("began in a warm-up", {v.variant: v.warm_up for v in found}),
        ("not known by unit, as from older sidecars", {v.variant: v.missing for v in found}),
    ):
        if any(counts.values()):
            shown = ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
            print_line(f"\nNot compared, {left_out}: {shown}")


def _print_variants(variants: Any) -> None:
    columns = (
        "VARIANT (* CONTROL)",
        "REQUESTS",
        "ERRORS",
        "SLOW",
        "P50 MS",
        "P95 MS",
        "ACCURACY",
        "LABELLED",
        "LOSS",
        "COPIES",
        "COPIES' ERRORS",
        "COPIES' P95 MS",
        "COPIES' ACCURACY",
    )
    rows = [_variant_row(variant) for variant in variants]
    # Columns of copies only where there were some.
    copied = any(variant.shadow_requests for variant in variants)
    width = len(columns) if copied else columns.index("COPIES")
    print_table(columns[:width], [row[:width] for row in rows])


def _variant_row(result: VariantResult) -> tuple[object, ...]:
    served, copies = result.requests, result.shadow_requests
    return (
        f"{result.variant} *" if result.control else result.variant,
        served,
        _count(result.errors, served),
        _count(result.slow, served),
        result.latency_p50_ms if served else None,
        result.latency_p95_ms if served else None,
        _share(result.correct, result.labelled),
        _count(result.labelled, served),
        percent(result.loss),
        copies,
        _count(result.shadow_errors, copies),
        result.shadow_latency_p95_ms if copies else None,
        _share(result.shadow_correct, result.shadow_labelled),
    )


def _count(part: int, whole: int) -> str:
    return f"{part} ({percent(part / whole)})" if whole else str(part)


def _share(part: int, whole: int) -> str | None:
    return percent(part / whole) if whole else None


# -- sidecars --------------------------------------------------------------------------------------


@client_command
def sidecars(
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """List the sidecars and which configuration each one serves."""
    request = ListSidecarsRequest(parent=f"tenants/{check_tenant(tenant)}")
    with connected(control) as client:
        found = list(client.call(client.sidecars.ListSidecars, request).sidecars)
    if output is not Format.TABLE:
        print_data([{"sidecars": [plain(sidecar) for sidecar in found]}], output)
        return
    print_table(
        ("NODE", "CONNECTED", "SERVES", "CURRENT", "CONFIG", "WORKERS", "SEEN", "TROUBLE"),
        [_sidecar_row(sidecar) for sidecar in found],
    )


def _sidecar_row(sidecar: Sidecar) -> tuple[object, ...]:
    report, last = sidecar.report, sidecar.last_seen_time
    seen = last.ToDatetime().strftime("%m-%d %H:%M:%SZ") if last.seconds else ""
    if not sidecar.connected:
        # What it said last is no longer true, or cannot be known.
        return (sidecar.node, False, None, sidecar.current_version, "DISCONNECTED", "", seen, "")
    trouble = [f"NACK {item.field}: {item.value}: {item.rule}" for item in sidecar.nack]
    trouble += [
        f"{gate.experiment} waits for {', '.join(gate.waiting_for)}"
        for gate in report.gates
        if not gate.open
    ]
    trouble += [f"Envoy rejected {text}" for text in report.envoy_rejections]
    trouble += [f"start gate: {report.start_gate_error}"] if report.start_gate_error else []
    return (
        sidecar.node,
        sidecar.connected,
        report.applied_version or sidecar.acked_version,
        sidecar.current_version,
        report.config_state,
        f"{report.workers_ready}/{report.workers}",
        seen,
        "; ".join(trouble),
    )
