"""The launcher of a Ray cluster: one Ray task a cell, which runs the cell as a process of its own.

It needs ray alone. hydra-ray-launcher runs the cell inside Ray's worker: the first that fails ends the sweep, a signal
ends the worker, and it asks for an older cloudpickle than submitit's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from evidence.runs.progress import last_line
from launch.cell import Cell, unfinished
from launch.checkout import python_path
from launch.local import log_of, one_run
from launch.output import train_without_output
from tasks.base import InputError

GRACE_S = 120  # for runs to save after Ctrl-C


@dataclass
class RayConf:
    """Options of the launcher.

    Attributes:
        address: The cluster, e.g. "auto" or "ray://head:10001"; null starts one here.
        num_cpus: Cores that a run takes from Ray's count.
        num_gpus: GPUs that a run takes; Ray says which. A fraction shares one; with 0 a run sees none.
        max_retries: How often a run is started again when its node goes away.
    """

    _target_: str = "hydra_plugins.cells.RayLauncher"
    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    max_retries: int = 3


ConfigStore.instance().store(group="hydra/launcher", name="cells_ray", node=RayConf, provider="adamp")


class RayLauncher(Launcher):
    """See `RayConf`."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float, max_retries: int) -> None:
        self.address, self.max_retries = address, max_retries
        self.needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells and return their exit codes.

        Raises:
            InputError: The cluster does not answer.
            SystemExit: Ctrl-C stopped the runs; each has saved a checkpoint.
        """
        import ray

        train_without_output()
        launch = unfinished(self, job_overrides)
        if not launch.cells:
            return launch.returns({})
        try:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises bare ones
            where = f"no cluster at {self.address}" if self.address else "none could be started here"
            raise InputError(f"launcher=ray: {where}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        try:
            return launch.returns(self._run(launch.cells))
        finally:
            ray.shutdown()

    def _run(self, cells: Sequence[Cell]) -> dict[int, int]:
        import ray

        runtime = {"env_vars": {"PYTHONPATH": python_path()}}
        start = ray.remote(**self.needs, max_retries=self.max_retries, runtime_env=runtime)(run_cell)
        running: dict[Any, Cell] = {}
        for cell in cells:
            log = log_of(cell).resolve()
            cell.note(launcher="ray", log=str(log))
            env = cell_environment(str(log), num_gpus=self.needs["num_gpus"])
            running[start.remote(one_run(cell), str(log), str(Path.cwd()), env)] = cell
        print(f"{len(cells)} cells on Ray", flush=True)
        codes: dict[int, int] = {}
        try:
            while running:
                ended, _ = ray.wait(list(running), num_returns=1, timeout=5)
                for task in ended:
                    cell = running.pop(task)
                    codes[cell.place] = self._code(task)
                    self._tell(cell, codes[cell.place], f"[{len(codes)}/{len(cells)}]")
        except KeyboardInterrupt:
            for task in running:
                ray.cancel(task)
            ray.wait(list(running), num_returns=len(running), timeout=GRACE_S)
            print("stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
        return codes

    def _code(self, task: Any) -> int:
        import ray

        try:
            return int(ray.get(task))
        except ray.exceptions.RayError as error:  # e.g. the node is gone, and so are the further tries
            print(f"Ray: {(str(error).strip() or type(error).__name__).splitlines()[-1]}", file=sys.stderr)
            return 1

    def _tell(self, cell: Cell, code: int, count: str) -> None:
        print(f"{count} {'finished' if code == 0 else f'failed with code {code}'}  {cell.title}", flush=True)
        if code:
            log = log_of(cell).resolve()
            cell.note(launcher="ray", log=str(log), code=code)
            print(f"    {last_line(log)}\n    {log}", flush=True)


def cell_environment(log: str, *, num_gpus: float) -> dict[str, str]:
    """Return what a cell's environment has beside its node's: options of this shell, and no GPU where it has none.

    Ray leaves CUDA_VISIBLE_DEVICES as it is in a worker without GPUs, which would then see every card of its node.
    """
    here = {k: v for k, v in os.environ.items() if k.startswith(("ADAMP_", "WANDB_")) or k == "OMP_NUM_THREADS"}
    hidden = {} if num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {**here, **hidden, "ADAMP_CELL": "1", "ADAMP_LOG": log}


def run_cell(words: Sequence[str], log: str, folder: str, env: Mapping[str, str]) -> int:
    """Run a command on a node and return its exit code; a cancelled task lets it save first."""
    from tasks.engine.signals import begin_child

    with Path(log).open("ab") as out:
        process = subprocess.Popen(
            list(words), cwd=folder, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=partial(begin_child, os.getpid()),
        )  # fmt: skip
        try:
            while (code := process.poll()) is None:  # Ray's cancelling does not wake a wait
                time.sleep(0.2)
        except KeyboardInterrupt:  # how Ray cancels
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return 128 - code if code < 0 else code
