"""Client commands against a real `turnout control` process, in a tenant of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.control.clirunning import Done, turnout

STARTUP_S = 60.0


@contextmanager
def control_plane(place: str, store: Path) -> Iterator[None]:
    """A `turnout control` process that answers."""
    command = [sys.executable, "-m", "turnout.cli", "control", "--listen", place]
    command += ["--store", f"sqlite:{store}"]
    with store.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with grpc.insecure_channel(place) as channel:
            grpc.channel_ready_future(channel).result(timeout=STARTUP_S)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


class Shell:
    """A tenant of its own on the control plane, and its files."""

    def __init__(self, address: str, tenant: str, directory: Path) -> None:
        self.address = address
        self.tenant = tenant
        self.directory = directory

    def __call__(self, *words: object) -> Done:
        """Run a command."""
        return turnout(*words, TURNOUT_CONTROL=self.address, TURNOUT_TENANT=self.tenant)

    def file(self, *texts: str, name: str = "resources.yaml") -> Path:
        """A file of documents, without their tenant."""
        path = self.directory / name
        path.write_text("---".join(texts).replace(", tenant: risk", ""))
        return path

    def apply(self, *texts: str) -> Done:
        """Apply documents."""
        return self("apply", "-f", self.file(*texts))
