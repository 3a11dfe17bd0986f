"""What holds for every test: the same examples in every run, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import compiling
from tests.leaks import nothing_left, watch_grpc

compiling.use()

# A failure of `make test` is a change of ours, not of the examples; `long` looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

watch_grpc()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail who leaves a process or an open gRPC object; made first, and so looks last."""
    with nothing_left():
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of compiled modules, leave out who replaces a part: its constants are in the machine code."""
    if not os.environ.get(compiling.VARIABLE):
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        replaces = "monkeypatch" in getattr(item, "fixturenames", ())
        (left_out if replaces else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
