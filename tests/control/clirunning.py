"""Runs the command line: as a user does, and inside the test for what needs many calls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import NamedTuple

from typer.testing import CliRunner

from turnout.cli import main

# As wide as a terminal that wraps nothing, without colours, whoever runs the tests.
ENVIRONMENT = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output, runs of blanks as one."""
        return [re.sub(r" +", " ", line).strip() for line in self.out.splitlines()]


def turnout(*words: object, **variables: str) -> Done:
    """Run `turnout` inside this process."""
    environment = {**ENVIRONMENT, "TURNOUT_ACTOR": "tester", **variables}
    done = CliRunner(env=environment).invoke(main, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def turnout_process(*words: object, stdin: bytes = b"", **variables: str) -> Done:
    """Run `turnout` as a process of its own."""
    command = [sys.executable, "-m", "turnout.cli", *map(str, words)]
    environment = {**os.environ, **ENVIRONMENT, **variables}
    done = subprocess.run(
        command, input=stdin, capture_output=True, check=False, timeout=60, env=environment
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
