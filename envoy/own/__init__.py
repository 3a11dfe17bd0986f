"""An Envoy as somebody may have it, with the resources that split it."""
