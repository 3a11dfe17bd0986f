"""Runnable Envoy configurations and the demo. Not part of the distribution."""
