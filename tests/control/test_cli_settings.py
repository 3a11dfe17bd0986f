"""Options from the environment and from a file: which one wins, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.main import get_command

from tests.control.clirunning import Done, turnout
from tests.control.resources import TARGET
from tests.integration.waiting import free_port
from turnout import settings
from turnout.cli import HELPS, main

NOWHERE = "127.0.0.1:1"


def written(directory: Path, text: str) -> Path:
    """A file of options."""
    path = directory / "turnout.yaml"
    path.write_text(text)
    return path


def asked(done: Done) -> str:
    """The control plane that a command tried to reach: nothing listens anywhere here."""
    assert done.code == 6, done.err
    return done.err.removeprefix("control plane at ").partition(": ")[0]


def test_flag_wins_over_environment_over_file_over_default_when_all_say_something(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, 'client: {control: "127.0.0.1:3"}')
    words = ("get", "experiments", "--config", file)
    flag = ("--control", "127.0.0.1:1")
    assert asked(turnout(*words, *flag, TURNOUT_CONTROL="127.0.0.1:2")) == "127.0.0.1:1"
    assert asked(turnout(*words, TURNOUT_CONTROL="127.0.0.1:2")) == "127.0.0.1:2"
    assert asked(turnout(*words)) == "127.0.0.1:3"
    assert turnout("lint", "--help").code == 0


def test_commands_own_section_wins_over_the_shared_one(tmp_path: Path) -> None:
    text = 'client: {control: "127.0.0.1:3"}\nget: {control: "127.0.0.1:4"}'
    file = written(tmp_path, text)
    assert asked(turnout("get", "experiments", "--config", file)) == "127.0.0.1:4"
    assert asked(turnout("describe", "x", "--config", file)) == "127.0.0.1:3"


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_file_is_read_wherever_it_is_named(tmp_path: Path, place: str) -> None:
    file = written(tmp_path, 'client: {control: "127.0.0.1:3"}')
    words: tuple[object, ...] = ("get", "experiments")
    variables: dict[str, str] = {}
    if place == "before":
        words = ("--config", file, *words)
    elif place == "after":
        words = (*words, "--config", file)
    else:
        variables["TURNOUT_CONFIG"] = str(file)
    assert asked(turnout(*words, **variables)) == "127.0.0.1:3"


def test_typed_file_wins_over_the_environments_when_both_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, 'client: {control: "127.0.0.1:3"}')
    missing = str(tmp_path / "missing.yaml")
    done = turnout("get", "experiments", "--config", file, TURNOUT_CONFIG=missing)
    assert asked(done) == "127.0.0.1:3"
    assert asked(turnout("--config", file, "get", "experiments", TURNOUT_CONFIG=missing))


def test_required_options_lists_and_switches_come_from_a_file(tmp_path: Path) -> None:
    resource = tmp_path / "target.yaml"
    resource.write_text(TARGET)
    file = written(tmp_path, f"lint:\n  file: [{resource}, {resource}]\n  output: json\n")
    done = turnout("lint", "--config", file)
    assert done.code == 3
    assert "is there twice" in done.out  # both were read: the target is in either
    single = written(tmp_path, f"lint:\n  file: {resource}\n")
    assert turnout("lint", "--config", single).code == 0
    dry = written(tmp_path, f'apply: {{file: {resource}, dry-run: "perhaps"}}')
    refused = turnout("apply", "--control", NOWHERE, "--config", dry)
    assert refused.code == 2
    assert f"{dry}:1: dry-run: " in refused.err


def test_nested_command_has_a_nested_section_and_variables_with_its_path(tmp_path: Path) -> None:
    out = tmp_path / "made.snapshot"
    resource = tmp_path / "target.yaml"
    resource.write_text(TARGET)
    file = written(tmp_path, f"snapshot: {{build: {{file: {resource}, out: {out}}}}}")
    assert turnout("snapshot", "build", "--config", file).code == 0
    assert out.exists()
    other = tmp_path / "other.snapshot"
    done = turnout("snapshot", "build", "--config", file, TURNOUT_SNAPSHOT_BUILD_OUT=str(other))
    assert (done.code, other.exists()) == (0, True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("clients: {}", ":1: unknown section 'clients'; did you mean client?"),
        ("client: {}\nget:\n  tennant: x", ":3: get: unknown flag 'tennant'; did you mean tenant?"),
        ("client: {timeout: 3s}", ":1: client: unknown flag 'timeout'; there are control, output"),
        ("get: {what: experiments}", ":1: get: unknown flag 'what'"),
        ("get: {config: x}", ":1: get: unknown flag 'config'"),
        ("\nget: {tenant: a, tenant: b}", ":2: tenant: is there twice"),
        ("get: {tenant: }", ":1: tenant: no value"),
        ("get: {tenant: [a, b]}", ":1: tenant: must be one value"),
        ("get: {tenant: {a: b}}", ":1: tenant: must be one value"),
        ("get: {output: xml}", ":1: output: "),
        ("get: yes", ":1: get: must be a mapping"),
        ("client: x", ":1: client: must be a mapping"),
        ("- get", ":1: must be a mapping of sections"),
        ("get: {", ":1: not YAML: "),
        ("a: b\n---\nc: d", ":2: not YAML: "),
        ("get: {tenant: *x}", ":1: not YAML: "),
        ("? [a]\n: b", ":1: the file: keys must be names"),
        ("get: {tenant: [[a]]}", ":1: tenant: must be a list of plain values"),
        ("[" * 100_000, ": nested too deeply"),
        ("x" * (settings.FILE_BYTES_MAX + 1), ": larger than"),
    ],
)
def test_file_is_refused_with_its_line_when_a_key_or_value_cannot_be_used(
    tmp_path: Path, text: str, fault: str
) -> None:
    file = written(tmp_path, text)
    done = turnout("get", "experiments", "--control", NOWHERE, "--config", file)
    assert done.code == 2
    assert f"{file}{fault}" in " ".join(done.err.split())


def test_file_is_refused_when_it_is_not_there_or_not_text(tmp_path: Path) -> None:
    missing = turnout("get", "experiments", "--config", tmp_path / "missing.yaml")
    assert (missing.code, "No such file" in missing.err) == (2, True)
    file = tmp_path / "binary"
    file.write_bytes(b"get: \xff")
    assert "not UTF-8 at byte 5" in turnout("get", "experiments", "--config", file).err


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "# nothing yet\n")
    words = ("get", "experiments", "--control", NOWHERE)
    assert asked(turnout(*words, "--config", file)) == NOWHERE


def test_variables_of_servers_carry_the_commands_name_and_those_of_clients_do_not() -> None:
    assert settings.variable(("sidecar",), "state-dir") == "TURNOUT_SIDECAR_STATE_DIR"
    assert settings.variable(("control",), "listen") == "TURNOUT_CONTROL_LISTEN"
    assert settings.variable(("apply",), "dry-run") == "TURNOUT_DRY_RUN"


def test_clients_address_never_reaches_a_server_through_the_environment() -> None:
    # TURNOUT_CONTROL would make a stand-alone sidecar ask for a tenant and a state directory.
    words = ("sidecar", "--listen", "nonsense", "--snapshot", "x")
    done = turnout(*words, TURNOUT_CONTROL=NOWHERE, TURNOUT_TENANT="risk")
    assert (done.code, "--listen" in done.err) == (2, True)


def test_wrong_value_names_its_variable_when_it_comes_from_the_environment() -> None:
    done = turnout("sidecar", "--listen", "unix:/tmp/x", TURNOUT_SIDECAR_WORKERS="many")
    assert done.code == 2
    assert "'--workers' (env var: 'TURNOUT_SIDECAR_WORKERS')" in done.err
    assert (
        "env var: 'TURNOUT_SIDECAR_WORKERS'"
        not in turnout("sidecar", "--listen", "unix:/tmp/x", "--workers", "many").err
    )


def test_no_two_options_of_one_command_share_a_variable_and_none_is_without() -> None:
    root: Any = get_command(main)
    for name in HELPS:
        leaves: list[tuple[tuple[str, ...], Any]] = [((name,), root.get_command(None, name))]
        while leaves:
            words, command = leaves.pop()
            if hasattr(command, "commands"):
                leaves += [((*words, key), child) for key, child in command.commands.items()]
                continue
            found = settings.options(command)
            variables = [option.envvar for option in found.values()]
            expected = [
                None if flag in settings.TYPED_ONLY else settings.variable(words, flag)
                for flag in found
            ]
            named = [name for name in variables if name]
            assert len(set(named)) == len(named), words
            assert variables == expected


def test_no_variable_is_one_that_kubernetes_sets_for_a_service() -> None:
    """A Service "turnout-control" gives every pod TURNOUT_CONTROL_PORT=tcp://10.0.0.1:7700."""
    root: Any = get_command(main)
    for name in HELPS:
        command = root.get_command(None, name)
        for flag in settings.options(command) if not hasattr(command, "commands") else ():
            injected = ("PORT", "SERVICE_HOST", "SERVICE_PORT")
            assert not settings.variable((name,), flag).endswith(injected), (name, flag)


def test_safeguard_is_lifted_only_by_what_is_typed(tmp_path: Path) -> None:
    kept = tmp_path / "kept.yaml"
    kept.write_text("mine")
    words: tuple[object, ...] = ("init", "--target", "a", "--baseline", "b:1", "--candidate", "c:1")
    words += ("--unit-header", "x-user-id", "--kind", "ab", "-o", kept)
    assert turnout(*words, TURNOUT_FORCE="1").code == 1
    file = written(tmp_path, "init: {force: true}")
    refused = turnout(*words, "--config", file)
    assert (refused.code, ":1: init: unknown flag 'force'" in refused.err) == (2, True)
    assert kept.read_text() == "mine"


def test_switches_come_from_the_environment_in_the_usual_words(tmp_path: Path) -> None:
    words = ("control", "--listen", "nonsense", "--store", f"sqlite:{tmp_path}/x.db")
    for value in ("true", "0", "no", "on"):
        done = turnout(*words, TURNOUT_CONTROL_REFLECTION=value)
        assert (done.code, "'nonsense' is not HOST:PORT" in done.err) == (2, True)
    wrong = turnout(*words, TURNOUT_CONTROL_REFLECTION="perhaps")
    assert (wrong.code, "TURNOUT_CONTROL_REFLECTION" in wrong.err) == (2, True)


def test_control_plane_runs_when_only_file_and_environment_say_how(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    file = written(tmp_path, f"control: {{store: 'sqlite:{tmp_path}/control.db'}}")
    variables = {"TURNOUT_CONTROL_LISTEN": place, "TURNOUT_CONFIG": str(file)}
    process = subprocess.Popen(
        [sys.executable, "-m", "turnout.cli", "control"], env={**os.environ, **variables}
    )
    try:
        with grpc.insecure_channel(place) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "control.db").exists()


def test_help_of_a_command_says_where_its_options_come_from_as_well() -> None:
    text = " ".join(turnout("sidecar", "--help").out.split())
    assert "Options also come from TURNOUT_SIDECAR_<FLAG> and from section sidecar of" in text
    assert "TURNOUT_CONTROL_LISTEN" in turnout("--help").out
