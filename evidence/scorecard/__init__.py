"""Scorecards: what runs of one optimizer on a battery of small workloads say beside those of the baselines."""
