"""Result-neutral options: what a resumed run may change, what a run's name leaves out, what separates two settings.

The one list of them; it needs neither torch nor Hydra.
"""

from __future__ import annotations

# Options of `train` that change where, how fast or how verbosely a run runs, but not one bit of its result.
RESULT_NEUTRAL_KEYS = ("num_workers", "checkpoint_minutes", "timeout_minutes", "progress", "check_every", "restart")
# Where the data lie, who follows a run, who starts it, and what is drawn of it.
PLACES = frozenset({"data_root", "paths", "logger", "launcher", "gpus", "jobs", "pictures", "figures"})
_DATA_PLACES = frozenset(f"{prefix}data.{key}" for prefix in ("", "task.") for key in ("root", "cache"))
_FREE = frozenset({*(f"train.{key}" for key in RESULT_NEUTRAL_KEYS), "task.num_workers"})

# Stated by a run's name in words of its own.
NAMED = frozenset({"experiment", "opt", "scale", "train.seed", "opt.lr", "opt.weight_decay", "tag"})
_NAMELESS = (*PLACES, "data.cache", "sweep", "hydra", *(f"train.{key}" for key in RESULT_NEUTRAL_KEYS))

# Names, tables to look values up in (the values in force stand under `opt`), and what only the process decides.
_SETTING_ROOTS = PLACES | {
    "name", "tag", "experiment_name", "scale_name", "opt_name", "recipe", "sweep", "hydra", "results", "processes",
}  # fmt: skip
_SETTING_LEAVES = frozenset({
    *RESULT_NEUTRAL_KEYS, "seed", "root", "cache", "path", "folder", "device", "threads", "log_every", "probe_every",
    "trace_every", "oscillation_window",
})  # fmt: skip


def decides_result(key: str) -> bool:
    """Whether a key of the configuration decides the result of a run, so that a resumed run must not change it."""
    return key.split(".")[0] not in PLACES and key not in _DATA_PLACES and key not in _FREE


def is_neutral_override(key: str) -> bool:
    """Whether an override, such as `hydra.launcher.partition`, is left out of a run's name and of its overrides."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _NAMELESS)


def separates_settings(key: str) -> bool:
    """Whether runs that differ in this key of the configuration are no repetitions of one setting."""
    parts = key.split(".")
    return parts[0] not in _SETTING_ROOTS and parts[-1] not in _SETTING_LEAVES
