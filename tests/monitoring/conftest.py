"""The stage of the integration tests."""

from tests.integration.conftest import stage

__all__ = ["stage"]
