"""The linters and the type checker are part of the test suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tidy.repository import ROOT, run

BIN = Path(sys.executable).parent


def test_sources_pass_ruff() -> None:
    run(str(BIN / "ruff"), "check", "--no-cache", ".")


def test_sources_are_formatted() -> None:
    run(str(BIN / "ruff"), "format", "--no-cache", "--check", ".")


def test_types_pass_mypy_strict() -> None:
    run(str(BIN / "mypy"), "--no-error-summary")


def test_import_contracts_hold() -> None:
    run(str(BIN / "lint-imports"), "--no-cache")


def test_import_linter_fails_when_a_contract_is_broken(tmp_path: Path) -> None:
    """The checker itself is checked: a module of the pure set that reads the clock is found."""
    package = tmp_path / "pure"
    package.mkdir()
    (package / "__init__.py").write_text("import time\n")
    (tmp_path / "setup.cfg").write_text(
        "[importlinter]\nroot_package = pure\ninclude_external_packages = True\n"
        "[importlinter:contract:1]\nname = no clock\ntype = forbidden\n"
        "source_modules = pure\nforbidden_modules = time\n"
    )
    with pytest.raises(AssertionError, match="no clock BROKEN"):
        run(str(BIN / "lint-imports"), "--no-cache", "--config", "setup.cfg", cwd=tmp_path)


def test_protos_pass_buf_lint() -> None:
    run(str(BIN / "buf"), "lint", "proto", cwd=ROOT)
