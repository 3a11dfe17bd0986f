"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.harness import Stage


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    """A stage whose processes end with the test."""
    async with Stage() as one:
        yield one
