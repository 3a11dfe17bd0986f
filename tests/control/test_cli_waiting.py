"""`turnout wait` and `turnout status`: the exit code is the answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from control.commands.waiting import EXIT_HELD, exit_code
from tests.control.clirunning import ENVIRONMENT, turnout
from tests.control.clishell import Shell, control_plane
from tests.control.resources import EXPERIMENT, TARGET
from tests.integration.waiting import free_port
from turnout.v1alpha1.experiment_pb2 import (
    REASON_STEPS_FINISHED,
    STATE_PAUSED,
    STATE_RUNNING,
    Decision,
    Experiment,
    ExperimentStatus,
)
from turnout.v1alpha1.experiment_service_pb2 import DeleteExperimentRequest
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub

HUNG_S = 120.0


@contextmanager
def running(address: str, tenant: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of its own that goes on while the test does something."""
    command = [sys.executable, "-m", "turnout.cli", *words, "--control", address]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONFAULTHANDLER"] = "1"
    with subprocess.Popen(
        [*command, "--tenant", tenant],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        # Nothing here goes on for so long: whoever hangs says where, and the test fails.
        hung = threading.Timer(HUNG_S, process.send_signal, (signal.SIGABRT,))
        hung.start()
        try:
            yield process
        finally:
            hung.cancel()
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for its first line: from then on it follows."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_status_says_each_end_by_its_own_code(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    draft = shell("status", "fraud-v2")
    assert (draft.code, draft.lines) == (13, ["fraud-v2 DRAFT"])
    shell("start", "fraud-v2")
    assert shell("status", "fraud-v2").code == 13
    shell("pause", "fraud-v2")
    assert shell("status", "fraud-v2").code == 13
    shell("promote", "fraud-v2", "--variant", "v2", "--force")
    promoted = shell("status", "fraud-v2", "-o", "json")
    assert (promoted.code, json.loads(promoted.out)["status"]["state"]) == (0, "PROMOTED")
    shell("undo", "fraud-v2")
    assert shell("status", "fraud-v2").code == 10


def test_status_says_stopped_by_its_own_code(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    shell("stop", "fraud-v2", "--reason", "enough")
    done = shell("status", "fraud-v2", "--watch")
    assert (done.code, "enough" in done.out) == (12, True)


@pytest.mark.parametrize(("state", "code"), [(STATE_RUNNING, EXIT_HELD), (STATE_PAUSED, 13)])
def test_status_says_that_somebody_must_decide_when_all_steps_have_passed(
    state: int, code: int
) -> None:
    held = ExperimentStatus(last_decision=Decision(reason=REASON_STEPS_FINISHED))
    held.state = state  # type: ignore[assignment]
    assert exit_code(Experiment(status=held)) == code


def test_status_follows_until_the_end_when_it_is_told_to_watch(shell: Shell, address: str) -> None:
    shell.apply(TARGET, EXPERIMENT)
    with running(address, shell.tenant, "status", "fraud-v2", "--watch") as process:
        assert first_line(process).split() == ["fraud-v2", "DRAFT"]
        shell("start", "fraud-v2")
        shell("rollback", "fraud-v2", "--reason", "too slow for us")
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 10
    assert "too slow for us" in out.splitlines()[-1]


def test_wait_ends_when_the_state_is_reached_or_cannot_be_any_more(
    shell: Shell, address: str
) -> None:
    shell.apply(TARGET, EXPERIMENT)
    words = ("wait", "fraud-v2", "--for=promoted", "--timeout", "60s")
    with ExitStack() as stack:
        hopeful = stack.enter_context(running(address, shell.tenant, *words))
        patient = stack.enter_context(
            running(address, shell.tenant, "wait", "fraud-v2", "--for=ended")
        )
        quick = stack.enter_context(
            running(address, shell.tenant, "wait", "fraud-v2", "--for=paused,RUNNING")
        )
        shell("start", "fraud-v2")
        out, _ = quick.communicate(timeout=30)
        assert (quick.returncode, " RUNNING " in out) == (0, True)
        shell("rollback", "fraud-v2")
        out, _ = hopeful.communicate(timeout=30)
        assert (hopeful.returncode, " ROLLED_BACK " in out) == (1, True)
        patient.communicate(timeout=30)
        assert patient.returncode == 0
    assert shell("wait", "fraud-v2", "--for", "rolled-back", "--timeout", "0s").code == 0


def test_time_is_over_by_a_code_of_its_own_when_nothing_happens(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    done = shell("wait", "fraud-v2", "--for=running", "--timeout", "100ms")
    assert (done.code, done.err) == (124, "not within 100ms: it is draft\n")
    assert done.lines == ["fraud-v2 DRAFT"]
    watched = shell("status", "fraud-v2", "--watch", "--timeout", "100ms", "-o", "json")
    assert (watched.code, json.loads(watched.out)["status"]["state"]) == (124, "DRAFT")


def test_deletion_is_told_when_it_happens_meanwhile(shell: Shell, address: str) -> None:
    shell.apply(TARGET, EXPERIMENT)
    with running(address, shell.tenant, "status", "fraud-v2", "--watch") as process:
        first_line(process)
        name = f"tenants/{shell.tenant}/experiments/fraud-v2"
        # Its watch may open after the deletion: then it must not wait for ever either.
        with grpc.insecure_channel(address) as channel:
            ExperimentServiceStub(channel).DeleteExperiment(DeleteExperimentRequest(name=name))
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (4, f"{name} was deleted\n")


def test_wait_goes_on_when_the_control_plane_comes_back(tmp_path: Path) -> None:
    place, store = f"127.0.0.1:{free_port()}", tmp_path / "control.db"
    shell = Shell(place, "back", tmp_path)
    with ExitStack() as stack:
        with control_plane(place, store):
            shell.apply(TARGET, EXPERIMENT)
            process = stack.enter_context(
                running(place, "back", "status", "fraud-v2", "--watch", "--timeout", "90s")
            )
            first_line(process)
        assert process.stderr is not None
        assert "lost, trying again" in process.stderr.readline()
        with control_plane(place, store):
            shell("stop", "fraud-v2")
            process.communicate(timeout=30)
            assert process.returncode == 12


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["wait", "x"], "Missing option '--for'"),
        (["wait", "x", "--for=done"], "'done' is no state; there are draft, running, paused,"),
        (["wait", "x", "--for="], "'' is no state"),
        (["wait", "x", "--for=paused", "--timeout", "soon"], "'soon' is not a duration like"),
        (["wait", "target/x", "--for=paused"], "'target/x' is no experiment"),
        (["status", "x", "--timeout", "1s"], "say --watch as well"),
        (["status", "x", "--watch", "--timeout", "-1s"], "'-1s' is not a duration like"),
    ],
)
def test_words_are_refused_with_what_is_accepted(words: list[str], fault: str) -> None:
    done = turnout(*words, "--control", "127.0.0.1:1")
    assert done.code == 2
    assert fault in " ".join(done.err.split())


def test_missing_experiment_or_control_plane_has_the_usual_codes(shell: Shell) -> None:
    for words in (("status", "nobody"), ("wait", "nobody", "--for=paused")):
        done = shell(*words)
        assert (done.code, "lists what there is" in done.err) == (4, True)
        assert turnout(*words, "--control", "127.0.0.1:1").code == 6
