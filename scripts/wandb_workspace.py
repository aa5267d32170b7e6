"""The workspace on Weights & Biases that compares the runs of the project, where there is an account."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from evidence.runs.run import ReadError
from scripts.options import command, parse

USAGE = """
usage: python scripts/wandb_workspace.py entity=TEAM [project=NAME] [name=TITLE] [experiment=NAME] [--dry]

Saves a workspace that groups runs by experiment, optimizer and weight decay and draws scores, norms, effective steps
and losses over epochs, mean and range over seeds. Needs the package wandb-workspaces and a key (`wandb login`). What
was logged offline is uploaded with `python -m scripts.wandb_sync`.

  entity=TEAM      W&B team or user; default the variable WANDB_ENTITY
  project=NAME     default the variable WANDB_PROJECT, or adamp
  name=TITLE       the workspace's name
  experiment=NAME  only runs of this experiment
  --dry            say what would be saved, and save nothing: no account is needed

example: python scripts/wandb_workspace.py entity=my-team experiment=imagenet-resnet18
"""
SECTIONS = {
    "Scores": ("val/top1", "val/top5", "val/loss", "val/ppl", "val/ap", "val/recall_at_1", "unbiased/top1"),
    "Norms and effective steps": ("norm/mean", "effective_step/mean", "projected/share", "oscillation/ratio"),
    "Training": ("train/loss", "train/top1", "lr"),
}


def package() -> tuple[Any, Any]:
    """Return the modules of workspaces and of panels.

    Raises:
        ReadError: wandb-workspaces is not installed.
    """
    try:
        spaces = importlib.import_module("wandb_workspaces.workspaces")
        return spaces, importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise ReadError(
            f"the package wandb-workspaces is not installed ({error}); it is needed for this command alone:\n"
            "python -m pip install wandb-workspaces"
        ) from None


def workspace(values: dict[str, str]) -> Any:
    """Return the workspace, not saved."""
    spaces, panels = package()
    grouped = [spaces.Config(key) for key in ("experiment", "opt_name", "opt.weight_decay")]
    chosen = [spaces.Config("experiment") == values["experiment"]] if values["experiment"] else []
    sections = [
        spaces.Section(
            name=title,
            panels=[
                panels.LinePlot(title=key, x="epoch", y=[key], groupby_aggfunc="mean", groupby_rangefunc="minmax")
                for key in keys
            ],
            is_open=True,
        )
        for title, keys in SECTIONS.items()
    ]
    runs = spaces.RunsetSettings(groupby=grouped, filters=spaces.And(*chosen) if chosen else [])
    facts = {key: values[key] for key in ("entity", "project", "name")}
    return spaces.Workspace(**facts, sections=sections, runset_settings=runs)


def main(words: Sequence[str]) -> int:
    """Save the workspace and print its address."""
    options = {"entity": os.environ.get("WANDB_ENTITY", ""), "project": os.environ.get("WANDB_PROJECT", "adamp")}
    values = parse(words, options={**options, "name": "Optimizers compared", "experiment": ""}, flags=("dry",))
    if not values["entity"]:
        raise ReadError("entity is not given; give entity=TEAM, or set the variable WANDB_ENTITY")
    made = workspace(values)
    if values["dry"]:
        for section in made.sections:
            print(f"{section.name}: {', '.join(panel.title for panel in section.panels)}")
        return 0
    import wandb

    if not wandb.login(prompt=False, timeout=10):
        raise ReadError("W&B has no key on this machine; run `wandb login`, or try --dry")
    try:
        made.save()
    except Exception as error:  # the package raises whatever the service answers
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ReadError(f"W&B refused to save the workspace: {reason}") from None
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
