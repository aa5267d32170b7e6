"""Runs, records, statistics, tables, figures, claims and pages; needs neither torch nor Hydra."""
