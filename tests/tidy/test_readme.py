"""Every command that the README shows is run by a test, and the tree that it draws exists."""

from __future__ import annotations

import ast
import os
import re
from typing import NamedTuple

from tests.tidy.repository import ROOT

README = ROOT / "README.md"
BLOCK = re.compile(
    r"(?:<!-- run by: (?P<tests>[^>]*?) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)```", re.S
)


class Block(NamedTuple):
    """A fenced block: its kind, its text, and the tests that the comment above it names."""

    kind: str
    body: str
    tests: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text."""
    return [
        Block(match["kind"], match["body"], tuple((match["tests"] or "").split()))
        for match in BLOCK.finditer(text)
    ]


def defined(name: str) -> bool:
    """Whether path::function exists; a path alone must be a program."""
    path, _, function = name.partition("::")
    if not (ROOT / path).is_file():
        return False
    if not function:
        return os.access(ROOT / path, os.X_OK)
    tree = ast.parse((ROOT / path).read_text())
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
        for node in ast.walk(tree)
    )


def test_readme_commands_are_run_by_tests() -> None:
    for block in blocks(README.read_text()):
        if block.kind in {"console", "sh", "bash"}:
            assert block.tests, f"no test runs:\n{block.body}"
            assert all(defined(name) for name in block.tests), block.tests


def test_readme_names_only_paths_that_exist() -> None:
    text = README.read_text()
    named = set(re.findall(r"(?<![\w./-])((?:sidecar|control|proto|envoy|tests)/[\w./-]*)", text))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert named
    assert not missing
