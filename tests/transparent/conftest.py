"""Fixtures of the tests in network namespaces."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """A sidecar that a test has started anew belongs to the network, which ends it."""
