"""What each process under torchrun does when a rank dies in the first start and comes back in the second."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tasks.engine.distributed import process_group
from tests.engine import toys


def main(folder: Path) -> None:
    """Train; in the first start process 1 is killed in the second epoch."""
    task, first = toys.Toy(), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    with process_group("cpu", timeout_minutes=2) as world:
        if first and world.rank == 1:
            task.before_step = toys.kill_at(8, signal.SIGKILL)
        toys.trainer(task, folder, world=world, checkpoint_minutes=0).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
