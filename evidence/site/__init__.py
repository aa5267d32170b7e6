"""The static site of runs."""
