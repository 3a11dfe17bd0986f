"""The stage of the integration tests, and the Prometheus that is installed."""

from tests.integration.conftest import stage

__all__ = ["stage"]
