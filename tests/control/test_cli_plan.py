"""`turnout plan` as a process, with a measured target, and what `apply` and `lint` warn of."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from control.server import ControlPlane
from tests.control.clirunning import Done, turnout, turnout_process
from tests.control.clishell import Shell
from tests.control.peers import TENANT, Api, FakeSidecar, traffic
from tests.control.resources import EXPERIMENT, TARGET, replaced
from tests.integration.waiting import wait_for
from tests.tidy.repository import ROOT
from tests.tidy.test_readme import blocks

HERE = "tests/control/test_cli_plan.py::test_planning_runs_as_printed"
EXAMPLES = ROOT / "envoy" / "examples"
GIVEN = ("--requests-per-second", "20", "--baseline", "error_rate=0.01")
HOLLOW = "  - canary: {split: {v2: 0, v3: 0}, for: 30m}\n"
STEP = "  - canary: {split: {v2: 0.01, v3: 0.01}, for: 30m, checks: [error_rate], "
STEP += "minimumRequests: 30}\n"
DOUBT = "spec.steps[1].canary.split: no candidate has a share: it never passes, for want of traffic"


def plain(text: str) -> str:
    """Runs of blanks as one."""
    return re.sub(r" +", " ", text)


def test_planning_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "control" / "README.md").read_text()
    (block,) = (found for found in blocks(readme) if HERE in found.tests)
    said = ""
    for line in block.body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            done = turnout(*shlex.split(line.removeprefix("$ turnout ")))
            assert (done.code, done.err) == (0, "")
            said = plain(done.out)
        else:
            assert plain(line) in said


def test_plan_is_data_when_it_is_a_process_of_its_own() -> None:
    words = ("plan", "-f", EXAMPLES / "canary.yaml", *GIVEN, "-o")
    done = turnout_process(*words, "json")
    assert (done.code, done.err) == (0, "")
    plan = json.loads(done.out)
    assert (plan["name"], plan["target"], plan["requestsPerSecond"]) == ("fraud-v2", "fraud", 20)
    first = plan["steps"][0]["candidates"][0]
    assert (first["variant"], first["requests"], first["units"]) == ("v2", 360.0, None)
    lane = first["lanes"][0]
    assert lane["kind"] == "error"
    assert [found["ratio"] for found in lane["found"]] == [1.5, 2.0, 3.0, 5.0, 10.0]
    assert lane["found"][0]["medianSeconds"] is None
    assert {"code", "field", "text"} == plan["warnings"][0].keys()
    assert yaml.safe_load(turnout(*words, "yaml").out) == plan


def test_plans_are_a_list_when_the_files_hold_several_experiments() -> None:
    done = turnout("plan", "-f", EXAMPLES / "layers.yaml", *GIVEN, "-o", "json")
    plans = json.loads(done.out)
    assert [plan["name"] for plan in plans] == ["fraud-v2", "fraud-v3", "fraud-limit"]
    # The holdout of the same file and the reserve: 20 x 0.95 x 0.25.
    assert plans[1]["requestsPerSecond"] == pytest.approx(4.75)


def test_comparison_is_planned_with_the_power_that_is_asked_for() -> None:
    units = []
    for power in ("0.8", "0.9"):
        words = ["--units-per-day", "8640", "--requests-per-unit", "20", "--power", power]
        words += ["--baseline", "accuracy=0.92", "--baseline", "error_rate=0.01"]
        done = turnout("plan", "-f", EXAMPLES / "ab.yaml", *words, "-o", "json")
        assert done.code == 0
        comparison = json.loads(done.out)["steps"][1]["candidates"][0]["comparison"]
        units.append(comparison["candidateUnits"])
        assert comparison["inflation"] > 1.8
    assert units[1] > 1.2 * units[0]
    assert "whole weeks" in turnout("plan", "-f", EXAMPLES / "ab.yaml", *words).out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "the traffic is missing: say --requests-per-second"),
        (("--requests-per-second", "0"), 2, "must be > 0"),
        (("--requests-per-second", "1", "--baseline", "speed=3"), 2, "is not METRIC=VALUE"),
        (("--requests-per-second", "1", "--baseline", "error_rate"), 2, "is not METRIC=VALUE"),
        (("--requests-per-second", "1", "--baseline", "error_rate=nan"), 2, "must be a number"),
        (("--requests-per-second", "1", "--baseline", "error_rate=1.5"), 2, "must be in 0..1"),
        (("--requests-per-second", "1", "--baseline", "latency_p95=180"), 2, "like 180ms"),
        (("--requests-per-second", "1", "--power", "2"), 2, "must be at least 0.5"),
        (("--server", "--control", "127.0.0.1:1"), 6, "127.0.0.1:1"),
    ],
)
def test_plan_says_what_is_wrong_when_an_option_is(
    words: tuple[str, ...], code: int, said: str
) -> None:
    done = turnout("plan", "-f", EXAMPLES / "canary.yaml", *words)
    assert (done.code, done.out) == (code, "")
    assert said in plain(done.err.replace("\n", " "))
    assert "Traceback" not in done.err


def test_plan_refuses_files_without_an_experiment_and_bad_ones(tmp_path: Path) -> None:
    none = turnout("plan", "-f", EXAMPLES / "target.yaml", *GIVEN)
    assert none.code == 3
    assert "nothing to plan" in none.err
    bad = tmp_path / "bad.yaml"
    bad.write_text(replaced(EXPERIMENT, "v2: 0.05", "v2: 1.5"))
    assert turnout("plan", "-f", bad, *GIVEN).code == 3
    assert turnout("plan", "-f", tmp_path / "none.yaml", *GIVEN).code == 1


def test_plan_says_what_to_install_and_lint_goes_on_when_numpy_is_missing(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    path = str(tmp_path)
    done = turnout_process("plan", "-f", EXAMPLES / "canary.yaml", *GIVEN, PYTHONPATH=path)
    assert (done.code, done.out) == (1, "")
    assert "pip install numpy scipy" in done.err
    assert "Traceback" not in done.err
    assert turnout_process("lint", "-f", EXAMPLES / "canary.yaml", PYTHONPATH=path).code == 0
    # Unreachable, and not for want of numpy.
    apply = ("apply", "-f", EXAMPLES / "canary.yaml", "--control", "127.0.0.1:1")
    assert turnout_process(*apply, PYTHONPATH=path).code == 6


# -- Warnings -------------------------------------------------------------------------------------


def warned(text: str) -> list[dict[str, Any]]:
    """The warnings of one printed document."""
    found: list[dict[str, Any]] = json.loads(text)["status"]["warnings"]
    return found


def test_lint_warns_and_passes_when_a_step_can_never_decide(tmp_path: Path) -> None:
    file = tmp_path / "hollow.yaml"
    file.write_text(replaced(EXPERIMENT, STEP, HOLLOW))
    done = turnout("lint", "-f", file)
    assert done.code == 0
    assert done.out == f"{file}:2: Experiment fraud-v2: ok\n"
    assert done.err == f"{file}:21: warning: {DOUBT}\n"
    (entry,) = json.loads(turnout("lint", "-f", file, "-o", "json").out)
    assert (entry["line"], entry["code"], entry["field"]) == (
        21,
        "NO_CANDIDATE",
        "spec.steps[1].canary.split",
    )
    assert "never passes" in entry["warning"]


def test_apply_warns_and_applies_when_a_step_can_never_decide(shell: Shell) -> None:
    assert shell.apply(TARGET, EXPERIMENT).err == ""
    done = shell.apply(replaced(EXPERIMENT, STEP, HOLLOW))
    assert (done.code, done.lines) == (0, ["experiment/fraud-v2 configured"])
    assert done.err.endswith(f"resources.yaml:21: warning: {DOUBT}\n")
    again = shell("apply", "-f", shell.directory / "resources.yaml", "-o", "json")
    assert again.code == 0
    assert [one["code"] for one in warned(again.out)] == ["NO_CANDIDATE"]
    # What was printed is a file like any other.
    printed = shell.directory / "printed.json"
    printed.write_text(again.out)
    assert shell("apply", "-f", printed).lines == ["experiment/fraud-v2 unchanged"]


async def test_plan_and_apply_know_the_traffic_when_it_was_counted(
    api: Api, sidecar: FakeSidecar, plane: ControlPlane, tmp_path: Path
) -> None:
    await api.start()
    plan = await sidecar.plan()
    place = ("--control", f"127.0.0.1:{plane.port}", "--tenant", TENANT)
    file = tmp_path / "next.yaml"
    text = replaced(EXPERIMENT, "name: fraud-v2", "name: fraud-next")
    text = replaced(text, "reserve: 1.0", "reserve: 0.5")
    file.write_text(text.replace(", tenant: risk", ""))
    words = ("plan", "-f", file, "--server", *place)
    nothing = await asyncio.to_thread(turnout_process, *words)
    assert nothing.code == 2
    assert "has been counted yet" in nothing.err
    await sidecar.deltas(traffic(plan, {"control": 1900, "v2": 100}, {"control": 38}))

    async def measured() -> Done | None:
        done = await asyncio.to_thread(turnout_process, *words, "-o", "json")
        return done if done.code == 0 else None

    done = await wait_for(measured, "a plan from what was counted")
    found = json.loads(done.out)
    assert found["assumptions"][0].startswith("measured: 2,000 requests of fraud-v2 in ")
    assert any("not measured: units per day" in one for one in found["assumptions"])
    # Within seconds, to half of the units; a minute is far more than this took.
    assert 2_000 / 60 / 2 < found["requestsPerSecond"] <= 2_000 / 2
    (error, *_) = found["steps"][1]["candidates"][0]["lanes"]
    assert (error["kind"], error["base"]) == ("error", pytest.approx(0.02))

    slow = text.replace(", tenant: risk", "").replace(
        "minimumRequests: 30", "minimumRequests: 900000000"
    )
    file.write_text(slow)
    applied = await asyncio.to_thread(turnout_process, "apply", "-f", file, *place)
    assert (applied.code, applied.out) == (0, "experiment/fraud-next created\n")
    assert "spec.steps[1].canary.minimumRequests: v2 gets " in applied.err
    assert "(measured: 2,000 requests of fraud-v2 in " in applied.err
