"""Metrics, alert rules and dashboard, checked by Prometheus' own tools."""
