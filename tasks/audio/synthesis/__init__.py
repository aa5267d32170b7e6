"""Sounds made here, written in the layouts of the official sets: nothing of it is a recording."""
