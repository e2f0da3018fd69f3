"""Measure what a storage driver costs: workloads, runner, statistics and report."""
