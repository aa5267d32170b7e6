"""Two gloo processes: the same result as one, exact resume, and loud failure where gradients are not averaged."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.distributed import World, in_data_order, process_group
from tasks.engine.errors import Stopped
from tasks.engine.processes import spawn
from tasks.engine.signals import begin_child
from tests.engine import toys


def fit(world: World, folder: Path, make: Callable[[], toys.Toy], **values: Any) -> dict[str, torch.Tensor]:
    made = toys.trainer(make(), folder, world=world, **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return toys.weights(made)


def plain() -> toys.Toy:  # batch norm would see half the batch
    return toys.Toy(norm=False, dropout=0.0)


def pairs() -> toys.Toy:
    return toys.Pairs(norm=False, dropout=0.0)


def run_pair(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `main` below in two processes."""
    code = (
        "import sys; from tasks.engine.processes import spawn; "
        f"sys.exit(spawn([sys.executable, '-m', 'tests.engine.test_distributed', {str(folder)!r}], 2))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def main(folder: Path) -> None:
    """What each process of a pair does."""
    with process_group("cpu", timeout_minutes=1) as world:
        fit(world, folder / "equal", plain)
        fit(world, folder / "pairs", pairs)
        check_gathering(world)
        whole = fit(world, folder / "whole", toys.Attack, accumulation=2)
        stopping = toys.Attack()
        if world.is_main:  # the other process learns of it from the first
            stopping.before_step = toys.kill_at(9, signal.SIGTERM)  # step 5 of 12
        try:
            fit(world, folder / "stopped", lambda: stopping, accumulation=2)
        except Stopped as stop:
            assert stop.code == 143
        else:
            raise AssertionError("did not stop")
        resumed = fit(world, folder / "stopped", toys.Attack, accumulation=2)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        if world.is_main:
            lines = [(folder / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
            assert lines[0] == lines[1]
        check_bypass(world, folder / "bypass")


def check_gathering(world: World) -> None:
    """Compare gathered rows, and gradients of a loss of all pairs, with those of one process, in float64."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, toys.D, dtype=torch.float64, generator=generator)
    weight = torch.randn(toys.D, 4, dtype=torch.float64, generator=generator).requires_grad_()

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad((rows @ rows.T).tanh().sum(), weight)
        return found

    mine = slice(3 * world.rank, 3 * world.rank + 3)
    assert torch.equal(world.gather_rows(x[mine]), x)
    assert torch.equal(world.gather_rows(torch.arange(6)[mine]), torch.arange(6))
    transposed = x.T.contiguous().T  # strided, as a channels-last output is
    assert torch.equal(world.gather_rows(transposed[mine]), x)
    expected = gradient(x @ weight)
    averaged = world.all_reduce_mean(gradient(world.gather_rows(x[mine] @ weight)))
    torch.testing.assert_close(averaged, expected, rtol=1e-12, atol=1e-12)


def check_bypass(world: World, folder: Path) -> None:
    task = plain()
    bare = task.networks["model"]
    task.updates = lambda nets, batch, context: toys.Toy.updates(task, {"model": bare}, batch, context)  # type: ignore
    with pytest.raises(RuntimeError, match="is a forward pass not going through `nets`"):
        fit(world, folder, lambda: task)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    done = run_pair(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_resume_without_a_changed_bit_and_notice_a_forward_pass_around_the_wrapper(pair: Path) -> None:
    # The comparisons run inside the pair, and it ended with code 0.
    assert (pair / "stopped" / "metrics.jsonl").exists() and (pair / "bypass").exists()


@pytest.mark.parametrize(("name", "make"), [("equal", plain), ("pairs", pairs)])
def test_two_processes_equal_one(pair: Path, tmp_path: Path, name: str, make: Callable[[], toys.Toy]) -> None:
    fit(toys.CPU, tmp_path, make)

    def numbers(folder: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    for one, two in zip(numbers(tmp_path), numbers(pair / name), strict=True):
        assert one.keys() == two.keys()
        # float32 sums in another order; the cosine and the oscillation divide small differences
        keys = [key for key in one if key.split("/")[0] not in ("cosine", "margin", "oscillation")]
        assert [two[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-4, abs=1e-6)


def test_records_of_strided_shards_come_back_in_data_order() -> None:
    assert in_data_order([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7))
    assert in_data_order([[None, 2], [1]]) == [None, 1, 2]
    assert in_data_order([[]]) == []


def test_the_first_failing_process_ends_the_others_and_gives_the_exit_code() -> None:
    code = "import os, time; time.sleep(60) if os.environ['RANK'] == '0' else exit(3)"
    assert spawn([sys.executable, "-c", code], 2, grace_seconds=5) == 3


def test_the_exit_code_is_of_the_failure_and_not_of_the_process_that_it_ended() -> None:
    code = "import os, time; os.environ['RANK'] == '0' and exit(1); time.sleep(1); exit(2)"
    assert spawn([sys.executable, "-c", code], 2, grace_seconds=5) == 2


def test_a_process_that_ignores_the_request_to_end_is_killed() -> None:
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "time.sleep(60) if os.environ['RANK'] == '0' else (time.sleep(1), os._exit(4))"
    )
    assert spawn([sys.executable, "-c", code], 2, grace_seconds=0.5) == 4


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_a_process_that_still_loads_is_not_ended_by_a_request_to_save() -> None:
    code = "import os, signal, sys; os.kill(os.getpid(), signal.SIGUSR1); sys.exit(7)"
    assert subprocess.run([sys.executable, "-c", code], preexec_fn=partial(begin_child, os.getpid())).returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_process_whose_launcher_was_gone_before_it_began_does_not_begin() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begun = subprocess.run([sys.executable, "-c", "print('begun')"], preexec_fn=partial(begin_child, gone.pid),
                           capture_output=True)  # fmt: skip
    assert (begun.returncode, begun.stdout) == (128 + signal.SIGTERM, b"")
