"""Measurements: `python -m benchmarks.NAME --help`."""
