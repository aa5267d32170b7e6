"""Start again what failed, was interrupted or was never started, by the words that each run recorded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.runs.progress import RunProgress
from evidence.runs.run import ReadError
from launch.checkout import TRAIN
from scripts.options import command, results, separated
from scripts.status import gathered
from tasks.base import InputError

USAGE = """
usage: python scripts/retry.py [experiment=NAME | sweep=NAME [scale=full]] [only=failed] [launcher=slurm] [--dry]

Starts runs that failed, were interrupted, lost their process, or whose launcher ended before their turn, as each has
recorded them; each goes on from its last checkpoint, in the folder where it was found. Runs that diverged are left out:
resuming is exact, so they would diverge again. Broken folders are left out too.
A recorded word is taken if it chooses one of this checkout's configurations, or states a value of the run's resolved
configuration. What names code or other files of configurations is taken only from records that are trusted.

  only=KIND        failed, interrupted or waiting: only these
  launcher=NAME    where they run now, whatever ran them before; options of the launcher follow: jobs=2,
                   hydra.launcher.partition=NAME
  runs=FOLDER      default results/runs; they go on there, wherever they began
  trusted=true     the records are your own: take --config-dir, hydra.searchpath, figures and _target_ from them too
  force=true       also those that wait for a launcher of another machine, which cannot be asked whether it is alive
  --dry            print the commands and start nothing
"""
# Words that a launcher must know, too, to make room for a run.
SIZING = ("gpus=", "train.device=")


@dataclass(frozen=True)
class Options:
    """What the command line says of the choice.

    Attributes:
        runs: The folder of runs.
        only: A kind of run, empty for all.
        trusted: Whether the records are the user's own.
        force: Whether cells are offered whose launcher may be alive on another machine.
    """

    runs: Path
    only: str = ""
    trusted: bool = False
    force: bool = False


def cells(chosen: Sequence[Sequence[str]]) -> dict[tuple[str, ...], list[list[str]]]:
    """Return the words of each run, grouped by what their launcher must know."""
    from launch.trust import FOLDERS, TRUSTED  # Hydra

    grouped: dict[tuple[str, ...], list[list[str]]] = {}
    for words in chosen:
        folders = [word for word in words if word.startswith(FOLDERS)]
        kept = [word for word in words if word not in folders]
        sizes = [word for word in kept if word.startswith(SIZING)]
        grouped.setdefault((*([TRUSTED] if folders else []), *folders, *sizes), []).append(kept)
    return grouped


def words_of(state: RunProgress, options: Options) -> list[str]:
    """Return the words that run a run again in its folder.

    Raises:
        InputError: One of them may not be taken from a record, or they would run in another folder.
    """
    from launch.compose import readable  # Hydra
    from launch.trust import rebuilt

    stored = _stored(state.folder)
    if stored.get("name", state.folder.name) != state.folder.name:
        raise InputError(f"its record names it {stored['name']}: give its folder that name again")
    config = stored.get("config")
    try:
        words = rebuilt(state.argv, config if isinstance(config, dict) else {}, trusted=options.trusted)
    except InputError as error:
        unless = "" if options.trusted else " unless trusted=true"
        raise InputError(f"its record says {error}, which is not taken from a record{unless}") from None
    begun = next((word.partition("=")[2] for word in words if word.startswith("paths.runs=")), results("runs"))
    if Path(begun.strip("'\"")).resolve() == options.runs.resolve():
        return words
    words = [word for word in words if not word.startswith("paths.runs=")]
    return [*words, *readable([f"paths.runs={options.runs}"])]


def _stored(folder: Path) -> Mapping[str, Any]:
    """Return the record of a run, or of a cell that was never started the note of its launcher."""
    for name in ("run.json", "launch.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def launch(shared: Sequence[str], words: Sequence[Sequence[str]], typed: Sequence[str], *, out: Path) -> int:
    """Start cells as one sweep and return its exit code.

    Args:
        shared: Words of the launch.
        words: Words of each cell.
        typed: Words that place them.
        out: Folder of the file that hands the cells on; another call at the same time has a file of its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", prefix="retry-", suffix=".json", dir=out, encoding="utf-8") as file:
        file.write(json.dumps([list(cell) for cell in words], indent=1) + "\n")
        file.flush()
        line = [*shared, "hydra.mode=MULTIRUN", f"hydra.sweeper.cells='{Path(file.name).resolve()}'", *typed]
        process = subprocess.Popen([sys.executable, str(TRAIN), *line])

        def forward(number: int, frame: Any) -> None:
            if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal's Ctrl-C reaches the sweep by itself
                process.send_signal(number)

        forwarded = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            forwarded.append(signal.SIGHUP)
        previous = {number: signal.signal(number, forward) for number in forwarded}
        try:
            return process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def choose(states: Sequence[RunProgress], options: Options) -> list[list[str]]:
    """Return the words of the runs to start again; say which are left out and why."""

    def wanted(each: RunProgress) -> bool:
        offered = each.retriable or (options.force and each.status == "waiting")
        return offered and (not options.only or each.status == options.only)

    again = [each for each in states if wanted(each)]
    diverged = sum(each.diverged for each in states)
    if diverged:
        print(f"{diverged} diverged and would again: left out")
    if unsure := sum(each.status == "waiting" and bool(each.argv) and each not in again for each in states):
        print(f"{unsure} wait for a launcher that is alive or cannot be asked: force=true takes them too")
    if old := [each for each in again if not each.argv]:
        print(f"{len(old)} are of an earlier version, which did not record the words that run them: left out")
        for each in old[:5]:
            print(f"  {each.title}")
    chosen = []
    for each in again:
        if each.argv:
            try:
                chosen.append(words_of(each, options))
            except InputError as error:
                print(f"{each.title}: {error}: left out")
    return chosen


def main(words: Sequence[str]) -> int:
    """Choose the runs and start them, and return the highest exit code."""
    dry = "--dry" in words
    defaults: Mapping[str, str] = {
        "experiment": "", "sweep": "", "scale": "", "only": "", "trusted": "", "force": "",
        "runs": results("runs"), "out": results("sweeps"),
    }  # fmt: skip
    options, typed = separated([word for word in words if word != "--dry"], defaults)
    if options["only"] not in ("", "failed", "interrupted", "waiting"):
        raise ReadError(f"only={options['only']}: choose failed, interrupted or waiting")
    for key in ("trusted", "force"):
        if options[key] not in ("", "true", "false"):
            raise ReadError(f"{key}={options[key]}: it must be true or false")
    from launch.trust import PLACING  # Hydra takes a second to load

    placing = [f"{key}={value}" for key, value in typed.items() if f"{key}=".startswith(PLACING)]
    rest = {key: value for key, value in typed.items() if f"{key}={value}" not in placing}
    if rest and not options["sweep"]:
        raise ReadError(f"{next(iter(rest))}=... chooses nothing without sweep=NAME; the runs keep their own words")
    asked = Options(Path(options["runs"]), options["only"], options["trusted"] == "true", options["force"] == "true")
    chosen = choose(gathered(options, rest), asked)
    if not chosen:
        print("nothing to start again")
        return 0
    code = 0
    for shared, group in cells(chosen).items():
        print(f"{len(group)} runs {' '.join(shared)}".rstrip(), flush=True)
        if dry:
            print("\n".join(f"  python scripts/train.py {' '.join(cell)}" for cell in group))
            continue
        code = max(code, launch(shared, group, placing, out=Path(options["out"])))
        if code >= 128:
            break
    return code


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
