"""The README's quick start, run as printed: only ports and paths are replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.waiting import free_port, wait_for
from tests.tidy.repository import ROOT
from tests.tidy.test_readme import blocks

TEST = "tests/integration/test_readme.py::test_quick_start_runs_as_printed"
# `timeout` says 124 when it had to end the command: a watch never ends by itself.
TIMEOUT_STATUS = 124


class Command(NamedTuple):
    """A command line of the README and the output printed below it."""

    line: str
    expected: tuple[str, ...]

    @property
    def background(self) -> bool:
        return self.line.endswith("&")


def commands(text: str, test: str = TEST) -> list[Command]:
    """The commands of all blocks that a test runs, in their order."""
    found: list[Command] = []
    for block in blocks(text):
        if test not in block.tests:
            continue
        inside = False
        for line in block.body.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:], ()))
                inside = _goes_on(line[2:])
            elif inside:
                found[-1] = found[-1]._replace(line=f"{found[-1].line}\n{line}")
                inside = _goes_on(found[-1].line)
            else:
                found[-1] = found[-1]._replace(expected=(*found[-1].expected, line))
    return found


def _goes_on(line: str) -> bool:
    # A line goes on after a backslash, and inside single quotes.
    return line.endswith("\\") or line.count("'") % 2 == 1


class Shell:
    """Runs commands in the checkout; what was put into the background ends with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> str:
        """Run one command to its end; both its streams."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment(), capture_output=True, timeout=60
        )
        output = (done.stdout + done.stderr).decode()
        timed = line.startswith("timeout ")
        assert done.returncode in ({0, TIMEOUT_STATUS} if timed else {0}), f"{line}\n{output}"
        return output

    def start(self, line: str) -> None:
        """Run one command in the background."""
        with (self.directory / "background.log").open("ab") as log:
            self._background.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {line.removesuffix('&')}"],
                    cwd=ROOT,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def alive(self) -> bool:
        ended = [process.args for process in self._background if process.poll() is not None]
        assert not ended, f"{ended}\n{(self.directory / 'background.log').read_text()}"
        return True

    def close(self) -> None:
        for process in reversed(self._background):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def environment() -> dict[str, str]:
    """A user's environment: pytest's own path is not in it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def shell() -> Iterator[Shell]:
    directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    started = Shell(directory)
    yield started
    started.close()
    shutil.rmtree(directory)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_quick_start_runs_as_printed(shell: Shell) -> None:
    control, envoy = free_port(), free_port()
    replaced = {
        "127.0.0.1:7700": f"127.0.0.1:{control}",
        "127.0.0.1:8080": f"127.0.0.1:{envoy}",
        "turnout.db": f"{shell.directory}/turnout.db",
        ".turnout/": f"{shell.directory}/",
    }
    ready = {
        "turnout control": lambda: _listens(control),
        "turnout sidecar": lambda: _appears(shell.directory / "worker.1"),
        "bin/envoy": lambda: _listens(envoy),
    }
    outputs = {}
    for command in commands((ROOT / "README.md").read_text()):
        line = command.line
        for printed, used in replaced.items():
            line = line.replace(printed, used)
        if command.background:
            shell.start(line)
            program = line.split("-", maxsplit=1)[0]
            name = next(name for name in ready if f"{name} " in program)

            async def met(name: str = name) -> bool:
                return shell.alive() and await ready[name]()

            await wait_for(met, f"{name} of the README serves")
        else:
            outputs[command.line] = output = shell.run(line)
            for expected in command.expected:
                assert expected in output.splitlines(), f"{line}\n{output}"
    watched = next(text for line, text in outputs.items() if "WatchExperiments" in line)
    assert "STATE_RUNNING" in watched
    decisions = next(text for line, text in outputs.items() if "ListDecisions" in line)
    assert "STATE_ROLLED_BACK" in decisions
    assert "just trying" in decisions
    assert len(outputs) > 8


async def _appears(path: Path) -> bool:
    return path.exists()
