"""What a shell is offered: commands, options, states, and names from a control plane in time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.clirunning import ENVIRONMENT, turnout
from tests.control.clishell import Shell
from tests.control.resources import EXPERIMENT, TARGET
from tests.control.test_cli_offline import imported
from turnout.cli import HELPS

BIN = Path(sys.executable).parent
# What bash does when somebody presses the tabulator after these words.
PRESS = """
source <(turnout completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_turnout_completion turnout
printf '%s\\n' "${COMPREPLY[@]}"
"""


def environment(variables: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}


def pressed(*words: str, **variables: str) -> list[str]:
    """What bash offers; nothing else may be said."""
    done = subprocess.run(
        ["bash", "-c", PRESS, "bash", "turnout", *words],
        capture_output=True,
        check=True,
        timeout=60,
        env=environment(variables),
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def offered(shell: str, line: str, **variables: str) -> str:
    """What zsh or fish are told for a line, by the protocol of their scripts."""
    asked = {
        "_TURNOUT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        ["turnout"],
        capture_output=True,
        check=False,
        timeout=60,
        env=environment({**asked, **variables}),
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (("des",), ["describe"]),
        (("snapshot", ""), ["build", "show"]),
        (("init", "--kind", ""), ["canary", "ab", "shadow"]),
        (("status", "x", "--wa"), ["--watch"]),
        (("get", "x", "-o", "j"), ["json"]),
        (("wait", "x", "--for", "paused,pro"), ["paused,promoted"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
)
def test_words_are_offered_that_fit(words: tuple[str, ...], offers: list[str]) -> None:
    assert pressed(*words) == offers


def test_every_command_is_offered_without_importing_any() -> None:
    assert pressed("") == list(HELPS)
    assert imported({"sidecar", "control", "grpc"}, "completion", "bash") == set()


def test_names_come_from_the_control_plane_when_it_answers(shell: Shell, tmp_path: Path) -> None:
    shell.apply(TARGET, EXPERIMENT)
    where = {"TURNOUT_CONTROL": shell.address, "TURNOUT_TENANT": shell.tenant}
    assert pressed("start", "", **where) == ["fraud-v2"]
    assert pressed("start", "x", **where) == []
    assert pressed("get", "", **where) == [
        "experiments",
        "targets",
        "metrics",
        "holdout",
        "fraud-v2",
    ]
    assert pressed("get", "target", "", **where) == ["fraud"]
    assert pressed("get", "targets/fr", **where) == ["targets/fraud"]
    assert pressed("get", "things/fr", **where) == []
    assert pressed("explain", "fr", **where) == ["fraud-v2", "fraud"]
    assert pressed("start", "--tenant", shell.tenant, "--control", shell.address, "") == [
        "fraud-v2"
    ]
    config = tmp_path / "turnout.yaml"
    config.write_text(f'client: {{control: "{shell.address}", tenant: {shell.tenant}}}')
    assert pressed("watch", "", TURNOUT_CONFIG=str(config)) == ["fraud-v2"]
    assert offered("fish", "turnout start ", **where) == "fraud-v2\tdraft\n"
    assert '"fraud-v2":"draft"' in offered("zsh", "turnout start ", **where)


@pytest.mark.parametrize("place", ["127.0.0.1:1", "nonsense", "http://x", ""])
def test_nothing_is_offered_when_there_is_no_control_plane(place: str, tmp_path: Path) -> None:
    assert pressed("start", "", TURNOUT_CONTROL=place) == []
    broken = tmp_path / "broken.yaml"
    broken.write_text("unknown: {")
    assert pressed("start", "", TURNOUT_CONFIG=str(broken), TURNOUT_CONTROL="127.0.0.1:1") == []


def test_nobody_waits_when_the_control_plane_does_not_answer(deaf: str) -> None:
    before = time.monotonic()
    assert pressed("start", "fr", TURNOUT_CONTROL=deaf) == []
    assert time.monotonic() - before < 15  # a second's wait, and two starts on a busy machine


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_script_is_what_its_shell_reads(shell_name: str) -> None:
    done = turnout("completion", shell_name)
    assert done.code == 0
    assert "_TURNOUT_COMPLETE=complete_" in done.out
    interpreter = shutil.which(shell_name)
    if interpreter is not None:
        checked = subprocess.run([interpreter, "-n"], input=done.out.encode(), check=False)
        assert checked.returncode == 0
    assert turnout("completion", "cmd").code == 2
