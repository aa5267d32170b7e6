"""Sweep cells, sections and rendering of result tables."""
