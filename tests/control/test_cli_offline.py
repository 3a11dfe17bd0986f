"""The command itself, `turnout lint`, and how the client commands take their arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from control.model import document_of, load_yaml, read_yaml, to_yaml
from tests.control.clirunning import turnout, turnout_process
from tests.control.resources import EXPERIMENT, TARGET, replaced
from turnout.cli import HELPS
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentSpec
from turnout.v1alpha1.target_pb2 import Target, TargetSpec

EXAMPLES = Path(__file__).parents[2] / "envoy" / "examples"
CLIENT_COMMANDS = (
    "apply", "diff", "explain", "get", "describe", "status", "wait", "watch", "results",
    "sidecars", "start", "pause", "resume", "advance", "promote", "rollback", "undo", "stop",
    "delete",
)  # fmt: skip
# Prints what it imported after running the command line in this process.
IMPORTS = """
import sys
from turnout.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if name in {names!r}), file=sys.stderr)
"""


def imported(names: set[str], *words: str) -> set[str]:
    """Which of these modules a run of the command imports."""
    script = IMPORTS.format(names=names)
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, check=True, timeout=60
    )
    return set(done.stderr.decode().split())


def test_help_lists_every_command_with_a_line_and_imports_neither_side() -> None:
    done = turnout("--help")
    assert done.code == 0
    listed = [line.split(maxsplit=1) for line in done.lines]
    helps = {words[0]: words[1] for words in listed if words and words[0] in HELPS}
    assert helps == HELPS
    assert imported({"sidecar", "control", "grpc", "scipy"}, "--help") == set()


@pytest.mark.parametrize("command", sorted(HELPS))
def test_every_command_explains_itself_and_its_exit_codes_when_asked(command: str) -> None:
    done = turnout(command, "--help")
    assert done.code == 0
    text = " ".join(done.out.split())
    if command in ("snapshot", "envoy"):  # their subcommands do
        return
    assert "xit codes: 0" in text
    if command in CLIENT_COMMANDS:
        assert "6 control plane unreachable" in text


def test_sidecar_imports_no_control_plane_when_it_is_called() -> None:
    names = {"control", "scipy", "numpy", "sqlalchemy", "sidecar"}
    assert imported(names, "sidecar", "--help") == {"sidecar"}


@pytest.mark.parametrize(
    "words", [["frobnicate"], ["get"], ["start"], ["start", "a", "b"], ["lint"]]
)
def test_usage_is_refused_with_code_two_when_words_are_wrong(words: list[str]) -> None:
    done = turnout(*words)
    assert done.code == 2
    assert done.err


@pytest.mark.parametrize(
    "words",
    [
        ["start", "No_Name"],
        ["start", "target/fraud"],
        ["describe", "thing/fraud"],
        ["describe", "tenants/risk/things/x"],
        ["get", "experiments", "--tenant", "-x"],
        ["get", "experiments", "-o", "xml"],
        ["rollback", "x\ny"],
        ["delete"],
        ["delete", "fraud", "-f", "x.yaml"],
        ["delete", "No_Name"],
        ["delete", "-f", "x.yaml", "--etag", "e"],
    ],
)
def test_arguments_are_refused_before_any_call_when_they_are_malformed(words: list[str]) -> None:
    assert turnout(*words, "--control", "127.0.0.1:1").code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["start", "x"],
        ["get", "targets"],
        ["delete", "target/x"],
        ["apply", "-f", EXAMPLES / "ab.yaml"],
    ],
)
def test_tenant_is_blamed_when_it_is_the_tenant_that_is_malformed(words: list[object]) -> None:
    done = turnout(*words, "--tenant", "Not_One", "--control", "127.0.0.1:1")
    assert done.code == 2
    assert "--tenant" in done.err
    assert "'Not_One' is no tenant" in done.err


def test_snapshot_names_the_users_path_when_it_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "snapshot"
    done = turnout("snapshot", "build", "-f", EXAMPLES / "target.yaml", "-o", out)
    assert (done.code, done.err) == (1, f"{out}: No such file or directory\n")


def test_unreachable_control_plane_has_its_own_code_when_nothing_listens() -> None:
    done = turnout("get", "experiments", "--control", "127.0.0.1:1")
    assert done.code == 6
    assert done.err.startswith("control plane at 127.0.0.1:1: ")
    watched = turnout("watch", TURNOUT_CONTROL="127.0.0.1:1")
    assert watched.code == 6


def test_nothing_is_sent_when_a_file_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(replaced(TARGET, "60s", "61m") + "---" + EXPERIMENT)
    done = turnout("apply", "-f", file, "--control", "127.0.0.1:1")
    assert done.code == 3
    assert done.err == f"{file}:8: spec.timeout: 1h1m: must be at least 1ms and at most 1h\n"


# -- lint ------------------------------------------------------------------------------------------


def test_examples_are_good_when_they_are_linted() -> None:
    files = [EXAMPLES / name for name in ("target.yaml", "canary.yaml", "shadow.yaml", "ab.yaml")]
    done = turnout("lint", *(word for path in files for word in ("-f", path)))
    assert (done.code, done.err) == (0, "")
    assert [line.partition(": ")[2] for line in done.lines] == [
        "Target fraud: ok",
        "Experiment fraud-v2: ok",
        "Experiment fraud-v2-shadow: ok",
        "Experiment fraud-threshold: ok",
    ]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_example_is_good_by_itself_when_it_is_linted(file: Path) -> None:
    assert turnout("lint", "-f", file).code == 0


@pytest.mark.parametrize("name", ["canary.yaml", "shadow.yaml", "ab.yaml", "layers.yaml"])
def test_example_is_a_snapshot_when_it_is_built_with_its_target(name: str, tmp_path: Path) -> None:
    words = ["-f", EXAMPLES / "target.yaml", "-f", EXAMPLES / name, "-o", tmp_path / "snapshot"]
    assert turnout("snapshot", "build", *words).code == 0


def test_lint_prints_file_line_field_value_and_rule_when_a_file_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    text = replaced(EXPERIMENT, "v2: 0.05", "v2: 1.5")
    text = replaced(text, "reserve: 1.0", "reserve: 1.0, size: 3")
    file.write_text(text)
    done = turnout("lint", "-f", file)
    assert (done.code, done.out) == (3, "")
    assert done.err.splitlines() == [
        f"{file}:7: spec.layer.size: size: unknown field; known: name, reserve",
        f"{file}:22: spec.steps[2].canary.split.v2: 1.5: must be at least 0 and at most 1",
    ]
    entries = json.loads(turnout("lint", "-f", file, "-o", "json").out)
    assert entries[1] == {
        "file": str(file),
        "line": 22,
        "field": "spec.steps[2].canary.split.v2",
        "value": "1.5",
        "rule": "must be at least 0 and at most 1",
    }
    assert yaml.safe_load(turnout("lint", "-f", file, "-o", "yaml").out) == entries


def test_lint_names_features_with_code_seven_when_they_are_not_implemented(tmp_path: Path) -> None:
    file = tmp_path / "future.yaml"
    file.write_text(replaced(EXPERIMENT, "for: 1h,", "for: 1h, lease: 1m,"))
    done = turnout("lint", "-f", file)
    assert done.code == 7
    assert done.err == f"{file}:22: spec.steps[2].canary.lease: set: not implemented\n"


def test_lint_says_so_when_files_cannot_be_read(tmp_path: Path) -> None:
    missing = turnout("lint", "-f", tmp_path / "none.yaml")
    assert (missing.code, missing.err) == (
        1,
        f"{tmp_path / 'none.yaml'}: No such file or directory\n",
    )
    directory = turnout("lint", "-f", tmp_path)
    assert (directory.code, "Is a directory" in directory.err) == (1, True)


def test_lint_refuses_at_once_when_the_file_is_huge_or_endless() -> None:
    done = turnout_process("lint", "-f", "-", stdin=b"# padding\n" * 600_000)
    assert (done.code, done.err) == (3, "-: (file): more than 262144 bytes: too large\n")
    endless = turnout_process("lint", "-f", "/dev/zero")
    assert endless.code == 3


# -- What is printed reads back --------------------------------------------------------------------


def test_printed_yaml_reads_back_the_same_when_it_is_applied_again() -> None:
    documents, _ = read_yaml(f"{TARGET}---{EXPERIMENT}".encode())
    target, experiment = documents
    assert isinstance(target.spec, TargetSpec)
    assert isinstance(experiment.spec, ExperimentSpec)
    odd = {"a": "1e3", "b": "no", "c": "x: y\n- z", "d": "", "e": "~", "f": "0x1f", "g": "é\u2028"}
    resources: list[Target | Experiment] = [
        Target(name="tenants/risk/targets/fraud", spec=target.spec, etag="e1"),
        Experiment(
            name="tenants/risk/experiments/fraud-v2", spec=experiment.spec, labels=odd, etag="123"
        ),
    ]
    text = to_yaml([document_of(resource) for resource in resources])
    again = load_yaml(text.encode())
    assert [item.spec for item in again] == [target.spec, experiment.spec]
    assert again[1].labels == odd
    assert [item.etag for item in again] == ["e1", "123"]
    assert [(item.tenant, item.name) for item in again] == [("risk", "fraud"), ("risk", "fraud-v2")]
