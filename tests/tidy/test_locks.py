"""The hash-locked requirement files against pyproject.toml and against each other."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions

import pytest

from tests.tidy.repository import ROOT

NAME = re.compile(r"^[A-Za-z0-9._-]+")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]*\])?==([^ ;]+)", re.MULTILINE)
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-image.txt")


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    """Name -> version of every package in a requirement file."""
    text = (ROOT / file).read_text()
    return {canonical(name): version for name, version in PINNED.findall(text)}


def wanted(*extras: str) -> set[str]:
    """Names of the dependencies in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return {canonical(NAME.findall(text)[0]) for one in lists for text in one}


def test_locks_hold_what_the_project_depends_on() -> None:
    """`make lock` writes them; the image installs the first."""
    assert not wanted() - pinned("requirements.txt").keys()
    assert not wanted("demo", "test") - pinned("requirements-dev.txt").keys()


def test_tests_run_with_the_versions_that_the_image_has() -> None:
    runtime, dev = pinned("requirements.txt"), pinned("requirements-dev.txt")
    assert {n: v for n, v in runtime.items() if dev.get(n) != v} == {}


@pytest.mark.parametrize("file", FILES)
def test_every_line_of_a_lock_has_a_hash(file: str) -> None:
    lines = (ROOT / file).read_text().replace("\\\n", " ").splitlines()
    assert lines
    assert not [line for line in lines if "--hash=sha256:" not in line]


def test_no_two_packages_own_one_file() -> None:
    """The later of two would silently overwrite the earlier: counting zero spans, answering OK."""
    owners: dict[str, set[str]] = {}
    for distribution in distributions():
        for file in distribution.files or ():
            if "__pycache__" not in file.parts:
                owners.setdefault(str(file), set()).add(distribution.metadata["Name"])
    assert owners
    assert {file: names for file, names in owners.items() if len(names) > 1} == {}
