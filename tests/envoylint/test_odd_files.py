"""Whatever a file says, it gets findings, a patch or a refusal, and never a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.envoylint import UnreadableFile, lint
from sidecar.envoypatch import PatchOptions, Unsupported, notes, patch
from tests.envoylint.test_lint import GOOD, plan

OPTIONS = PatchOptions(sidecar="/tmp/w", workers=2, envoy_dir="/tmp/e", admin="/tmp/a")
FILES = ("beside-bootstrap.yaml", "gateway.yaml", "front-proxy.yaml", "beside-ecds.yaml")
TREES = {name: yaml.safe_load((GOOD[0].parent / name).read_text()) for name in FILES}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "-1",
    "1e999",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["x"],
]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below a tree."""
    steps: Any = ()
    if isinstance(tree, dict):
        steps = tree.items()
    elif isinstance(tree, list):
        steps = enumerate(tree)
    found = []
    for step, value in steps:
        found += [(*path, step), *places(value, (*path, step))]
    return found


PLACES = [(name, path) for name, tree in TREES.items() for path in places(tree)]


def judged(text: bytes) -> None:
    snapshot = plan()
    with contextlib.suppress(UnreadableFile, Unsupported):
        lint({"x": text})
        notes(patch(text, "x", OPTIONS, snapshot), "x", snapshot)


def with_value(name: str, path: tuple[Any, ...], value: Any) -> bytes:
    tree = copy.deepcopy(TREES[name])
    at = tree
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(tree).encode()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(ODD))
def test_a_file_is_judged_when_one_value_is_another(
    place: tuple[str, tuple[Any, ...]], value: Any
) -> None:
    judged(with_value(*place, value))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_a_file_is_judged_when_it_is_any_bytes(data: bytes) -> None:
    judged(data)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_judged_when_it_ends_anywhere(name: str) -> None:
    text = (GOOD[0].parent / name).read_bytes()
    for end in range(0, len(text), 211):
        judged(text[:end])
