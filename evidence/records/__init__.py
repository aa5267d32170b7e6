"""Committed records of runs: settings, metrics, curves."""
