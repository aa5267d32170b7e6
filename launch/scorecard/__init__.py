"""Scorecards: any optimizer against the baselines on a battery of small workloads."""
