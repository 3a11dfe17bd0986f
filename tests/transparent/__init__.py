"""Pods that do not know of their Envoys, in network namespaces of their own."""
