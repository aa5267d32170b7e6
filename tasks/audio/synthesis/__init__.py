"""Synthesised audio sets in the layouts of the official ones; nothing is a recording."""
