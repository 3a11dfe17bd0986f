"""The few of Envoy's messages that Turnout reads and writes: generated, wire-compatible."""
