"""The launcher of one machine: runs one after another in this process, or `jobs` of them side by side.

Side by side each run is a process of its own. joblib's launcher cannot hand out GPUs and stops at the first failure;
submitit's local executor starts everything at once: hence these lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from evidence.runs.progress import last_line
from launch.cell import Cell, returned, unfinished
from launch.checkout import TRAIN
from launch.output import train_without_output
from tasks.base import InputError

STOPPED = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))  # exit codes


@dataclass
class LocalConf:
    """Options of the launcher.

    Attributes:
        jobs: Runs at a time, or "auto": as many as there are GPUs for them, one where there is none.
        gpus: Processes, and so GPUs, of each run.
        device: The engine's `train.device`: with "cpu" no GPU is handed out.
    """

    _target_: str = "hydra_plugins.cells.LocalLauncher"
    jobs: Any = 1
    gpus: int = 1
    device: str = "auto"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalConf, provider="adamp")


class LocalLauncher(BasicLauncher):
    """See `LocalConf`."""

    def __init__(self, jobs: int | str = 1, gpus: int = 1, device: str = "auto") -> None:
        super().__init__()
        self.jobs, self.gpus, self.device = jobs, gpus, device

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells and return their exit codes.

        Raises:
            InputError: jobs is no number of runs, or there are fewer GPUs than one run needs.
            SystemExit: A signal stopped the runs; each has saved a checkpoint.
        """
        if self.jobs == 1:
            assert self.hydra_context is not None
            for overrides in job_overrides:  # a cell that cannot be composed must not show after hours
                self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            return self._one_by_one(job_overrides, initial_job_idx)
        if self.jobs != "auto" and not (isinstance(self.jobs, int) and self.jobs >= 1):
            raise InputError(f"jobs is {self.jobs}; it must be a number of runs at a time, at least 1, or auto")
        train_without_output()
        launch = unfinished(self, job_overrides)
        if not launch.cells:
            return launch.returns({})
        seats = groups([] if self.device == "cpu" else visible_gpus(), self.gpus)
        jobs = max(1, len(seats)) if self.jobs == "auto" else int(self.jobs)
        for cell in launch.cells:
            cell.note(launcher="local", log=str(log_of(cell)))
        return launch.returns(Packing(jobs, seats, processes=self.gpus).run(launch.cells))

    def _one_by_one(self, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        # Hydra's own loop keeps the configuration of every cell to its end: a thousand cells took half as long again.
        print(f"{len(job_overrides)} cells, one after the other", flush=True)
        outcomes = []
        said = logging.getLogger("hydra._internal.core_plugins.basic_launcher")
        said.addFilter(_of_one_job)
        for place, overrides in enumerate(job_overrides):
            (done,) = super().launch([overrides], first + place)
            outcomes.append(returned(done.return_value, overrides))
        return outcomes


def _of_one_job(record: logging.LogRecord) -> bool:
    """Leave out what Hydra would say before every cell."""
    return not record.getMessage().startswith("Launching 1 jobs")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    import torch  # asks the driver without making a context on a GPU

    return [str(i) for i in range(torch.cuda.device_count())]


def groups(gpus: Sequence[str], size: int) -> list[str]:
    """Return disjoint groups of GPUs, one for each run that fits beside the others; none where there is no GPU.

    Examples:
        >>> groups(["0", "1", "2", "3", "4"], 2)
        ['0,1', '2,3']

    Raises:
        InputError: There are GPUs, but fewer than a run needs.
    """
    if gpus and len(gpus) < size:
        raise InputError(f"a run needs {size} GPUs and there are {len(gpus)}; lower GPUS, or set train.device=cpu")
    return [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]


@dataclass
class Job:
    """A cell that is running: its process, its place among the GPUs, when it began."""

    cell: Cell
    process: subprocess.Popen[bytes]
    seat: int | None
    begun: float = field(default_factory=time.monotonic)


class Packing:
    """Runs cells side by side until all have ended or a signal stops them.

    Args:
        jobs: Runs at a time.
        seats: Groups of GPUs; each run gets the one with the fewest runs. Empty: no GPU is handed out.
        processes: Processes of each run.
        command: Makes the words that start a cell's process.
    """

    def __init__(
        self,
        jobs: int,
        seats: Sequence[str],
        *,
        processes: int = 1,
        command: Callable[[Cell], Sequence[str]] | None = None,
    ) -> None:
        self.jobs, self.seats, self.processes = jobs, list(seats), processes
        self.command = command or one_run
        self.running: list[Job] = []
        self.codes: dict[int, int] = {}
        self.stopped = 0  # the signal that asked to stop

    def run(self, cells: Sequence[Cell]) -> dict[int, int]:
        """Run the cells and return place -> exit code.

        Raises:
            SystemExit: A signal stopped the runs.
        """
        waiting, total = deque(cells), len(cells)
        print(f"{total} cells, {min(self.jobs, total)} at a time", flush=True)
        with self._relayed():
            while self.running or (waiting and not self.stopped):
                while waiting and not self.stopped and len(self.running) < self.jobs:
                    self._start(waiting.popleft())
                for job in [job for job in self.running if job.process.poll() is not None]:
                    self.running.remove(job)
                    self._end(job, total)
                time.sleep(0.05)
        if self.stopped:
            print(f"stopped by {signal.Signals(self.stopped).name}; the same command goes on", file=sys.stderr)
            raise SystemExit(128 + self.stopped)
        return self.codes

    def _start(self, cell: Cell) -> None:
        from tasks.engine.signals import begin_child

        seat = None
        log = log_of(cell)
        env = {**os.environ, "ADAMP_CELL": "1", "ADAMP_LOG": str(log)}
        if self.seats:
            load = [sum(job.seat == i for job in self.running) for i in range(len(self.seats))]
            seat = load.index(min(load))
            env["CUDA_VISIBLE_DEVICES"] = self.seats[seat]
        env.setdefault("OMP_NUM_THREADS", str(threads(self.jobs * self.processes)))
        with _opened(log) as out:
            process = subprocess.Popen(
                self.command(cell), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=partial(begin_child, os.getpid()),
            )  # fmt: skip
        self.running.append(Job(cell, process, seat))
        if self.stopped:  # the signal came while it was being started
            process.send_signal(self.stopped)

    def _end(self, job: Job, total: int) -> None:
        code = job.process.returncode
        code = 128 - code if code < 0 else code
        self.codes[job.cell.place] = code
        how = "finished" if code == 0 else "stopped" if code in STOPPED else f"failed with code {code}"
        minutes, seconds = divmod(int(time.monotonic() - job.begun), 60)
        print(f"[{len(self.codes)}/{total}] {how} after {minutes}:{seconds:02d}  {job.cell.title}", flush=True)
        if code not in (0, *STOPPED):
            log = log_of(job.cell)
            job.cell.note(launcher="local", log=str(log), code=code)
            print(f"    {last_line(log)}\n    {log}", flush=True)

    @contextmanager
    def _relayed(self) -> Iterator[None]:
        """Hand signals on to the runs: they save and stop (SIGINT, SIGTERM, SIGHUP), or save and go on (SIGUSR1)."""

        def forward(number: int, frame: Any) -> None:
            if number != signal.SIGUSR1:
                self.stopped = number
            for job in self.running:
                if job.process.poll() is None:
                    job.process.send_signal(number)

        listened = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            listened.append(signal.SIGHUP)
        previous = {number: signal.signal(number, forward) for number in listened}
        try:
            yield
        finally:
            for job in self.running:  # only after an error of this launcher itself
                job.process.terminate()
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _opened(log: Path) -> Iterator[IO[bytes]]:
    """Open a run's log for appending; where that fails the run goes without one."""
    with contextlib.ExitStack() as stack:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(log.open("ab"))
        except OSError as error:
            print(f"{log}: {error.strerror}; its run goes without a log", file=sys.stderr, flush=True)
            out = stack.enter_context(Path(os.devnull).open("ab"))
        yield out


def threads(processes: int) -> int:
    """Return how many threads each of so many processes may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def one_run(cell: Cell) -> list[str]:
    """Return the command of a cell; a sweep's name among its words must not make a grid of it."""
    return [sys.executable, str(TRAIN), *cell.plan.argv, "hydra.mode=RUN"]


def log_of(cell: Cell) -> Path:
    """Return the file that keeps what a run says."""
    return cell.plan.folder / "log.txt"
