"""Measurements of stonemux; see `bench.run`."""
