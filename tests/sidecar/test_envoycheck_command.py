"""`turnout envoy lint` and `patch`: what they print, write and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sidecar.envoy_command import envoy

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests/envoylint/good"
FAULTY = ROOT / "tests/envoylint/faulty"
OWN = str(ROOT / "envoy/own/envoy.yaml")
RESOURCES = str(ROOT / "envoy/own/resources.yaml")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(envoy, [str(argument) for argument in arguments])


def patch(directory: Path, *more: str | Path, own: str | Path = OWN) -> Result:
    return run(
        "patch", own, "-f", RESOURCES, "--sidecar", "unix:/tmp/w",
        "--envoy-dir", directory / "e", "-o", directory / "out.yaml", *more,
    )  # fmt: skip


# -- lint ------------------------------------------------------------------------------------------


def test_lint_ends_with_0_when_nothing_is_found() -> None:
    result = run("lint", GOOD / "beside-bootstrap.yaml", GOOD / "beside-ecds.yaml")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "nothing found\n"


def test_lint_says_that_there_is_nothing_to_judge_when_ext_proc_is_missing() -> None:
    result = run("lint", GOOD / "front-proxy.yaml")
    assert result.exit_code == 0
    assert "turnout envoy patch" in result.stderr


def test_lint_prints_file_line_rule_and_remedy_when_a_trap_is_found() -> None:
    path = FAULTY / "fail-closed.yaml"
    result = run("lint", path)
    assert result.exit_code == 1
    head, why, remedy = result.stdout.splitlines()
    assert head == f"{path}:7: error fail-closed: failure_mode_allow is false"
    assert why.startswith("    ")
    assert remedy.startswith("    Remedy: Add `failure_mode_allow: true`")
    assert result.stderr == "1 error(s), 0 warning(s)\n"


def test_lint_prints_json_when_asked() -> None:
    result = run("lint", FAULTY / "fail-closed.yaml", "-o", "json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert (finding["line"], finding["rule"], finding["severity"]) == (7, "fail-closed", "error")
    assert json.loads(run("lint", GOOD / "beside-ecds.yaml", "-o", "json").stdout) == []


def test_lint_misses_what_the_resources_need_when_they_are_given(tmp_path: Path) -> None:
    text = (GOOD / "beside-ecds.yaml").read_text().replace(", {exact: x-user-id}", "")
    (tmp_path / "ecds.yaml").write_text(text)
    assert run("lint", tmp_path / "ecds.yaml").exit_code == 0
    result = run("lint", tmp_path / "ecds.yaml", "-f", RESOURCES)
    assert result.exit_code == 1
    assert "forward_rules lacks x-user-id" in result.stdout


@pytest.mark.parametrize("data", [b"a: [", b"hello: world\n", b"\xff\xfe", b""])
def test_lint_ends_with_2_and_one_line_when_a_file_cannot_be_judged(
    data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_bytes(data)
    result = run("lint", GOOD / "beside-ecds.yaml", tmp_path / "x.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{tmp_path}/x.yaml:")
    assert result.stderr.count("\n") == 1


def test_lint_ends_with_2_when_a_file_is_missing(tmp_path: Path) -> None:
    result = run("lint", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "No such file" in result.stderr
    assert run("lint").exit_code == 2
    assert run("lint", OWN, "-o", "xml").exit_code == 2


def test_lint_ends_with_3_when_a_resource_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("apiVersion: turnout/v1alpha1\nkind: Target\n")
    assert run("lint", OWN, "-f", tmp_path / "bad.yaml").exit_code == 3


# -- patch -----------------------------------------------------------------------------------------


def test_patch_writes_the_file_and_what_envoy_needs_to_start(tmp_path: Path) -> None:
    result = patch(tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "x-user-id" in (tmp_path / "e/ecds/turnout.yaml").read_text()
    assert (tmp_path / "e/cds/clusters.yaml").exists()
    files = [tmp_path / "out.yaml", tmp_path / "e/ecds/turnout.yaml"]
    assert run("lint", *files, "-f", RESOURCES).exit_code == 0


def test_patch_leaves_files_that_the_sidecar_keeps(tmp_path: Path) -> None:
    (tmp_path / "e/ecds").mkdir(parents=True)
    (tmp_path / "e/ecds/turnout.yaml").write_text("the sidecar's")
    assert patch(tmp_path).exit_code == 0
    assert (tmp_path / "e/ecds/turnout.yaml").read_text() == "the sidecar's"


def test_patch_writes_over_its_input_when_told_so(tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text(Path(OWN).read_text())
    assert patch(tmp_path, own=tmp_path / "out.yaml").exit_code == 0
    once = (tmp_path / "out.yaml").read_text()
    assert patch(tmp_path, own=tmp_path / "out.yaml").exit_code == 0
    assert (tmp_path / "out.yaml").read_text() == once


def test_patch_prints_what_is_left_to_the_owner(tmp_path: Path) -> None:
    own = Path(OWN).read_text().replace("127.0.0.1, port_value: 9901", "0.0.0.0, port_value: 9901")
    own = own.replace("route: {cluster: model-v1,", "route: {cluster: model-v2,")
    (tmp_path / "own.yaml").write_text(own)
    result = patch(tmp_path, own=tmp_path / "own.yaml")
    assert result.exit_code == 0
    assert "warning admin-public" in result.stderr
    assert "the default route leads to model-v2, and the baseline is model-v1" in result.stderr


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (GOOD / "beside-lds.yaml", "give the bootstrap"),
        (GOOD / "management-server.yaml", "LDS"),
        (FAULTY / "yaml-documents.yaml", "2 documents"),
        (RESOURCES, "give it with -f"),
    ],
)
def test_patch_ends_with_2_and_writes_nothing_when_a_file_is_refused(
    own: Path, message: str, tmp_path: Path
) -> None:
    result = patch(tmp_path, own=own)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_patch_ends_with_2_when_an_option_cannot_be_used(tmp_path: Path) -> None:
    assert patch(tmp_path, "-o", tmp_path / "x.json").exit_code == 2
    assert patch(tmp_path, "--sidecar", "/tmp/w").exit_code == 2
    assert patch(tmp_path, "--admin", "127.0.0.1:1").exit_code == 2
    assert (
        run("patch", OWN, "--sidecar", "unix:/tmp/w", "-o", "x", "--envoy-dir", "e").exit_code == 2
    )


def test_patch_ends_with_1_when_a_file_cannot_be_read_or_written(tmp_path: Path) -> None:
    assert patch(tmp_path, own=tmp_path / "none.yaml").exit_code == 1
    (tmp_path / "e").write_text("a file, not a directory")
    result = patch(tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path / "e") in result.stderr
