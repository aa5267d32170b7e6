"""Figures of runs, sweeps and toys."""
