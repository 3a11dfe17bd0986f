"""Metrics: built in, declared, named by experiments; over the API and on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
import yaml
from google.protobuf.field_mask_pb2 import FieldMask

from control.analyze.metrics import BUILT_IN as ANALYSED
from control.model import (
    BUILT_IN,
    definition,
    metric_with_defaults,
    read_yaml,
    spec_of,
    unimplemented,
    validate_metric,
)
from control.model.metrics import LIVE, Direction, Kind
from tests.control.clishell import Shell
from tests.control.peers import (
    EXPERIMENT_SPEC,
    PARENT,
    Api,
    FakeSidecar,
    experiment,
    reason,
    violations,
)
from tests.control.resources import EXPERIMENT, TARGET, document, violations_of
from turnout.v1alpha1 import common_pb2
from turnout.v1alpha1 import metric_service_pb2 as service
from turnout.v1alpha1.metric_pb2 import Metric, MetricSpec

CODE = grpc.StatusCode
BASKET = """
kind: Metric
metadata: {name: basket-value, tenant: risk, labels: {team: shop}}
spec: {kind: mean, direction: higherIsBetter, value: basket_eur, cap: 500, covariate: basket_before,
  segments: [country, device], labelMaturity: 24h, unit: EUR, description: Value of a basket.}
"""
RIGHT = """
kind: Metric
metadata: {name: right-answers, tenant: risk}
spec: {kind: classifier, statistic: accuracy}
"""


def spec(text: str) -> MetricSpec:
    """The spec of a document."""
    found = document(text).spec
    assert isinstance(found, MetricSpec)
    return found


async def create(api: Api, text: str, name: str, **fields: object) -> Metric:
    """Declare the metric of a document."""
    request = service.CreateMetricRequest(
        parent=PARENT,
        metric_id=name,
        metric=Metric(spec=spec(text)),
        **fields,  # type: ignore[arg-type]
    )
    return await api.metrics.CreateMetric(request)


async def refused(call: object) -> grpc.aio.AioRpcError:
    """Why a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


# -- The registry ----------------------------------------------------------------------------------


def test_built_in_metrics_are_those_of_the_documentation() -> None:
    assert set(BUILT_IN) == {
        *("error_rate", "latency_p50", "latency_p90", "latency_p95", "latency_p99", "throughput"),
        *("accuracy", "f1", "precision", "recall", "specificity", "false_positive_rate", "auc"),
        *("click_through_rate", "conversion_rate", "revenue_per_user", "satisfaction"),
        *("cost_per_request", "prediction_drift"),
    }
    assert set(BUILT_IN) - set(LIVE) == {
        *("throughput", "auc", "click_through_rate", "conversion_rate", "revenue_per_user"),
        *("satisfaction", "cost_per_request", "prediction_drift"),
    }
    worse_when_higher = {name for name, d in BUILT_IN.items() if d.direction is Direction.LOWER}
    assert worse_when_higher == {
        *("error_rate", "latency_p50", "latency_p90", "latency_p95", "latency_p99"),
        *("false_positive_rate", "cost_per_request", "prediction_drift"),
    }


def test_analyses_know_the_same_names_and_directions() -> None:
    known = {name: metric.direction for name, metric in ANALYSED.items()}
    assert known == {
        name: "higher_is_better" if found.direction is Direction.HIGHER else "lower_is_better"
        for name, found in BUILT_IN.items()
        if not found.shown_live
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - {"prediction_drift", "throughput"}))
def test_built_in_metric_is_a_good_declaration_when_it_is_written_as_one(name: str) -> None:
    written = spec_of(BUILT_IN[name])
    assert validate_metric("risk", "other", written) == []
    read = definition(name, written)
    assert read == BUILT_IN[name]


def test_definition_has_every_field_when_a_metric_is_declared() -> None:
    found = definition("basket-value", spec(BASKET))
    assert (found.kind, found.direction, found.value) == (Kind.MEAN, Direction.HIGHER, "basket_eur")
    assert (found.cap, found.covariate, found.unit) == (500, "basket_before", "EUR")
    assert (found.segments, found.label_maturity_s) == (("country", "device"), 86_400)
    assert not found.live
    assert Direction.HIGHER.sign == -Direction.LOWER.sign == 1


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("{kind: classifier, statistic: f1}", "f1"),
        ("{kind: classifier, statistic: auc}", ""),
        ("{kind: classifier, statistic: f1, labelMaturity: 1h}", ""),
        ("{kind: classifier, statistic: f1, segments: [country]}", ""),
        ("{kind: proportion, value: error}", "error_rate"),
        ("{kind: quantile, value: latency, quantile: 0.99}", "latency_p99"),
        ("{kind: quantile, value: latency, quantile: 0.98}", ""),
        ("{kind: proportion, value: converted, direction: higherIsBetter}", ""),
    ],
)
def test_metric_is_measured_live_when_requests_and_labels_show_it(text: str, live: str) -> None:
    found = spec(f"kind: Metric\nmetadata: {{name: m}}\nspec: {text}")
    assert validate_metric("risk", "m", found) == []
    assert definition("m", found).measured_as == live


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("{}", "spec.kind", "required; one of proportion, mean"),
        ("{kind: drift, direction: lowerIsBetter}", "spec.kind", "required; one of proportion"),
        ("{kind: mean}", "spec.direction", "required; one of higherIsBetter"),
        ("{kind: median, direction: up}", "spec.kind", "must be one of: proportion"),
        ("{kind: proportion, value: error, direction: higherIsBetter}", "spec.direction", "lower"),
        ("{kind: mean, value: error}", "spec.value", "use kind proportion"),
        ("{kind: mean, value: latency}", "spec.value", "use kind quantile"),
        ("{kind: ratio, direction: higherIsBetter}", "spec.numerator", "required"),
        (
            "{kind: ratio, direction: higherIsBetter, numerator: a, denominator: a}",
            "spec.denominator",
            "another column",
        ),
        (
            "{kind: mean, direction: higherIsBetter, numerator: a}",
            "spec.numerator",
            "is for kind ratio, not mean",
        ),
        ("{kind: quantile, direction: lowerIsBetter}", "spec.quantile", "required; above 0"),
        (
            "{kind: quantile, direction: lowerIsBetter, quantile: 1}",
            "spec.quantile",
            "below 1",
        ),
        (
            "{kind: mean, direction: lowerIsBetter, quantile: 0.5}",
            "spec.quantile",
            "is for kind quantile",
        ),
        ("{kind: classifier}", "spec.statistic", "required; one of accuracy"),
        ("{kind: classifier, statistic: mcc}", "spec.statistic", "required; one of accuracy"),
        ("{kind: mean, direction: lowerIsBetter, cap: 0}", "spec.cap", "finite and above 0"),
        ("{kind: mean, direction: lowerIsBetter, cap: .inf}", "spec.cap", "finite"),
        (
            "{kind: proportion, direction: lowerIsBetter, cap: 1}",
            "spec.cap",
            "is for kind mean, ratio, count",
        ),
        (
            "{kind: mean, direction: lowerIsBetter, value: a, covariate: a}",
            "spec.covariate",
            "another column",
        ),
        ("{kind: mean, direction: lowerIsBetter, segments: [a, a]}", "spec.segments[1]", "twice"),
        (
            "{kind: mean, direction: lowerIsBetter, value: a, segments: [a]}",
            "spec.segments[0]",
            "not",
        ),
        (
            "{kind: mean, direction: lowerIsBetter, labelMaturity: 91d}",
            "spec.labelMaturity",
            "at most",
        ),
        (
            "{kind: mean, direction: lowerIsBetter, unit: aaaaaaaaaaaaaaaaa}",
            "spec.unit",
            "16 bytes",
        ),
    ],
)
def test_metric_is_refused_by_field_and_rule_when_it_is_wrong(
    text: str, field: str, rule: str
) -> None:
    found = violations_of(f"kind: Metric\nmetadata: {{name: m}}\nspec: {text}")
    assert any(fault.field == field and rule in fault.rule for fault in found), found


def test_metric_is_refused_when_it_is_called_like_a_built_in_one() -> None:
    (fault,) = violations_of(RIGHT.replace("right-answers", "accuracy"))
    assert (fault.field, fault.value) == ("metadata.name", "accuracy")
    assert "built-in" in fault.rule


# -- The service -----------------------------------------------------------------------------------


async def test_metric_is_there_with_its_defaults_when_it_was_declared(api: Api) -> None:
    first = await create(api, RIGHT, "right-answers", request_id="r1")
    assert first.spec == metric_with_defaults("right-answers", spec(RIGHT))
    assert (first.status.live, first.status.measured_as) == (True, "accuracy")
    assert await create(api, RIGHT, "right-answers", request_id="r1") == first
    assert await api.metrics.GetMetric(service.GetMetricRequest(name=first.name)) == first
    again = await refused(create(api, RIGHT, "right-answers"))
    assert again.code() is CODE.ALREADY_EXISTS
    only = await create(api, BASKET, "basket-value", validate_only=True)
    assert only.spec.cap == 500
    missing = service.GetMetricRequest(name=f"{PARENT}/metrics/basket-value")
    assert (await refused(api.metrics.GetMetric(missing))).code() is CODE.NOT_FOUND


async def test_built_in_metrics_are_listed_among_the_declared_ones(api: Api) -> None:
    await create(api, RIGHT, "right-answers")
    listed: list[Metric] = []
    request = service.ListMetricsRequest(parent=PARENT, page_size=7)
    while True:
        page = await api.metrics.ListMetrics(request)
        listed += page.metrics
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    names = [metric.name.rpartition("/")[2] for metric in listed]
    assert names == sorted({*BUILT_IN, "right-answers"})
    error_rate = await api.metrics.GetMetric(
        service.GetMetricRequest(name=f"{PARENT}/metrics/error_rate")
    )
    assert error_rate.status.built_in
    assert error_rate.spec.value == "error"
    update = service.UpdateMetricRequest(metric=error_rate)
    delete = service.DeleteMetricRequest(name=error_rate.name)
    for call in (api.metrics.UpdateMetric(update), api.metrics.DeleteMetric(delete)):
        assert reason(await refused(call)) == "BUILT_IN"


async def test_update_keeps_what_the_mask_leaves_out_and_refuses_what_is_late(api: Api) -> None:
    first = await create(api, BASKET, "basket-value")
    wanted = Metric(name=first.name, etag=first.etag, spec=MetricSpec(cap=900))
    masked = service.UpdateMetricRequest(metric=wanted, update_mask=FieldMask(paths=["spec.cap"]))
    second = await api.metrics.UpdateMetric(masked)
    assert (second.spec.cap, second.spec.covariate, second.revision) == (900, "basket_before", 2)
    assert (await refused(api.metrics.UpdateMetric(masked))).code() is CODE.ABORTED
    broken = service.UpdateMetricRequest(metric=Metric(name=first.name, spec=MetricSpec(cap=-1)))
    fault = await refused(api.metrics.UpdateMetric(broken))
    assert fault.code() is CODE.INVALID_ARGUMENT
    assert "spec.kind" in violations(fault)
    await api.metrics.DeleteMetric(service.DeleteMetricRequest(name=first.name))
    assert (
        await refused(api.metrics.DeleteMetric(service.DeleteMetricRequest(name=first.name)))
    ).code() is CODE.NOT_FOUND


NAMED = EXPERIMENT_SPEC + "metrics: {guardrails: [{metric: %s}]}\n"


async def test_experiment_is_refused_when_it_names_no_metric_or_one_of_units(api: Api) -> None:
    await api.create_target()
    unknown = await refused(api.create(experiment(NAMED % "right-answers")))
    assert unknown.code() is CODE.INVALID_ARGUMENT
    assert "unknown metric" in violations(unknown)["spec.metrics.guardrails[0].metric"]
    await create(api, BASKET, "basket-value")
    for name in ("basket-value", "conversion_rate"):
        answer = await refused(api.create(experiment(NAMED % name)))
        assert answer.code() is CODE.UNIMPLEMENTED
        said = violations(answer)["spec.metrics.guardrails[0].metric"]
        assert f"`turnout analyze --metric {name}`" in said
        assert f"turnout analyze --metric {name}" in (answer.details() or "")


async def test_metric_in_use_is_kept_as_it_is_when_an_experiment_names_it(
    api: Api, sidecar: FakeSidecar
) -> None:
    metric = await create(api, RIGHT, "right-answers")
    await api.start(experiment(NAMED % "right-answers"))
    # The sidecar is asked for wrong answers: the metric is what it is measured as.
    assert common_pb2.BAD_EVENT_KIND_WRONG in (await sidecar.plan()).kinds
    shown = await api.metrics.GetMetric(service.GetMetricRequest(name=metric.name))
    assert len(shown.status.experiments) == 1
    kept = await refused(api.metrics.DeleteMetric(service.DeleteMetricRequest(name=metric.name)))
    assert (kept.code(), reason(kept)) == (CODE.FAILED_PRECONDITION, "METRIC_IN_USE")
    other = Metric(name=metric.name, spec=spec(RIGHT.replace("accuracy", "f1")))
    changed = await refused(api.metrics.UpdateMetric(service.UpdateMetricRequest(metric=other)))
    assert reason(changed) == "METRIC_IN_USE"
    labelled = Metric(name=metric.name, labels={"a": "b"}, spec=metric.spec)
    await api.metrics.UpdateMetric(service.UpdateMetricRequest(metric=labelled))
    await api.verb("Stop")
    await api.metrics.DeleteMetric(service.DeleteMetricRequest(name=metric.name))


# -- Files and commands ----------------------------------------------------------------------------


def test_metric_goes_around_when_it_is_applied_read_and_applied(shell: Shell) -> None:
    file = shell.file(BASKET)
    assert shell("lint", "-f", file).code == 0
    assert shell("diff", "-f", file).code == 1
    assert shell("apply", "-f", file).out == "metric/basket-value created\n"
    assert shell("apply", "-f", file).out == "metric/basket-value unchanged\n"
    assert shell("diff", "-f", file).code == 0
    printed = shell("get", "metric", "basket-value", "-o", "yaml").out
    assert shell("apply", "-f", shell.file(printed)).out == "metric/basket-value unchanged\n"
    changed = shell.file(printed.replace("cap: 500", "cap: 700"))
    assert "+  cap: 700" in shell("diff", "-f", changed).out
    assert shell("apply", "-f", changed).out == "metric/basket-value configured\n"
    assert shell("apply", "-f", changed).code == 5
    page = shell("describe", "metric/basket-value").out
    assert "mean, higher is better" in page
    assert "greater values count as 700" in page
    assert shell("delete", "metric/basket-value").out == "metric/basket-value deleted\n"
    assert shell("get", "metric", "basket-value").code == 4


def test_metrics_are_listed_with_the_built_in_ones(shell: Shell) -> None:
    shell.apply(RIGHT)
    lines = shell("get", "metrics").out.splitlines()
    assert len(lines) == 1 + len(BUILT_IN) + 1
    (mine,) = (line for line in lines if line.startswith("right-answers"))
    assert "live" in mine
    (clicks,) = (line for line in lines if line.startswith("click_through_rate"))
    assert "clicks / views" in clicks
    assert "analyze" in clicks
    assert "every tenant has it" in shell("describe", "metric", "click_through_rate").out
    (drift,) = yaml.safe_load_all(shell("get", "metric", "prediction_drift", "-o", "yaml").out)
    assert drift["spec"]["kind"] == "drift"
    assert shell("delete", "metric", "error_rate").code == 5


def test_experiment_comes_after_its_metrics_when_files_hold_all(shell: Shell) -> None:
    named = EXPERIMENT.replace("metric: accuracy", "metric: right-answers")
    file = shell.file(named, RIGHT, TARGET)
    assert shell("lint", "-f", file).code == 0
    dry = shell("apply", "-f", file, "--dry-run").out
    assert "its target is not there yet" in dry
    assert shell("apply", "-f", file).out.splitlines() == [
        "metric/right-answers created",
        "target/fraud created",
        "experiment/fraud-v2 created",
    ]
    assert "fraud-v2" in shell("get", "metric", "right-answers").out
    refusal = shell("delete", "metric", "right-answers")
    assert refusal.code == 5
    assert "fraud-v2" in refusal.err
    assert shell("delete", "-f", file).out.splitlines()[0] == "experiment/fraud-v2 deleted"
    # Alone the experiment may name a metric that the control plane has: it says.
    alone = shell.file(named, TARGET)
    assert shell("lint", "-f", alone).code == 0
    assert "unknown metric" in shell("apply", "-f", alone).err


# -- Documentation ---------------------------------------------------------------------------------


def test_examples_of_the_documentation_are_good() -> None:
    readme = Path("control/README.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    assert len(examples) >= 2
    for text in examples:
        assert violations_of(text) == []
        documents, _ = read_yaml(text.encode())
        assert [unimplemented(found, documents) for found in documents] == [[]] * len(documents)
    rows = re.findall(r"^\| (`.*?) \| [a-z, ]+ \| (?:higher|lower) \|", readme, re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(BUILT_IN)
