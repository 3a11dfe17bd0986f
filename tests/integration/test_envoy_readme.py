"""The commands of envoy/README.md, run as printed: only ports and paths are replaced."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sidecar.envoybootstrap import BootstrapOptions, bootstrap
from sidecar.envoyfiles import CLUSTERS_FILE, FILTER_FILE, ROUTES_FILE, documents
from sidecar.envoyinputs import load_filters
from sidecar.envoylint import RULES, Needs, lint
from tests.integration.harness import BIN
from tests.integration.test_readme import Shell, commands, shell
from tests.integration.waiting import free_port, wait_for
from tests.tidy.repository import ROOT
from tests.tidy.test_readme import blocks, defined
from turnout.v1alpha1.snapshot_pb2 import Snapshot

__all__ = ["shell"]

README = ROOT / "envoy" / "README.md"
TEST = "tests/integration/test_envoy_readme.py::test_commands_run_as_printed"
ASKED = "/v2/models/fraud"


@pytest.fixture
def replaced(shell: Shell) -> dict[str, str]:
    """What is printed -> what is used; the Envoy of the example gets free ports."""
    own = shell.directory / "own.yaml"
    text = (ROOT / "envoy/own/envoy.yaml").read_text()
    ports = {port: free_port() for port in ("8080", "8081", "8082", "9901")}
    for printed, used in ports.items():
        text = text.replace(f"port_value: {printed}", f"port_value: {used}")
    own.write_text(text)
    return {
        "envoy/own/envoy.yaml": str(own),
        "127.0.0.1:8080": f"127.0.0.1:{ports['8080']}",
        "127.0.0.1:9901": f"127.0.0.1:{ports['9901']}",
        ".turnout/": f"{shell.directory}/",
    }


def lines_with(given: str, replaced: dict[str, str]) -> str:
    for printed, used in replaced.items():
        given = given.replace(printed, used)
    return given


async def test_commands_run_as_printed(shell: Shell, replaced: dict[str, str]) -> None:
    ran = 0
    for command in commands(README.read_text(), TEST):
        line = lines_with(command.line, replaced)
        ran += 1
        if command.background:
            shell.start(line)
            continue
        if ASKED not in line:
            output = shell.run(line)
            assert set(command.expected) <= set(output.splitlines()), f"{line}\n{output}"
            continue

        async def split(line: str = line, expected: tuple[str, ...] = command.expected) -> bool:
            # The sidecar needs a second to see that the clusters are healthy.
            assert shell.alive()
            return set(expected) <= set(shell.run(line).splitlines())

        await wait_for(split, "both versions answer")
    assert ran == 9


def test_every_block_names_the_test_that_runs_it() -> None:
    for block in blocks(README.read_text()):
        if block.kind in {"console", "sh", "bash"}:
            assert block.tests, f"no test runs:\n{block.body}"
            assert all(defined(name) for name in block.tests), block.tests


def test_every_rule_is_listed_with_what_happens() -> None:
    listed = re.findall(
        r"^\| `([a-z0-9-]+)` \| (error|warning) \| (.*) \|$", README.read_text(), re.M
    )
    assert listed == [(rule.id, rule.severity, rule.why) for rule in RULES]


def test_filter_of_the_readme_is_one_that_envoy_and_lint_take(tmp_path: Path) -> None:
    (printed,) = [b.body for b in blocks(README.read_text()) if b.kind == "yaml"]
    (tmp_path / "filters.yaml").write_text(printed)
    text = bootstrap(
        BootstrapOptions(
            "127.0.0.1", 10_000, "/tmp/w", 2, str(tmp_path), "/tmp/a",
            filters=load_filters(tmp_path / "filters.yaml"),
        )
    )  # fmt: skip
    path = tmp_path / "bootstrap.yaml"
    path.write_text(text)
    for name, content in zip(
        (CLUSTERS_FILE, ROUTES_FILE, FILTER_FILE), documents(Snapshot(), enabled=()), strict=True
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    command = (BIN / "envoy", "--mode", "validate", "-c", path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lint({"x": text.encode()}, Needs(claims=frozenset({"claims"}))) == []
