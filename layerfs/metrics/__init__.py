"""Metrics: what a store takes and does, as numbers for Prometheus and others that read OpenMetrics."""
