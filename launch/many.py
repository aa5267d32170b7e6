"""The launcher of many small runs: those that differ in their optimizers alone are trained at once, in one process.

A run's folder, name and record are those that any other launcher leaves. Groups of runs (one a seed, of a usual sweep)
are handed to `jobs` processes, which are forked: what was composed here need not be composed again there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from launch.cell import Cell, unfinished
from launch.train import guarded
from tasks.base import InputError
from tasks.engine.errors import Diverged


@dataclass
class ManyConf:
    """Options of the launcher.

    Attributes:
        jobs: Processes at a time, or "auto": one per core, one alone where there is a GPU.
        networks: The most networks of one process at a time. More share a batch's cost, until they no longer fit the
            processor's cache.
        device: The engine's `train.device`.
    """

    _target_: str = "hydra_plugins.cells.ManyLauncher"
    jobs: Any = "auto"
    networks: int = 32
    device: str = "auto"


ConfigStore.instance().store(group="hydra/launcher", name="many", node=ManyConf, provider="adamp")


class ManyLauncher(BasicLauncher):
    """See `ManyConf`."""

    def __init__(self, jobs: int | str = "auto", networks: int = 32, device: str = "auto") -> None:
        super().__init__()
        self.jobs, self.networks, self.device = jobs, networks, device

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells and return their exit codes.

        Raises:
            InputError: An option is out of its range, or a run cannot be trained beside others.
            SystemExit: A signal stopped the runs; each has saved a checkpoint.
        """
        from launch.local import visible_gpus
        from tasks.engine.provenance import usable_cores

        if self.jobs != "auto" and not (isinstance(self.jobs, int) and self.jobs >= 1):
            raise InputError(f"jobs is {self.jobs}; it must be a number of processes at a time, at least 1, or auto")
        if not (isinstance(self.networks, int) and self.networks >= 1):
            raise InputError(f"hydra.launcher.networks is {self.networks}; it must be a whole number, at least 1")
        launch = unfinished(self, job_overrides)
        groups = grouped(launch.cells, self.networks)
        on_gpu = self.device != "cpu" and bool(visible_gpus())
        jobs = (1 if on_gpu else usable_cores()) if self.jobs == "auto" else int(self.jobs)
        if groups:
            print(
                f"{len(launch.cells)} networks in {len(groups)} groups, {min(jobs, len(groups))} at a time", flush=True
            )
        if jobs == 1 or len(groups) <= 1 or on_gpu:
            codes: dict[int, int] = {}
            for group in groups:
                codes |= run_group(group)
            return launch.returns(codes)
        return launch.returns(Workers(jobs).run(groups))


def grouped(cells: Sequence[Cell], most: int) -> list[list[Cell]]:
    """Return the cells in groups of runs that differ in their optimizers alone, of about equal size, at most `most`.

    Raises:
        InputError: A run can only be trained by itself.
    """
    from tasks.engine.many import check_trainable_at_once, group_key

    by_key: dict[str, list[Cell]] = {}
    for cell in cells:
        check_trainable_at_once(cell.plan)
        by_key.setdefault(group_key(cell.plan), []).append(cell)
    groups = []
    for members in by_key.values():
        parts = -(-len(members) // most)
        groups += [members[part::parts] for part in range(parts)]
    return groups


def run_group(cells: Sequence[Cell]) -> dict[int, int]:
    """Train the runs of a group here and return place -> exit code; a run that diverged is a cell that says so."""
    from tasks.engine.many import run_many

    ended: dict[str, BaseException | None] = {}

    def train() -> int:
        ended.update(run_many([cell.plan for cell in cells]))
        return 0

    code = guarded(train)
    codes = {cell.place: code for cell in cells}
    return codes | {cell.place: 0 for cell in cells if isinstance(ended.get(cell.plan.name), Diverged)}


@dataclass
class Worker:
    """A process that trains one group."""

    cells: Sequence[Cell]
    process: BaseProcess
    begun: float = field(default_factory=time.monotonic)


class Workers:
    """Trains groups, `jobs` at a time, until all have ended or a signal stops them.

    Args:
        jobs: Processes at a time.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.running: list[Worker] = []
        self.codes: dict[int, int] = {}
        self.stopped = 0  # the signal that asked to stop

    def run(self, groups: Sequence[Sequence[Cell]]) -> Mapping[int, int]:
        """Train the groups and return place -> exit code.

        Raises:
            SystemExit: A signal stopped them.
        """
        waiting, begun = deque(groups), time.monotonic()
        with self._relayed():
            while self.running or (waiting and not self.stopped):
                while waiting and not self.stopped and len(self.running) < self.jobs:
                    self._start(waiting.popleft())
                for worker in [worker for worker in self.running if not worker.process.is_alive()]:
                    self.running.remove(worker)
                    self._end(worker)
                    if waiting and not self.stopped:
                        done = len(groups) - len(waiting) - len(self.running)
                        left = (time.monotonic() - begun) / done * (len(groups) - done)
                        print(f"[{done}/{len(groups)}] about {left / 60:.1f} minutes left", flush=True)
                time.sleep(0.05)
        if self.stopped:
            raise SystemExit(128 + self.stopped)
        return self.codes

    def _start(self, cells: Sequence[Cell]) -> None:
        # Forked before this process computes anything: no thread of torch is lost
        process = multiprocessing.get_context("fork").Process(target=_work, args=(cells, os.getpid()))
        process.start()
        self.running.append(Worker(cells, process))
        if self.stopped:  # the signal came while it was being started
            self._signal(process, self.stopped)

    def _end(self, worker: Worker) -> None:
        code = worker.process.exitcode or 0
        code = 128 - code if code < 0 else code
        self.codes |= {cell.place: code for cell in worker.cells}
        if code not in (0, 130, 143):
            print(f"a group of {len(worker.cells)} networks failed with code {code}", file=sys.stderr, flush=True)

    @contextmanager
    def _relayed(self) -> Iterator[None]:
        """Hand signals on to the processes: they save and stop (SIGINT, SIGTERM), or save and go on (SIGUSR1)."""

        def forward(number: int, frame: Any) -> None:
            if number != signal.SIGUSR1:
                self.stopped = number
            for worker in self.running:
                self._signal(worker.process, number)

        previous = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for worker in self.running:  # only after an error of this launcher itself
                worker.process.terminate()
            for number, handler in previous.items():
                signal.signal(number, handler)

    @staticmethod
    def _signal(process: BaseProcess, number: int) -> None:
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _work(cells: Sequence[Cell], parent: int) -> None:
    """Train a group in a forked process, and end the process with its exit code."""
    from tasks.engine.signals import begin_child

    os.setsid()  # Ctrl-C reaches it through its launcher alone, once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    begin_child(parent)
    code = max(run_group(cells).values(), default=0)
    sys.stdout.flush()
    os._exit(code)
