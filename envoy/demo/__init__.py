"""Turnout's demo: real Envoy, real models, real data, five acts. Not part of the distribution."""
