"""Measurements against real servers: `python -m benchmarks.produce`, `python -m benchmarks.e2e`."""
