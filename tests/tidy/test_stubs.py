"""The checked-in generated modules are what `make proto` makes of the protos today."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.tidy.repository import GENERATED_SUFFIXES, ROOT

CODEGEN = ROOT / ".venv-codegen"


def generate(root: Path) -> None:
    """Run the Makefile's generator on a copy of the protos below `root`/proto."""
    python = CODEGEN / "bin" / "python"
    environment = os.environ | {"PATH": f"{CODEGEN / 'bin'}:{os.environ['PATH']}"}
    proto = root / "proto"

    def protoc(arguments: list[str], patterns: list[str]) -> None:
        names = sorted(
            str(path.relative_to(proto)) for pattern in patterns for path in proto.glob(pattern)
        )
        subprocess.run(
            [str(python), "-m", "grpc_tools.protoc", "-I.", *arguments, *names],
            cwd=proto,
            env=environment,
            check=True,
        )

    protoc(
        ["--python_out=.", "--mypy_out=."], ["turnout/envoy/*.proto", "turnout/v1alpha1/*.proto"]
    )
    protoc(["--grpc_python_out=.", "--mypy_grpc_out=."], ["turnout/v1alpha1/*_service.proto"])


def generated(root: Path) -> dict[str, str]:
    """Relative path -> text of every generated module below `root`/proto."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted((root / "proto").rglob("*"))
        if path.name.endswith(GENERATED_SUFFIXES)
    }


def test_generated_modules_are_current(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*_pb2*", "__pycache__")
    )
    generate(tmp_path)
    fresh, checked_in = generated(tmp_path), generated(ROOT)
    assert sorted(fresh) == sorted(checked_in)
    stale = [name for name, text in fresh.items() if checked_in[name] != text]
    assert not stale, f"run `make proto`: {stale}"
