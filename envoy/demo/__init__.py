"""Turnout's demo: real Envoy, real models, real data, seven acts. Not part of the distribution."""
