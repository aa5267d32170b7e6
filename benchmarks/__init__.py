"""Measurements as ratios to a peer, interleaved in one run. Not tests: nothing here fails on a slow machine."""
