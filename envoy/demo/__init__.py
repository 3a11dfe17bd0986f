"""Turnout's demo: real Envoy, real models, real data, six acts. Not part of the distribution."""
