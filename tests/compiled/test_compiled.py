"""The compiled modules do what their sources do.

The tests of the request path run once more with them, but for those that reach into a module, where
a compiled one cannot be changed: whoever takes `monkeypatch` (tests/conftest.py), and those here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import compiling

ROOT = Path(__file__).parents[2]
# They replace a constant or a method, inherit from a class or refer to an object weakly.
INSIDE = (
    "tests/sidecar/test_assignment.py::test_the_short_way_decides_as_the_whole_of_the_rules",
    "tests/sidecar/wire/test_garbage.py",
    "tests/sidecar/wire/test_paths.py",
)
AGAIN = (
    "tests/sidecar/wire",
    "tests/sidecar/test_accesslog.py",
    "tests/sidecar/test_accesslog_lean.py",
    "tests/sidecar/test_answers.py",
    "tests/sidecar/test_assignment.py",
    "tests/sidecar/test_assignment_vectors.py",
    "tests/sidecar/test_fold.py",
    "tests/sidecar/test_plan_builder.py",
    "tests/sidecar/test_plan_match.py",
    "tests/sidecar/test_predicates.py",
    "tests/sidecar/test_processor.py",
    "tests/sidecar/test_readme_bytes.py",
    "tests/sidecar/test_semver.py",
    "tests/sidecar/test_tokens.py",
    "tests/sidecar/test_units.py",
    "tests/sidecar/test_unitsample.py",
    "tests/sidecar/test_worker.py",
    "tests/sidecar/test_worker_imports.py",
    "tests/vectors",
    "tests/differential/test_differential.py",
    "tests/conformance/test_h2spec.py",
)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    compiling.build()
    return {**os.environ, **compiling.environment()}


def test_modules_are_compiled_when_the_project_says_so(environment: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    paths = {path for pattern in hook["modules"] for path in ROOT.glob(pattern)}
    names = sorted(str(p.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in paths)
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.endswith('.so'), module.__file__\n"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", program, *names], env=environment, cwd="/", check=True
    )
    assert len(names) > 20


def test_request_path_does_the_same_when_it_is_compiled(environment: dict[str, str]) -> None:
    paths = [path for path in AGAIN if (ROOT / path).exists()]
    assert len(paths) == len(AGAIN), sorted(set(AGAIN) - set(paths))
    left_out = [f"--deselect={name}" for name in INSIDE]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not soak", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *left_out, *paths], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
