"""The request path as it is shipped: compiled."""
