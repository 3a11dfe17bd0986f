"""`turnout init`: a first file that is good, from flags or from questions on a terminal."""

from __future__ import annotations

import itertools
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from control.commands.init import Kind
from control.model import load_yaml
from tests.control.clirunning import ENVIRONMENT, Done, turnout, turnout_process
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.target_pb2 import TargetSpec

FLAGS = {
    "--target": "fraud",
    "--baseline": "fraud-v1:8080",
    "--candidate": "fraud-v2:8080",
    "--unit-header": "x-user-id",
    "--kind": "canary",
}


def made(out: Path | str, **changes: str) -> Done:
    """Run it with flags only."""
    flags = FLAGS | {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    return turnout("init", *itertools.chain(*flags.items()), "-o", out)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"host": "fraud.risk.svc", "path_prefix": "/v1", "health_path": "/ready", "tenant": "risk"},
        {"target": "123", "name": "null", "baseline": "[::1]:80", "candidate": "10.0.0.1:81"},
        {"target": "a" * 63},
    ],
)
def test_file_lints_clean_and_says_what_was_answered(
    tmp_path: Path, kind: Kind, more: dict[str, str]
) -> None:
    path = tmp_path / "first.yaml"
    done = made(path, kind=kind.value, **more)
    assert (done.code, done.err) == (0, "")
    linted = turnout("lint", "-f", path)
    assert (linted.code, linted.err) == (0, "")
    assert turnout("snapshot", "build", "-f", path, "-o", tmp_path / "s").code == 0
    answers = {key.removeprefix("--").replace("-", "_"): v for key, v in FLAGS.items()} | more
    target, experiment = load_yaml(path.read_bytes())
    assert isinstance(target.spec, TargetSpec)
    assert isinstance(experiment.spec, ExperimentSpec)
    assert (target.name, target.tenant) == (answers["target"], more.get("tenant", ""))
    assert target.spec.baseline.upstream.address == answers["baseline"]
    assert list(target.spec.match.hosts) == [more.get("host", "*")]
    assert experiment.spec.variants[1].upstream.address == answers["candidate"]
    assert experiment.spec.unit.header == "x-user-id"
    kinds = [step.WhichOneof("kind") for step in experiment.spec.steps]
    assert kinds[-1] == kind.value


def test_file_is_printed_when_out_is_a_dash() -> None:
    done = made("-")
    assert done.code == 0
    assert len(load_yaml(done.out.encode())) == 2


def test_file_is_named_after_the_experiment_when_no_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert turnout("init", *itertools.chain(*FLAGS.items())).code == 0
    assert (tmp_path / "fraud-v2.yaml").exists()


def test_file_is_kept_when_it_exists_and_force_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text("mine")
    done = made(path)
    assert (done.code, "say --force to overwrite it" in done.err) == (1, True)
    assert path.read_text() == "mine"
    forced = turnout("init", *itertools.chain(*FLAGS.items()), "-o", path, "--force")
    assert forced.code == 0
    assert turnout("lint", "-f", path).code == 0
    nowhere = made(tmp_path / "missing" / "first.yaml")
    assert (nowhere.code, "No such file" in nowhere.err) == (1, True)


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_missing_flag_is_named_when_nobody_can_be_asked(flag: str) -> None:
    words = itertools.chain(*((key, value) for key, value in FLAGS.items() if key != flag))
    done = turnout_process("init", *words, "-o", "-")
    assert done.code == 2
    assert f"no terminal to ask at: say {flag}" in " ".join(done.err.split())


def test_every_missing_flag_is_named_at_once() -> None:
    done = turnout("init", "--target", "fraud", "--kind", "ab")
    assert done.code == 2
    assert "say --baseline, --candidate, --unit-header" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("target", "Fraud", "must be a DNS label"),
        ("baseline", "fraud-v1", "must be HOST:PORT"),
        ("candidate", "http://x:1", "must be HOST:PORT"),
        ("unit_header", "x user", "must be"),
        ("unit_header", "x-variant", "must not be a name that Turnout or Envoy reserves"),
        ("host", "a b", "must"),
        ("path_prefix", "v2", "must"),
        ("health_path", "ready", "must"),
        ("name", "A", "must be a DNS label"),
        ("tenant", "A", "must be a DNS label"),
        ("target", "a\nb", "must be printable"),
        ("baseline", "\udcff:1", "must be printable"),
    ],
)
def test_answer_is_refused_by_its_flag_when_the_file_would_not_be_good(
    tmp_path: Path, flag: str, value: str, rule: str
) -> None:
    path = tmp_path / "first.yaml"
    done = made(path, **{flag: value})
    assert done.code == 3
    assert any(
        line.startswith(f"--{flag.replace('_', '-')}: ") and rule in line
        for line in done.err.splitlines()
    ), done.err
    assert not path.exists()


def test_questions_are_asked_again_until_answered_well_when_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    command = [sys.executable, "-m", "turnout.cli", "init", "--baseline", "fraud-v1:8080"]
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*command, "-o", str(path)],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )
        # A bad name and a bad kind first; an empty line takes the header's default.
        os.write(ours, b"Fraud\nfraud\nfraud-v2:8080\n\nbandit\nab\n")
        out, err = process.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0, err
    assert "Fraud: must be a DNS label" in err
    assert "'bandit' is none of canary, ab, shadow" in err
    assert "HOST:PORT of the version that serves now" not in err  # a flag says it
    assert out.startswith(f"{path}: a target and an experiment (ab)")
    assert turnout("lint", "-f", path).code == 0
