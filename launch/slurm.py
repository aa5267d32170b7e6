"""The launcher of a SLURM cluster: one element of a job array a cell, submitted and continued by submitit.

hydra-submitit-launcher runs the cells; what differs here is what the parent does. It leaves out cells that have been
finished or are in the queue, waits for all of them although one failed, learns of ends from `squeue`, which every
cluster has (submitit asks `sacct`, and without accounting waits for ever), and may leave at once.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

from evidence.runs import progress
from launch.cell import Cell, unfinished
from launch.checkout import python_path
from launch.outcome import RunOutcome
from launch.output import train_without_output
from tasks.base import InputError

OWN = {"submitit_folder", "max_num_timeout"}  # what the executor's constructor takes


@dataclass
class SlurmConf(SlurmQueueConf):
    """hydra-submitit-launcher's options, and ours.

    Attributes:
        wait: Wait for the jobs; with false, submit and leave: `make status` tells how they fare.
        poll_s: Seconds between two looks at the queue.
    """

    _target_: str = "hydra_plugins.cells.SlurmLauncher"
    wait: bool = True
    poll_s: float = 10.0


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmConf, provider="adamp")


class SlurmLauncher(BaseSubmititLauncher):
    """See `SlurmConf`."""

    _EXECUTOR = "slurm"

    def __init__(self, *, wait: bool = True, poll_s: float = 10.0, **params: Any) -> None:
        super().__init__(**params)
        self.wait, self.poll_s = wait, poll_s

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the cells that are neither finished nor queued, and return their exit codes.

        Raises:
            InputError: The cluster refuses the jobs.
        """
        progress.queue.cache_clear()
        train_without_output()
        launch = unfinished(self, job_overrides)
        cells, queued = [], 0
        for cell in launch.cells:
            if (note := cell.noted()).get("job") and progress.alive(note):
                queued += 1
            else:
                cells.append(cell)
        if queued:
            print(f"{queued} cells are in the queue already", flush=True)
        if not cells:
            return launch.returns({})
        jobs = self._submit(cells)
        for cell, job in zip(cells, jobs, strict=True):
            cell.note(launcher="slurm", job=job.job_id, log=str(job.paths.stdout))
            print(f"job {job.job_id}  {cell.title}", flush=True)
        if not self.wait:
            print("make status tells how they fare; scancel JOB ends one")
            return launch.returns({})
        try:
            return launch.returns(self._collect(cells, jobs))
        except KeyboardInterrupt:
            print("the jobs go on without this process; scancel JOB ends one", file=sys.stderr)
            raise

    def _submit(self, cells: Sequence[Cell]) -> list[Any]:
        import submitit

        os.environ["PYTHONPATH"] = python_path()
        base = set(OmegaConf.structured(BaseQueueConf).keys())
        given = {k if k in base else f"slurm_{k}": v for k, v in self.params.items() if k not in OWN}
        argument_lists = zip(
            *(
                (list(cell.overrides), "hydra.sweep.dir", cell.place, str(cell.place), Singleton.get_state())
                for cell in cells
            ),
            strict=True,
        )
        try:
            executor = submitit.AutoExecutor(
                cluster="slurm", folder=self.params["submitit_folder"],
                slurm_max_num_timeout=self.params["max_num_timeout"],
            )  # fmt: skip
            executor.update_parameters(**given)
            jobs: list[Any] = executor.map_array(self, *argument_lists)
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            said = " ".join(str(error).split())[:300]
            raise InputError(f"launcher=slurm: the jobs could not be submitted: {said}") from None
        return jobs

    def _collect(self, cells: Sequence[Cell], jobs: Sequence[Any]) -> dict[int, int]:
        """Return place -> exit code once every job has ended: it left a result, or is gone from the queue."""
        codes: dict[int, int] = {}
        missing: dict[int, int] = {}  # looks in a row at which a job was neither in the queue nor had a result
        while len(codes) < len(cells):
            progress.queue.cache_clear()
            queue = progress.queue()
            for cell, job in zip(cells, jobs, strict=True):
                if cell.place in codes:
                    continue
                code = result(job.paths.result_pickle)
                missing[cell.place] = 0 if job.job_id in queue else missing.get(cell.place, 0) + 1
                if code is None and missing[cell.place] < 3:  # files may be seen later than the queue
                    continue
                codes[cell.place] = 1 if code is None else code
                self._tell(cell, job, codes[cell.place], f"[{len(codes)}/{len(cells)}]")
            if len(codes) < len(cells):
                time.sleep(self.poll_s)
        return codes

    def _tell(self, cell: Cell, job: Any, code: int, count: str) -> None:
        how = "finished" if code == 0 else f"failed with code {code}"
        print(f"{count} {how}  job {job.job_id}  {cell.title}", flush=True)
        if code:
            log = str(job.paths.stdout)
            cell.note(launcher="slurm", log=log, code=code)
            print(f"    {progress.last_line(Path(log))}\n    {log}", flush=True)


def result(path: Path) -> int | None:
    """Return the exit code that a job left, None while there is none."""
    try:
        with path.open("rb") as file:
            outcome, value = pickle.load(file)
    except (FileNotFoundError, EOFError):
        return None
    if outcome != "success" or value.status is not JobStatus.COMPLETED:
        return 1
    returned = value.return_value
    return returned.code if isinstance(returned, RunOutcome) else int(returned or 0)  # a job of an earlier version
