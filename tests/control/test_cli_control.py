"""Client commands against a real `turnout control` process: what a person types, what they read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from control.model import load_yaml, target_with_defaults
from tests.control.clirunning import ENVIRONMENT
from tests.control.clishell import Shell, control_plane
from tests.control.resources import EXPERIMENT, TARGET, replaced
from tests.integration.waiting import free_port
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentStatus
from turnout.v1alpha1.experiment_service_pb2 import GetExperimentRequest, ListDecisionsRequest
from turnout.v1alpha1.experiment_service_pb2_grpc import ExperimentServiceStub
from turnout.v1alpha1.target_pb2 import TargetSpec


def test_resources_are_created_then_unchanged_then_configured_when_applied(shell: Shell) -> None:
    # The experiment is first in the file and second on the way.
    first = shell.apply(EXPERIMENT, TARGET)
    assert (first.code, first.err) == (0, "")
    assert first.lines == ["target/fraud created", "experiment/fraud-v2 created"]
    assert shell.apply(EXPERIMENT, TARGET).lines == [
        "target/fraud unchanged",
        "experiment/fraud-v2 unchanged",
    ]
    changed = replaced(TARGET, "timeout: 60s", "timeout: 30s")
    assert shell.apply(EXPERIMENT, changed).lines == [
        "target/fraud configured",
        "experiment/fraud-v2 unchanged",
    ]
    labelled = replaced(EXPERIMENT, "team: payments", "team: fraud")
    assert shell.apply(labelled).lines == ["experiment/fraud-v2 configured"]
    assert shell.apply(labelled).lines == ["experiment/fraud-v2 unchanged"]


def test_nothing_is_stored_when_an_apply_is_a_dry_run(shell: Shell) -> None:
    done = shell("apply", "--dry-run", "-f", shell.file(TARGET))
    assert done.lines == ["target/fraud created (dry run)"]
    assert shell("get", "targets").lines == ["NAME HOSTS PATH BASELINE MODEL RUNNING REVISION"]
    assert shell("get", "target", "fraud").code == 4


def test_printed_resource_applies_once_when_it_was_changed_meanwhile(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    printed = shell("get", "target", "fraud", "-o", "yaml").out
    (given,), (kept,) = load_yaml(TARGET.encode()), load_yaml(printed.encode())
    assert isinstance(given.spec, TargetSpec)
    assert kept.spec == target_with_defaults(given.spec)
    assert shell.apply(printed).lines == ["target/fraud unchanged"]
    edited = replaced(printed, "timeout: 1m", "timeout: 30s")
    assert shell.apply(edited).lines == ["target/fraud configured"]
    stale = shell.apply(replaced(printed, "timeout: 1m", "timeout: 10s"))
    assert stale.code == 5
    assert stale.err.startswith("ABORTED: ")
    assert "is stale" in stale.err
    assert "timeout: 30s" in shell("get", "target", "fraud", "-o", "yaml").out


def test_lists_show_state_step_split_and_why_when_an_experiment_runs(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    assert shell("get", "experiments").lines == [
        "NAME TARGET STATE STEP SPLIT EPOCH WHY",
        "fraud-v2 fraud DRAFT",
    ]
    started = shell("start", "fraud-v2")
    assert started.code == 0
    assert started.lines[0].startswith(
        "fraud-v2 RUNNING 1/3 shadow control 100 %, v2 0 %, v3 0 %, copies to v2 100 % "
    )
    assert "started by tester" in started.out
    advanced = shell("advance", "fraud-v2")
    assert "RUNNING 2/3 canary control 98 %, v2 1 %, v3 1 %" in advanced.lines[0]
    assert shell("get", "experiment", "fraud-v2").lines[1].startswith("fraud-v2 fraud RUNNING 2/3 ")
    assert shell("get", "targets").lines[1] == (
        "fraud fraud.risk.svc /v2/models/fraud fraud-v1:8080 fraud 1 fraud-v2 1"
    )


def test_description_tells_steps_conditions_and_the_last_decision(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    text = "\n".join(shell("describe", "fraud-v2").lines)
    for part in (
        f"Experiment: tenants/{shell.tenant}/experiments/fraud-v2",
        "Labels: team=payments",
        "State: RUNNING",
        "-> 1. shadow: v2 100 %; for 30m; minimumRequests 30",
        "2. canary: v2 1 %; v3 1 %; for 30m; checks error_rate; minimumRequests 30",
        "Last decision:",
        "START by tester",
    ):
        assert part in text, text
    document = json.loads(shell("describe", "experiment", "fraud-v2", "-o", "json").out)
    assert document["status"]["state"] == "RUNNING"
    assert [decision["action"] for decision in document["decisions"]] == ["START"]
    target = "\n".join(shell("describe", "target/fraud").lines)
    assert "Baseline: fraud-v1:8080 (fraud 1)" in target
    assert "Running: fraud-v2" in target


def test_verbs_walk_an_experiment_when_they_are_said_in_order(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    states = []
    for words in (
        ("start", "fraud-v2"),
        ("pause", "experiment/fraud-v2"),
        ("resume", f"tenants/{shell.tenant}/experiments/fraud-v2"),
        ("advance", "fraud-v2"),
        ("rollback", "fraud-v2", "--reason", "too slow for us"),
    ):
        done = shell(*words, "-o", "json")
        assert (done.code, done.err) == (0, "")
        states.append(json.loads(done.out)["status"]["state"])
    assert states == ["RUNNING", "PAUSED", "RUNNING", "RUNNING", "ROLLED_BACK"]
    assert "too slow for us" in shell("get", "experiments").out
    again = shell("resume", "fraud-v2")
    assert again.code == 5
    assert again.err.startswith("FAILED_PRECONDITION: ")


def test_stop_ends_without_a_verdict_when_it_is_said(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    assert " STOPPED " in f" {shell('stop', 'fraud-v2', '--reason', 'enough').lines[0]} "


def test_promotion_is_kept_by_apply_and_undone_by_undo(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    ambiguous = shell("promote", "fraud-v2")
    assert ambiguous.code in (3, 5)  # two candidates: which one?
    unknown = shell("promote", "fraud-v2", "--variant", "v3")
    assert (unknown.code, "no sidecar is connected" in unknown.err) == (5, True)
    promoted = shell("promote", "fraud-v2", "--variant", "v3", "--force")
    assert (promoted.code, "PROMOTED" in promoted.out) == (0, True)
    assert "fraud-v3:8080" in shell("get", "targets").out
    old_file = shell.apply(TARGET)
    assert old_file.code == 5
    assert "was promoted and the file has another baseline" in old_file.err
    assert "fraud-v3:8080" in shell("get", "targets").out
    undone = shell("undo", "fraud-v2")
    assert (undone.code, undone.err) == (0, "")
    assert "fraud-v1:8080" in shell("get", "targets").out


def test_target_is_undone_or_overwritten_when_that_is_said(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    shell("promote", "fraud-v2", "--variant", "v2", "--force")
    overwritten = shell("apply", "--overwrite-baseline", "-f", shell.file(TARGET))
    assert overwritten.lines == ["target/fraud configured"]
    assert "fraud-v1:8080" in shell("get", "targets").out
    assert shell("undo", "target/fraud").code == 5  # the promotion has been left behind


def test_code_and_message_tell_what_failed_when_the_server_refuses(shell: Shell) -> None:
    missing = shell("start", "nobody")
    assert (missing.code, missing.err) == (
        4,
        f"NOT_FOUND: tenants/{shell.tenant}/experiments/nobody does not exist; "
        f"`turnout get experiments --tenant {shell.tenant}` lists what there is\n",
    )
    orphan = shell.apply(EXPERIMENT)  # its target is not there
    assert orphan.code in (3, 4, 5)
    assert "fraud" in orphan.err
    long = shell("rollback", "nobody", "--reason", "x" * 2000)
    assert long.code == 3
    assert long.err.startswith("reason: ")
    assert long.err.rstrip().endswith("must be at most 1024 bytes")


def test_results_name_every_variant_when_there_was_no_traffic(shell: Shell) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    done = shell("results", "fraud-v2")
    assert done.code == 0
    assert done.lines[:2] == ["nothing to compare yet", ""]
    assert done.lines[2].startswith("VARIANT (* CONTROL) REQUESTS ERRORS SLOW P50 MS P95 MS")
    rows = {line.split()[0]: line for line in done.lines[3:6]}
    assert set(rows) == {"control", "v2", "v3"}
    assert json.loads(shell("results", "fraud-v2", "-o", "json").out)["state"] == "RUNNING"
    assert shell("sidecars").lines == ["NODE CONNECTED SERVES CURRENT CONFIG WORKERS SEEN TROUBLE"]
    assert json.loads(shell("sidecars", "-o", "json").out) == {"sidecars": []}


def test_ended_experiment_is_deleted_and_begun_again_when_it_must_be(shell: Shell) -> None:
    """Start names the remedy, and the remedy works."""
    file = shell.file(TARGET, EXPERIMENT)
    shell("apply", "-f", file)
    shell("start", "fraud-v2")
    running = shell("delete", "fraud-v2")
    assert (running.code, "stop it or roll it back first" in running.err) == (5, True)
    shell("stop", "fraud-v2")
    ended = shell("start", "fraud-v2")
    assert (ended.code, "turnout delete" in ended.err) == (5, True)
    done = shell("delete", "fraud-v2")
    assert (done.code, done.lines) == (0, ["experiment/fraud-v2 deleted"])
    assert shell("apply", "-f", file).lines[1] == "experiment/fraud-v2 created"
    assert shell("start", "fraud-v2").code == 0


def test_everything_in_a_file_is_deleted_when_asked(shell: Shell) -> None:
    """Experiments before the targets that they need; a second time says that nothing is there."""
    file = shell.file(TARGET, EXPERIMENT)
    shell("apply", "-f", file)
    assert shell("delete", "target/fraud").code == 5
    done = shell("delete", "-f", file)
    assert (done.code, done.err) == (0, "")
    assert done.lines == ["experiment/fraud-v2 deleted", "target/fraud deleted"]
    again = shell("delete", "-f", file)
    assert (again.code, again.out) == (4, "")
    assert [line.split()[1] for line in again.err.splitlines()] == [
        f"tenants/{shell.tenant}/experiments/fraud-v2",
        f"tenants/{shell.tenant}/targets/fraud",
    ]


def test_nothing_is_deleted_when_the_etag_is_stale(shell: Shell) -> None:
    shell.apply(TARGET)
    assert shell("delete", "target", "fraud", "--etag", "stale").code == 5
    assert "fraud" in shell("get", "targets").out


@contextmanager
def watching(address: str, tenant: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `turnout watch` process that ends when the experiment has."""
    command = [sys.executable, "-m", "turnout.cli", "watch", "fraud-v2", "--until-ended"]
    command += ["--control", address, "--tenant", tenant, "-o", "json"]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def events_of(process: subprocess.Popen[bytes]) -> Iterator[tuple[str, str]]:
    """Type and state of every event, as they come."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        yield event["type"], event["experiment"]["status"]["state"]


def test_watch_prints_what_is_and_every_change_until_all_have_ended(
    shell: Shell, address: str
) -> None:
    shell.apply(TARGET, EXPERIMENT)
    with watching(address, shell.tenant) as process:
        events = events_of(process)
        assert next(events) == ("PRESENT", "DRAFT")
        shell("start", "fraud-v2")
        shell("stop", "fraud-v2")
        rest = list(events)
        assert process.wait(timeout=30) == 0
    assert {kind for kind, _ in rest} == {"CHANGED"}
    assert rest[-1] == ("CHANGED", "STOPPED")


def test_watch_goes_on_when_the_control_plane_comes_back(tmp_path: Path) -> None:
    place, store = f"127.0.0.1:{free_port()}", tmp_path / "control.db"
    shell = Shell(place, "back", tmp_path)
    with ExitStack() as stack:
        with control_plane(place, store):
            shell.apply(TARGET, EXPERIMENT)
            process = stack.enter_context(watching(place, "back"))
            events = events_of(process)
            assert next(events) == ("PRESENT", "DRAFT")
        assert process.stderr is not None
        assert b"lost, trying again" in process.stderr.readline()
        with control_plane(place, store):
            assert next(events) == ("PRESENT", "DRAFT")
            shell("start", "fraud-v2")
            shell("stop", "fraud-v2")
            assert list(events)[-1] == ("CHANGED", "STOPPED")
            assert process.wait(timeout=30) == 0


def test_who_asked_is_kept_with_the_decision(shell: Shell, address: str) -> None:
    shell.apply(TARGET, EXPERIMENT)
    shell("start", "fraud-v2")
    name = f"tenants/{shell.tenant}/experiments/fraud-v2"
    with grpc.insecure_channel(address) as channel:
        stub = ExperimentServiceStub(channel)
        decisions = stub.ListDecisions(ListDecisionsRequest(parent=name)).decisions
        found: Experiment = stub.GetExperiment(GetExperimentRequest(name=name))
    assert [decision.actor for decision in decisions] == ["tester"]
    assert isinstance(found.status, ExperimentStatus)
