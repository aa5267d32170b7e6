"""Processes: joining a group, wrapping networks, agreeing on signals, gathering records in data order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.base import InputError, Shard
from tasks.engine.faults import explained
from tasks.engine.signals import begin_child

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one run. Every method is collective unless `size` is 1, when it costs nothing."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def shard(self, accumulation_steps: int = 1) -> Shard:
        """Return this process's share of the data."""
        return Shard(index=self.rank, count=self.size, accumulation_steps=accumulation_steps)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network for gradient averaging. Anew at each phase: DDP fixes the trainable set when it wraps.

        Buffers are not broadcast at every forward: two forwards before one backward would fail on BatchNorm's
        buffers, and `share_buffers` before each evaluation and save gives the same saved weights.
        """
        if self.size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)

    def share_buffers(self, networks: Mapping[str, nn.Module]) -> None:
        """Give every process the buffers (BatchNorm's running statistics) of process 0."""
        if self.size == 1:
            return
        for network in networks.values():
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def highest(self, value: int) -> int:
        """Return the largest value over processes. A CPU collective: a GPU's queue is not drained for it."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def lowest(self, value: int) -> int:
        """Return the smallest value over processes."""
        return -self.highest(-value)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes of a float64 CPU vector."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def first_difference(self, values: Tensor) -> int | None:
        """Return the first index at which an int64 CPU vector differs between processes, or None."""
        if self.size == 1 or len(values) == 0:
            return None
        both = torch.cat([values, ~values])  # the complement turns the order around, without an overflow
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        unequal = (both[: len(values)] != ~both[len(values) :]).nonzero()
        return int(unequal[0]) if len(unequal) else None

    def gather(self, value: Any) -> list[Any] | None:
        """Return every process's value, in order of rank, on process 0; None elsewhere."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, gathered)
        return gathered

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return every process's rows in order of rank, with gradients: see `StepContext.gather`."""
        if self.size == 1:
            return rows
        gathered: Tensor = _GatherRows.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def share(self, value: Any) -> Any:
        """Return process 0's value everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def on_main(self, call: Callable[[], T]) -> T | None:
        """Call on process 0 alone and return its value there, None elsewhere; its InputError is raised everywhere."""
        value, problem = None, None
        if self.main:
            try:
                value = call()
            except InputError as error:
                problem = str(error)
        if problem := self.share(problem):
            raise InputError(problem)
        return value

    def check_equal(self, value: Tensor, what: str) -> None:
        """Raise when a 0-d tensor differs between processes.

        Raises:
            RuntimeError: Processes disagree: a forward pass went around the wrapped network, so gradients were not
                averaged.
        """
        if self.size == 1:
            return
        values = self.gather(float(value))
        bad = self.share(values if values and len({v for v in values if v == v}) > 1 else None)
        if bad:
            raise RuntimeError(f"{what} differs between processes ({bad}): is a forward pass not going through `nets`?")


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes; backward adds up what every process's loss says about one's own rows.

    With the same loss on each of n processes that sum is n times the loss's gradient, which averaging undoes. Made of
    all_gather and all_reduce, which every backend has for CPU and GPU.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.first, ctx.num = world.rank * len(rows), len(rows)
        gathered = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world.size)]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.num], None


def in_data_order(shards: Sequence[Sequence[Any]]) -> list[Any]:
    """Interleave the records of strided shards: shard i holds batches i, i + count, ..."""
    missing = object()
    return [record for record in chain.from_iterable(zip_longest(*shards, fillvalue=missing)) if record is not missing]


@contextmanager
def joined(device: str, *, timeout_minutes: float) -> Iterator[World]:
    """Join the processes that the environment names (torchrun's variables), and leave them again.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_minutes: How long a collective waits before it raises.

    Raises:
        InputError: device is "cuda" and there is none for this process.
        RunFailed: The others did not come within the time.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cuda" and torch.cuda.device_count() <= local:
        raise InputError(
            f"process {local} finds {torch.cuda.device_count()} CUDA devices; lower GPUS, or set train.device=cpu"
        )
    chosen = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(0, 1, chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    with explained():
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield World(rank, size, chosen)
    finally:
        # Gloo's threads drop the tensors of finished collectives, and need the interpreter's lock for it. Whoever
        # destroys the group waits for these threads with the lock held, so a late one would hang the process for good
        # (seen under load, in the destructor at interpreter exit): sleeping hands the lock over first.
        time.sleep(0.25)
        dist.destroy_process_group()


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: Sequence[str], processes: int, *, grace_seconds: float = 10.0) -> int:
    """Run `processes` copies of a command as one group on this machine and return the first failing exit code.

    torchrun does the same and prints a page of traceback around a one-line error, which is why the suite starts its
    own processes; a command under torchrun or submitit works too, since only their variables are read.

    Signals sent to this process reach every copy; when it is killed, they save and stop. When one copy fails, the
    others get SIGTERM, and SIGKILL after `grace_seconds`.
    """
    port = free_port()
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    children = []
    begin = partial(begin_child, os.getpid())
    for rank in range(processes):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_PORT": port,
        }
        env = {"OMP_NUM_THREADS": threads, **os.environ, "MASTER_ADDR": "127.0.0.1"}
        env |= {key: str(value) for key, value in place.items()}
        # A group of its own: Ctrl-C then reaches the copies once, through this process.
        children.append(subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=begin))

    def forward(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    relayed = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, forward) for number in relayed}
    try:
        return _wait(children, grace_seconds)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    failed, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        codes = [child.poll() for child in children]
        if not failed and (failed := next((code for code in codes if code), 0)):
            deadline = time.monotonic() + grace_seconds
            for rank, child in enumerate(children):
                if child.poll() is None:
                    print(
                        f"process {codes.index(failed)} ended with code {failed}; stopping {rank}",
                        file=sys.stderr,
                    )
                    child.terminate()
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    failed = failed or next((code for code in (child.poll() for child in children) if code), 0)
    # A copy killed by signal n reads -n here; shells and make know 128 + n.
    return 128 - failed if failed < 0 else failed
