"""How the cells of a sweep are found and started: the suite's Hydra sweeper and its launchers.

`hydra_plugins/cells.py` shows them to Hydra, which takes plugins from nowhere else.
"""
