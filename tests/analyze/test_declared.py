"""`turnout analyze -f FILE`: declared metrics, honoured or refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

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


def test_only_what_is_asked_for_is_judged(data: Path) -> None:
    code, out, err = analysed(data, METRICS, "--metric", "clicking", "--metric", "wait:mean")
    assert code == 0, err
    assert [metric["name"] for metric in json.loads(out)["metrics"]] == ["clicking", "wait"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("covariate: before", "cap: 30", "'basket-value': cap"),
        ("covariate: before", "labelMaturity: 1h", "'basket-value': labelMaturity"),
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
