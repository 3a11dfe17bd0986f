"""The first canary of envoy/README.md and the commands of envoy/TROUBLESHOOTING.md, as printed."""

from __future__ import annotations

import re
import subprocess

from tests.integration.test_envoy_readme import lines_with, replaced
from tests.integration.test_readme import Command, Shell, commands, environment, shell
from tests.integration.waiting import free_port, wait_for
from tests.tidy.repository import ROOT
from tests.tidy.test_readme import blocks, defined

__all__ = ["replaced", "shell"]

README = ROOT / "envoy" / "README.md"
PAGE = ROOT / "envoy" / "TROUBLESHOOTING.md"
TEST = "tests/integration/test_troubleshooting.py::test_commands_run_as_printed"
PATCHED = "tests/integration/test_envoy_readme.py::test_commands_run_as_printed"


def ran(line: str) -> tuple[int, str]:
    """Exit code and output of one command."""
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment(), capture_output=True, timeout=60
    )
    return done.returncode, (done.stdout + done.stderr).decode()


async def follow(shell: Shell, command: Command, line: str) -> None:
    """Run one command until it ends with the code of its comment and prints what stands below."""
    if command.background:
        shell.start(line)
        return
    promised = re.search(r" # (\d+):", line)
    expected = (int(promised[1]) if promised else 0, set(command.expected))

    async def as_printed() -> bool:
        # What has just been started needs a moment: the first commands meet it starting.
        assert shell.alive()
        code, output = ran(line)
        seen.append(f"{code}: {output}")
        return code == expected[0] and expected[1] <= set(output.splitlines())

    seen: list[str] = []
    try:
        await wait_for(as_printed, line)
    except AssertionError as wrong:
        raise AssertionError(f"{wrong}\n{seen[-1]}") from wrong


async def test_commands_run_as_printed(shell: Shell, replaced: dict[str, str]) -> None:
    control = f"127.0.0.1:{free_port()}"
    printed = [
        *(c for c in commands(README.read_text(), PATCHED) if "envoy patch" in c.line),
        *commands(README.read_text(), TEST),
        *commands(PAGE.read_text(), TEST),
    ]
    here = {"127.0.0.1:7700": control, ".turnout/": f"{shell.directory}/"}
    for command in printed:
        line = lines_with(command.line, {**replaced, **here})
        if "turnout " in line and "--control" not in line and "control --" not in line:
            # The default address is taken by what else runs here.
            line = f"TURNOUT_CONTROL={control} {line}"
        await follow(shell, command, line)
    assert len(printed) > 20


def test_every_block_names_the_test_that_runs_it() -> None:
    for block in blocks(PAGE.read_text()):
        if block.kind in {"console", "sh", "bash"}:
            assert block.tests == (TEST,), f"no test runs:\n{block.body}"
            assert all(defined(name) for name in block.tests), block.tests
