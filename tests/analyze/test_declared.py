"""`turnout analyze -f FILE`: declared metrics, honoured or refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.control.clirunning import turnout

METRICS = """
kind: Metric
metadata: {name: basket-value}
spec: {kind: mean, direction: lowerIsBetter, value: basket, covariate: before, segments: [country]}
---
kind: Metric
metadata: {name: clicking}
spec: {kind: ratio, direction: higherIsBetter, numerator: clicks, denominator: views}
---
kind: Metric
metadata: {name: slowest}
spec: {kind: quantile, direction: lowerIsBetter, value: wait, quantile: 0.9}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of two variants, in which baskets of the treatment are larger."""
    chance = random.Random(7)
    lines = ["variant,user,basket,before,clicks,views,wait,country"]
    for user in range(2_000):
        before, more = chance.gauss(20, 4), user % 2
        row = ("t" if more else "c", user, before + more + chance.gauss(0, 1), before)
        rest = (chance.randint(0, 3), chance.randint(4, 9), chance.random(), "DE")
        lines.append(",".join(map(str, (*row, *rest))))
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(lines))
    return file


def analysed(data: Path, text: str, *words: str) -> tuple[int, str, str]:
    """What a run says."""
    file = data.with_name("metrics.yaml")
    file.write_text(text)
    given = ("--variant-column", "variant", "--control", "c", "--unit-column", "user")
    done = turnout("analyze", data, *given, "-f", file, "--json", "-q", *words)
    return done.code, done.out, done.err


def test_declared_metrics_are_judged_as_they_say(data: Path) -> None:
    code, out, err = analysed(data, METRICS)
    assert code == 0, err
    found = {metric["name"]: metric for metric in json.loads(out)["metrics"]}
    assert [(name, found[name]["kind"]) for name in found] == [
        ("basket-value", "mean"),
        ("clicking", "ratio"),
        ("slowest", "quantile"),
    ]
    assert found["basket-value"]["cs_low"] > 0
    assert found["basket-value"]["standard_error"] < 0.07  # without the covariate 0.18
    # Less is better, so more is harm.
    assert json.loads(out)["decision"] in ("ROLLBACK", "KEEP_CONTROL_WORSE")
    assert [stratum["stratum"] for stratum in json.loads(out)["strata"]] == ["DE"]


def test_covariate_and_segments_are_told_when_they_reach_metrics_that_do_not_declare_them(
    data: Path,
) -> None:
    def told(*words: str) -> list[str]:
        code, out, err = analysed(data, METRICS, *words)
        assert code == 0, err
        return [w for w in json.loads(out)["warnings"] if "declares" in w]

    assert told() == [
        "covariate: before, which basket-value declares, is used for clicking, slowest, too",
        "segments: country, which basket-value declares, is used for clicking, slowest, too",
    ]
    assert told("--metric", "basket-value") == []
    assert len(told("--covariate", "before")) == 1


def test_declared_cap_is_applied_unless_the_command_line_says_another(data: Path) -> None:
    values = np.array([line.split(",")[2] for line in data.read_text().splitlines()[1:]], float)
    treated = np.arange(len(values)) % 2 == 1
    text = METRICS.replace("covariate: before", "cap: 22")
    for words, cap in (((), 22.0), (("--cap", "basket-value=25"), 25.0)):
        code, out, err = analysed(data, text, *words)
        assert code == 0, err
        answer = json.loads(out)
        capped = np.minimum(values, cap)
        means = [capped[~treated].mean(), capped[treated].mean()]
        found = answer["metrics"][0]
        assert [found["control"]["mean"], found["treatment"]["mean"]] == pytest.approx(means)
        cut = [int((values[arm] > cap).sum()) for arm in (~treated, treated)]
        arms = f"(c {cut[0]}, t {cut[1]})"
        said = f"capped at {cap:g}: {sum(cut):,} are above it and count as that {arms}"
        assert any(said in warning for warning in answer["warnings"])


def test_declared_label_maturity_leaves_young_units_out(data: Path) -> None:
    lines = data.read_text().splitlines()
    times = [f"2026-03-{1 + place // 100:02d} 12:00:00" for place in range(len(lines) - 1)]
    rows = [f"{line},{time}" for line, time in zip(lines[1:], times, strict=True)]
    data.write_text("\n".join([f"{lines[0]},at", *rows]))
    text = METRICS.replace("covariate: before", "labelMaturity: 5d")
    for words, kept in (
        ((), 1_500),
        (("--as-of", "2026-03-25 12:00"), 2_000),
        (("--label-maturity", "0s"), 2_000),
    ):
        code, out, err = analysed(data, text, "--time-column", "at", *words)
        assert code == 0, err
        found = json.loads(out)["metrics"]
        assert {each["control"]["n"] + each["treatment"]["n"] for each in found} == {kept}


def test_only_what_is_asked_for_is_judged(data: Path) -> None:
    code, out, err = analysed(data, METRICS, "--metric", "clicking", "--metric", "wait:mean")
    assert code == 0, err
    assert [metric["name"] for metric in json.loads(out)["metrics"]] == ["clicking", "wait"]


def test_declared_classifier_has_its_declared_name_everywhere(tmp_path: Path) -> None:
    chance = random.Random(3)
    lines, said = ["variant,user,truth,guess,how_sure"], {"c": [0, 0], "t": [0, 0]}
    for user in range(2_000):
        arm, truth = "ct"[user % 2], chance.random() < 0.4
        sure = min(max(chance.gauss(0.4 + 0.2 * truth, 0.2), 0), 1)
        lines.append(f"{arm},{user},{int(truth)},{int(sure > 0.5)},{sure}")
        said[arm][0] += truth and sure > 0.5
        said[arm][1] += truth
    data, page = tmp_path / "rows.csv", tmp_path / "page.html"
    data.write_text("\n".join(lines))
    text = "\n---\n".join(
        f"kind: Metric\nmetadata: {{name: {name}}}\n"
        f"spec: {{kind: classifier, statistic: {statistic}}}"
        for name, statistic in (
            ("missed-fraud", "recall"),
            ("false-alarms", "false_positive_rate"),
            ("order", "auc"),
        )
    )
    columns = ("--label-column", "truth", "--prediction-column", "guess", "--score-column")
    options = (*columns, "how_sure", "--guardrail", "false-alarms=0.1", "--html", str(page))
    code, out, err = analysed(data, text, *options)
    assert code == 0, err
    answer = json.loads(out)
    assert [(found["name"], found["kind"]) for found in answer["metrics"]] == [
        ("missed-fraud", "recall"),
        ("false-alarms", "false_positive_rate"),
        ("order", "auc"),
    ]
    found = answer["metrics"][0]
    for arm, name in (("control", "c"), ("treatment", "t")):
        assert found[arm] == {
            "n": said[name][1],
            "mean": pytest.approx(said[name][0] / said[name][1]),
        }
    assert "missed-fraud" in page.read_text()
    assert "missed-fraud" in " ".join(reason["text"] for reason in answer["reasons"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("covariate: before", "labelMaturity: 1h", "labelMaturity: a label maturity of 1 h needs"),
        ("[country]", "[country, wait]", "segments: country, wait"),
        ("kind: mean", "kind: median", "spec.kind"),
    ],
)
def test_declaration_is_refused_by_name_when_rows_cannot_honour_it(
    data: Path, old: str, new: str, words: str
) -> None:
    assert old in METRICS
    code, out, err = analysed(data, METRICS.replace(old, new))
    assert code == 3
    assert out == ""
    assert words in err
