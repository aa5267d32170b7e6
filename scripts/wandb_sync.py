"""Upload what runs have logged to W&B offline: the parts of a resumed run as one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from scripts.options import command, parse, results

USAGE = """
usage: python -m scripts.wandb_sync [runs=FOLDER] [--dry]

Uploads the offline logs of all runs below a folder with `wandb sync`. A run that was stopped and resumed has left
several parts with one id; uploaded one by one the later would overwrite the earlier, so they are appended to one first,
in wandb/merged/ of the run's folder. The same command again uploads what is new.

  runs=FOLDER   default results/runs
  --dry         append the parts and print what would be uploaded: no account is needed

example: python -m scripts.wandb_sync runs=results/runs/imagenet-resnet18
"""


def main(words: Sequence[str]) -> int:
    """Append the parts of each run and upload the whole."""
    values = parse(words, options={"runs": results("runs")}, flags=("dry",))
    folder = Path(values["runs"])
    if not folder.is_dir():
        raise ReadError(f"runs={folder}: does not exist; give the folder of the runs that logged offline")
    from tasks.engine.wandb_files import find_parts, merge

    code = 0
    for parts in find_parts(folder).values():
        whole = merge(parts)
        print(f"{whole}  {len(parts)} {'part' if len(parts) == 1 else 'parts'}", flush=True)
        if not values["dry"]:
            uploaded = subprocess.run([sys.executable, "-m", "wandb", "sync", str(whole)])
            code = code or uploaded.returncode
    return code


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
