"""Start again what failed, was interrupted or was never started, by the words that each run recorded."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.runs.progress import RunProgress
from evidence.runs.run import ReadError
from launch.checkout import ROOT, TRAIN
from scripts.options import command, results, separated
from scripts.status import gathered

USAGE = """
usage: python scripts/retry.py [experiment=NAME | sweep=NAME [scale=full]] [only=failed] [launcher=slurm] [--dry]

Starts runs that failed, were interrupted, lost their process, or whose launcher ended before their turn, by exactly the
words that each has recorded; each goes on from its last checkpoint. Runs that diverged are left out: resuming is exact,
so they would diverge again. Broken folders are left out too.
What may be called, or what chooses other files of configurations, is taken from records only when they are trusted.

  only=KIND        failed, interrupted or waiting: only these
  launcher=NAME    where they run now, whatever ran them before; options of the launcher follow: jobs=2,
                   hydra.launcher.partition=NAME
  runs=FOLDER      default results/runs
  trusted=true     the records are your own: take --config-dir, hydra.searchpath, figures and _target_ from them too
  --dry            print the commands and start nothing
"""
# Words that say where a run is started. The command line's count now, not those of the first time.
PLACING = ("launcher=", "jobs=", "hydra.launcher.", "+hydra.launcher.")
# Words that name further folders of configurations.
FOLDERS = ("--config-dir=", "hydra.searchpath=")
# Words that a launcher must know, too, to make room for a run.
SIZING = ("gpus=", "train.device=")


def cells(chosen: Sequence[RunProgress]) -> dict[tuple[str, ...], list[list[str]]]:
    """Return the words of each run, without those that place it, grouped by what their launcher must know."""
    grouped: dict[tuple[str, ...], list[list[str]]] = {}
    for each in chosen:
        folders = [word for word in each.argv if word.startswith(FOLDERS)]
        words = [word for word in each.argv if word not in folders and not word.startswith(PLACING)]
        sizes = [word for word in words if word.startswith(SIZING)]
        grouped.setdefault((*folders, *sizes), []).append(words)
    return grouped


def refusal(words: Sequence[str], *, trusted: bool) -> str:
    """Return the first recorded word that may not be taken from a record, empty where all may.

    Records are data. Flags, and what sets up Hydra itself, are never taken; what names code or files elsewhere is taken
    from trusted records alone, and passes the same checks then as a typed command.
    """
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    for word in words:
        key, _, value = word.partition("=")
        if word.startswith(FOLDERS):
            allowed = trusted
        elif word.startswith(PLACING):
            continue
        elif word.startswith("-") or re.search(r"\bhydra\b", key):
            allowed = False
        else:
            names_code = "_target_" in word or key.lstrip("+~").startswith("figures")
            chooses = re.split("[@/]", key.lstrip("+~"))[0] in groups
            allowed = trusted or not (names_code or (chooses and not re.fullmatch(r"\w[\w.-]*|", value)))
        if not allowed:
            return word
    return ""


def launch(shared: Sequence[str], words: Sequence[Sequence[str]], typed: Sequence[str], *, out: Path) -> int:
    """Start cells as one sweep and return its exit code."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([list(cell) for cell in words], indent=1) + "\n", encoding="utf-8")
    line = [*shared, "hydra.mode=MULTIRUN", f"hydra.sweeper.cells='{out.resolve()}'", *typed]
    process = subprocess.Popen([sys.executable, str(TRAIN), *line])

    def forward(number: int, frame: Any) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal's Ctrl-C reaches the sweep by itself
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def choose(states: Sequence[RunProgress], only: str, *, trusted: bool) -> list[RunProgress]:
    """Return the runs to start again; say which are left out and why."""
    again = [each for each in states if each.retriable and (not only or each.status == only)]
    diverged = sum(each.diverged for each in states)
    if diverged:
        print(f"{diverged} diverged and would again: left out")
    if old := [each for each in again if not each.argv]:
        print(f"{len(old)} are of an earlier version, which did not record the words that run them: left out")
        for each in old[:5]:
            print(f"  {each.title}")
    chosen = []
    for each in again:
        if word := refusal(each.argv, trusted=trusted):
            print(f"{each.title}: its record says {word}, which is not taken from a record"
                  f"{'' if trusted else ' unless trusted=true'}: left out")  # fmt: skip
        elif each.argv:
            chosen.append(each)
    return chosen


def main(words: Sequence[str]) -> int:
    """Choose the runs and start them, and return the highest exit code."""
    dry = "--dry" in words
    defaults: Mapping[str, str] = {
        "experiment": "", "sweep": "", "scale": "", "only": "", "trusted": "",
        "runs": results("runs"), "out": results("sweeps"),
    }  # fmt: skip
    options, typed = separated([word for word in words if word != "--dry"], defaults)
    if options["only"] not in ("", "failed", "interrupted", "waiting"):
        raise ReadError(f"only={options['only']}: choose failed, interrupted or waiting")
    if options["trusted"] not in ("", "true", "false"):
        raise ReadError(f"trusted={options['trusted']}: it must be true or false")
    placing = [f"{key}={value}" for key, value in typed.items() if f"{key}=".startswith(PLACING)]
    rest = {key: value for key, value in typed.items() if f"{key}={value}" not in placing}
    if rest and not options["sweep"]:
        raise ReadError(f"{next(iter(rest))}=... chooses nothing without sweep=NAME; the runs keep their own words")
    chosen = choose(gathered(options, rest), options["only"], trusted=options["trusted"] == "true")
    if not chosen:
        print("nothing to start again")
        return 0
    code = 0
    for number, (shared, group) in enumerate(cells(chosen).items()):
        print(f"{len(group)} runs {' '.join(shared)}".rstrip(), flush=True)
        if dry:
            print("\n".join(f"  python scripts/train.py {' '.join(cell)}" for cell in group))
            continue
        code = max(code, launch(shared, group, placing, out=Path(options["out"]) / f"retry-{number}.json"))
        if code >= 128:
            break
    return code


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
