"""The contract between Turnout's sidecar and its control plane."""

__version__ = "0.1.0"
