"""What apply would do, shown before it does: `turnout diff` and `apply --dry-run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control.clirunning import turnout
from tests.control.clishell import Shell
from tests.control.resources import EXPERIMENT, TARGET, replaced


def changed(out: str) -> list[str]:
    """The lines that go and come, without headings."""
    lines = out.splitlines()
    return [line for line in lines if line[:1] in "+-" and not line.startswith(("+++", "---"))]


def test_nothing_differs_when_the_file_was_applied(shell: Shell) -> None:
    file = shell.file(EXPERIMENT, TARGET)
    shell("apply", "-f", file)
    done = shell("diff", "-f", file)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_only_what_means_something_else_differs_when_a_file_was_changed(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    # The same hour in other words, a default said aloud, and one real change.
    text = replaced(EXPERIMENT, "for: 1h", "for: 60m")
    text = replaced(text, "split: {v2: 0.05, v3: 0.01}", "split: {v2: 0.1, v3: 0.01}")
    done = shell("diff", "-f", shell.file(text))
    assert (done.code, done.err) == (1, "")
    assert [line.strip("+- ") for line in changed(done.out)] == ["v2: 0.05", "v2: 0.1"]
    heading = done.out.splitlines()[:2]
    assert heading[0] == "--- experiment/fraud-v2 (revision 1)"
    assert heading[1].startswith("+++ experiment/fraud-v2 (")
    # It only looked.
    assert shell("diff", "-f", shell.file(EXPERIMENT, TARGET)).code == 0


def test_everything_is_added_when_the_resources_are_not_there(shell: Shell) -> None:
    done = shell("diff", "-f", shell.file(EXPERIMENT, TARGET))
    assert (done.code, done.err) == (1, "")
    assert "--- target/fraud (not there)" in done.out
    assert "--- experiment/fraud-v2 (not there)" in done.out
    assert done.out.index("target/fraud") < done.out.index("experiment/fraud-v2")
    assert all(line.startswith("+") for line in changed(done.out))
    assert shell("get", "target", "fraud").code == 4


def test_diff_is_what_apply_does_when_it_is_applied(shell: Shell) -> None:
    shell.apply(TARGET)
    file = shell.file(replaced(TARGET, "timeout: 60s", "timeout: 30s"))
    done = shell("diff", "-f", file)
    assert changed(done.out) == ["-  timeout: 1m", "+  timeout: 30s"]
    shell("apply", "-f", file)
    assert shell("diff", "-f", file).code == 0


def test_refusal_is_told_beside_the_difference_when_apply_would_be_refused(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    done = shell("diff", "-f", shell.file(replaced(TARGET, "fraud-v1:8080", "fraud-v9:8080")))
    assert done.code == 5
    assert any("fraud-v9:8080" in line for line in changed(done.out))
    assert "apply would refuse target/fraud:" in done.err
    assert "cannot change while experiment fraud-v2 runs" in done.err


def test_promotion_is_named_when_the_file_would_set_it_back(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    shell("promote", "fraud-v2", "--variant", "v3", "--force")
    done = shell("diff", "-f", shell.file(TARGET))
    assert done.code == 1
    assert "apply would refuse this: target/fraud: " in done.err
    assert {"-      address: fraud-v3:8080", "+      address: fraud-v1:8080"} <= set(
        changed(done.out)
    )


def test_failure_is_never_taken_for_a_difference(shell: Shell, tmp_path: Path) -> None:
    assert shell("diff", "-f", tmp_path / "missing.yaml").code == 8
    assert shell("diff", "-f", shell.file("kind: Nothing")).code == 3
    assert shell("diff").code == 2
    file = shell.file(TARGET)
    assert turnout("diff", "-f", file, "--control", "127.0.0.1:1").code == 6
    orphan = shell("diff", "-f", shell.file(EXPERIMENT))  # its target is nowhere
    assert orphan.code == 5
    assert "apply would refuse experiment/fraud-v2:" in orphan.err


def test_dry_run_asks_the_control_plane_when_the_files_alone_are_good(shell: Shell) -> None:
    done = shell("apply", "--dry-run", "-f", shell.file(EXPERIMENT))
    assert done.code == 5  # only the control plane knows that there is no such target
    assert "fraud" in done.err
    both = shell("apply", "--dry-run", "-f", shell.file(EXPERIMENT, TARGET))
    assert (both.code, both.err) == (0, "")
    assert both.lines == [
        "target/fraud created (dry run)",
        "experiment/fraud-v2 created (dry run; its target is not there yet: checked against the "
        "files only)",
    ]
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    moved = shell.file(replaced(TARGET, "fraud-v1:8080", "fraud-v9:8080"))
    assert shell("apply", "--dry-run", "-f", moved).code == 5
    slower = shell.file(replaced(TARGET, "timeout: 60s", "timeout: 30s"))
    assert shell("apply", "--dry-run", "-f", slower).lines == ["target/fraud configured (dry run)"]
    assert "timeout: 1m" in shell("get", "target", "fraud", "-o", "yaml").out


def test_dry_run_comes_from_the_environment_too(shell: Shell, address: str) -> None:
    variables = {"TURNOUT_CONTROL": address, "TURNOUT_TENANT": shell.tenant}
    done = turnout("apply", "-f", shell.file(TARGET), TURNOUT_DRY_RUN="1", **variables)
    assert done.lines == ["target/fraud created (dry run)"]
    assert shell("get", "target", "fraud").code == 4


@pytest.mark.parametrize("command", ["get experiments", "start x", "diff -f x", "sidecars"])
def test_address_is_refused_with_its_form_when_it_is_none(command: str, tmp_path: Path) -> None:
    file = tmp_path / "target.yaml"
    file.write_text(TARGET)
    words = command.replace("-f x", f"-f {file}").split()
    for place in ("http://127.0.0.1:7700", "127.0.0.1", "localhost:x", "::1:7700", ""):
        done = turnout(*words, "--control", place)
        assert done.code == 2
        assert f"'{place}' is not HOST:PORT, like 10.0.0.5:7700 or [::1]:7700" in done.err
