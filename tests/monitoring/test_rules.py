"""Alert rules and dashboard as files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from envoy.monitoring import dashboard
from tests.monitoring.prometheus import MONITORING, RULES, promtool
from tests.monitoring.test_table import table
from tests.tidy.repository import ROOT

README = MONITORING / "README.md"
NAME = re.compile(r"\b(?:turnout|process)_[a-z_]+\b")


def expressions() -> list[tuple[str, str]]:
    """(where, expression) of every rule and of every panel, its variables filled in."""
    rules = yaml.safe_load(RULES.read_text())
    found = [(r["alert"], r["expr"]) for group in rules["groups"] for r in group["rules"]]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for query in panel.get("targets", ()):
            expression = query["expr"].replace("$tenant", ".*").replace("$experiment", ".*")
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def test_rules_pass_promtool_when_checked() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))


def test_rules_fire_and_are_quiet_when_they_should() -> None:
    promtool("test", "rules", str(ROOT / "tests/monitoring/alerts_test.yaml"))


def test_promtool_fails_when_an_alert_is_expected_that_no_rule_gives() -> None:
    """The unit tests can fail."""
    tests = yaml.safe_load((ROOT / "tests/monitoring/alerts_test.yaml").read_text())
    tests["tests"] = [tests["tests"][1]]
    tests["tests"][0]["alert_rule_test"][1]["eval_time"] = "40s"
    tests["rule_files"] = [str(RULES)]
    file = ROOT / ".turnout" / "alerts_test_broken.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(tests))
    try:
        assert "FAILED" in promtool("test", "rules", str(file), code=1)
    finally:
        file.unlink()


def test_every_rule_is_played_when_the_unit_tests_run() -> None:
    names = {where for where, _ in expressions() if where.startswith("Turnout")}
    played = (ROOT / "tests/monitoring/alerts_test.yaml").read_text()
    assert {n for n in names if n not in played} == set()


def test_readmes_configuration_is_valid(tmp_path: Path) -> None:
    """With the rules where it says that they are: beside it."""
    (block,) = re.findall(r"```yaml\n# prometheus.yml\n(.*?)```", README.read_text(), re.S)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "alerts.yaml").write_text(RULES.read_text())
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_every_rule_says_what_to_do() -> None:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
            assert rule["annotations"].keys() == {"summary", "remedy"}, rule["alert"]


def test_rules_and_dashboard_ask_only_for_metrics_in_the_table() -> None:
    known = {row.name for rows in table().values() for row in rows}
    known |= {f"{name}_bucket" for name in known}
    unknown = {
        (where, name)
        for where, expression in expressions()
        for name in NAME.findall(expression)
        if name not in known
    }
    assert not unknown


def test_dashboard_is_the_generators_output() -> None:
    assert (MONITORING / "dashboard.json").read_text() == dashboard.text()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
