"""One command line of `scripts/train.py`: a run or a sweep, the exit code, and the pages that compare runs.

A launcher sends `Command` to other processes, where it runs one cell and returns its `RunOutcome`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from evidence import sweeps as grids
from evidence.runs.run import ReadError
from launch import checkout
from launch.compose import CONFIG_ERRORS, CONFIGS, explain, plan, readable
from launch.outcome import ComparisonPage, RunOutcome
from launch.output import train_without_output
from launch.schema import check_arguments, check_data_root
from launch.trust import without_trust
from launch.words import unknown_flag
from tasks.base import InputError
from tasks.engine.config import check_division
from tasks.engine.errors import RESUMES, Diverged, RunFailed, Stopped

# What a launcher needs besides the suite, and the extra that brings it.
LAUNCHERS = {"slurm": ("submitit", "slurm"), "ray": ("ray", "ray")}


@dataclass
class Command:
    """The task function that Hydra and its launchers call with each configuration.

    Attributes:
        outcomes: Of the runs of this process and of the cells that its launcher started.
    """

    outcomes: list[RunOutcome] = field(default_factory=list)

    def __call__(self, cfg: DictConfig) -> RunOutcome:
        """Run one configuration, here or in the process that a launcher chose."""
        outcome = RunOutcome()
        outcome.code = guarded(lambda: run_config(cfg, outcome))  # Hydra would print its own report of an error
        self.outcomes.append(outcome)
        return outcome


def run_config(cfg: DictConfig, outcome: RunOutcome) -> int:
    """Run one configuration here, or start its processes, and return the exit code; a run drawn here is noted."""
    train_without_output()
    join_cluster()
    overrides = list(HydraConfig.get().overrides.task)
    planned = plan(cfg, overrides)
    if (record := planned.finished()) is not None:
        if record["status"] != "finished":
            raise Diverged.recorded(record["error"] or "", planned.folder)
        if speaks():
            planned.print_summary(record, "was finished before")
        return 0
    check_data_root(cfg)
    check_arguments(planned.config)
    if cfg.gpus > 1 and "RANK" not in os.environ:
        from tasks.engine.processes import spawn
        from tasks.engine.provenance import usable_cores

        check_division(planned.train, cfg.gpus)
        if not hand_out(cfg.gpus, planned.train.device):
            _say(f"gpus={cfg.gpus}: no GPU is used; {cfg.gpus} processes share the {usable_cores()} cores of the CPU")
        # A sweep's name among the words must not make a grid of each process.
        code = spawn([sys.executable, str(checkout.TRAIN), *planned.argv, "hydra.mode=RUN"], cfg.gpus)
        diverged = code == 1 and sweeping() and planned.finished() is not None
        return 0 if diverged else code
    from tasks.engine.run import run

    if (write_report := planned.write_report) is not None:

        def write_and_note(folder: Path) -> Path:
            outcome.page = ComparisonPage.of(cfg)
            return write_report(folder)

        planned = replace(planned, write_report=write_and_note)
    run(planned)
    return 0


def hand_out(processes: int, device: str) -> list[str]:
    """Return the GPUs of a run's processes, as one group; none where the run uses the CPU.

    Raises:
        InputError: There are GPUs, but fewer than processes, or none and the run asks for them.
    """
    from launch.local import groups, visible_gpus

    gpus = [] if device == "cpu" else visible_gpus()
    if device == "cuda" and not gpus:
        raise InputError(f"train.device is cuda and gpus is {processes}, but there is no GPU; set train.device=cpu")
    return groups(gpus, processes)


def join_cluster() -> None:
    """In a process that submitit started, take rank and address of the others, and the log, from the cluster."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    from submitit.helpers import JobEnvironment, TorchDistributedEnvironment

    job = JobEnvironment()
    os.environ["ADAMP_LOG"] = str(job.paths.stdout).replace(f"_{job.global_rank}_log", "_0_log")
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def guarded(call: Callable[[], int], words: Sequence[str] = ()) -> int:
    """Call, say an expected error in a line or two on standard error, and return the exit code it stands for.

    Stopping by signal is passed on as SystemExit: it ends a sweep too, where a failed cell does not. In a cluster's job
    SIGUSR2 ends the process and queues the job again; any other signal is an exit code for whoever waits for the job.
    """
    try:
        code = call()
    except (ReadError, *CONFIG_ERRORS) as error:
        _say(f"error: {explain(error, words)}")
        return 2
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # how Hydra takes a word without a key, such as `=3`
            raise
        _say(f"error: an argument is not key=value: {error}")
        return 2
    except RunFailed as error:
        _say(f"failed: {error}")
        # In a table a run that diverged is a cell that says so.
        return 0 if isinstance(error, Diverged) and sweeping() else 1
    except Stopped as error:
        goes_on = "a checkpoint is saved, the same command goes on from it" if error.saved else RESUMES
        _say(f"{error}; {goes_on}")
        if "SUBMITIT_EXECUTOR" in os.environ:
            if error.code == 128 + signal.SIGUSR2:
                queue_again()
            return error.code
        raise SystemExit(error.code) from None
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from the last checkpoint")
        raise SystemExit(130) from None
    if code > 128:  # the processes of this run were stopped by a signal
        raise SystemExit(code)
    return code


def queue_again() -> NoReturn:
    """Hand SIGUSR2 to submitit, whose handler stood here before the run's: it queues the job again and ends rank 0."""
    handler = signal.getsignal(signal.SIGUSR2)
    if callable(handler):
        handler(signal.SIGUSR2, None)
    raise SystemExit(0)  # the other ranks: one that stays would hold up the job


def sweeping() -> bool:
    """Whether this run is a cell of a grid."""
    if "ADAMP_CELL" in os.environ or "SUBMITIT_EXECUTOR" in os.environ:
        return True
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def compare(outcomes: Sequence[RunOutcome]) -> None:
    """Draw the page that compares all runs of each experiment that ran, once even after a sweep of many cells."""
    if "ADAMP_CELL" in os.environ:
        return  # the launcher draws it when all cells have ended
    for page in sorted({outcome.page for outcome in outcomes if outcome.page is not None}):
        from evidence.site.reports import write_experiment_report

        try:
            print(f"compare     {write_experiment_report(*page)}", flush=True)
        except Exception as trouble:  # the runs are done and recorded; `make report` draws again
            logging.getLogger(__name__).warning("the page that compares the runs could not be drawn: %s", trouble)


def speaks() -> bool:
    """Whether this process is the one of its run that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _say(message: str) -> None:
    if speaks():
        print(message, file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> int:
    """Run a command line and return the exit code: the highest of a sweep's cells."""
    level = logging.INFO if speaks() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for noisy in ("matplotlib", "PIL", "torch", "urllib3", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach `guarded`, which says them in a line or two
    command = Command()

    def whole() -> int:
        checkout.enter()
        parser = get_args_parser()
        if said := unknown_flag(words, parser._option_string_actions):
            raise InputError(said)
        typed = without_trust(words)
        version.setbase("1.3")
        _run_hydra(
            args=parser.parse_intermixed_args(launched(readable(typed))), args_parser=parser, task_function=command,
            config_path=str(CONFIGS), config_name="train",
        )  # fmt: skip
        return max((outcome.code for outcome in command.outcomes), default=0)

    code = guarded(whole, words)
    compare(command.outcomes)
    return code


def launched(words: Sequence[str]) -> list[str]:
    """Return a command line as Hydra needs it: with launchers it bothers in grids alone, so a single run becomes one.

    Raises:
        InputError: The launcher's package is missing.
    """
    launcher = grids.chosen(words, "launcher", "local")
    check_launcher(launcher)
    grid = any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in words)
    return [*words, *([] if grid or launcher == "local" else ["hydra.mode=MULTIRUN"])]


def check_launcher(name: str) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        InputError: It is missing.
    """
    module, extra = LAUNCHERS.get(name, ("os", ""))
    if importlib.util.find_spec(module) is None:
        raise InputError(f"launcher={name} needs the package {module}: pip install '.[{extra}]' in this folder")
