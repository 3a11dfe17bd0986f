"""A worker is small: it imports nothing that only the supervisor or the command needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = {
    "grpc", "typer", "rich", "click", "numpy", "opentelemetry", "prometheus_client", "yaml",
}  # fmt: skip


def imported(module: str) -> set[str]:
    """Top-level packages that importing a module brings along."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_worker_imports_no_grpc_and_nothing_of_the_command() -> None:
    found = imported("sidecar.worker")
    assert "uvloop" in found
    assert not found & FORBIDDEN


@pytest.mark.parametrize("module", ["sidecar.service", "sidecar.commands"])
def test_supervisor_imports_no_grpc_before_its_workers_are_started(module: str) -> None:
    assert not imported(module) & (FORBIDDEN - {"typer", "click", "rich", "yaml"})
