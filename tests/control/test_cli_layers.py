"""Several experiments on one target from the command line: the example, applied and looked at."""

from __future__ import annotations

from pathlib import Path

from tests.control.clishell import Shell

EXAMPLES = Path(__file__).parents[2] / "envoy" / "examples"


def applied(shell: Shell, **changes: str) -> None:
    """Apply the example in the test's own tenant."""
    text = "\n---\n".join((EXAMPLES / name).read_text() for name in ("target.yaml", "layers.yaml"))
    for old, new in {"tenant: risk": f"tenant: {shell.tenant}", **changes}.items():
        assert old in text
        text = text.replace(old, new)
    path = shell.directory / "all.yaml"
    path.write_text(text)
    done = shell("apply", "-f", path)
    assert done.code == 0, done.err


def test_all_run_at_once_when_the_example_is_applied_and_started(shell: Shell) -> None:
    applied(shell)
    for name in ("fraud-v2", "fraud-v3", "fraud-limit"):
        assert shell("start", name).code == 0
    running = shell("describe", "target", "fraud").out
    assert "Running:     fraud-limit, fraud-v2, fraud-v3" in running
    described = shell("describe", "fraud-v2").out
    for line in (
        "Unit:        claim sub of a verified token",
        "Layer:       models, reserves 50 %",
        "Held out:    5 % of the units, since its start",
        "Overrides:   2 units have a variant by name",
    ):
        assert line in described
    assert "Unit:        session, cookie turnout-session" in shell("describe", "fraud-limit").out
    watched = shell("get", "experiments").out
    assert watched.count("RUNNING") == 3


def test_start_says_who_holds_the_layer_when_it_is_full(shell: Shell) -> None:
    applied(shell, **{"reserve: 0.25": "reserve: 0.6"})
    assert shell("start", "fraud-v2").code == 0
    done = shell("start", "fraud-v3")
    assert done.code == 5
    assert "has 50 % left and fraud-v3 wants 60 %: fraud-v2 holds 50 %" in done.err
    shell("rollback", "fraud-v2")
    assert shell("start", "fraud-v3").code == 0


def test_nothing_differs_when_what_was_applied_is_compared(shell: Shell) -> None:
    applied(shell)
    assert shell("diff", "-f", shell.directory / "all.yaml").code == 0
    printed = shell("get", "fraud-limit", "-o", "yaml").out
    assert "maxAge: 30d" in printed
    path = shell.directory / "again.yaml"
    path.write_text(printed)
    assert shell("apply", "-f", path).out == "experiment/fraud-limit unchanged\n"
