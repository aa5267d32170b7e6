"""The process group of a run: collectives, gradient averaging, records in data order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.base import InputError, Shard
from tasks.engine.errors import translate_errors

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one run. Every method is collective unless `size` is 1, when it costs nothing."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, accumulation_steps: int = 1) -> Shard:
        """Return this process's share of the data."""
        return Shard(index=self.rank, count=self.size, accumulation_steps=accumulation_steps)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network for gradient averaging; once per phase, since DDP fixes the trainable set when it wraps.

        Buffers are not broadcast at every forward pass: two forward passes before one backward pass would fail on
        BatchNorm's buffers, and `broadcast_buffers` before each evaluation gives the same saved weights.
        """
        if self.size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)

    def broadcast_buffers(self, modules: Mapping[str, nn.Module]) -> None:
        """Give every process the buffers (BatchNorm's running statistics) of process 0."""
        if self.size == 1:
            return
        for network in modules.values():
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value over processes. A CPU collective, which does not wait for the GPU."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def all_reduce_min(self, value: int) -> int:
        """Return the smallest value over processes."""
        return -self.all_reduce_max(-value)

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes of a float64 CPU vector."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def first_difference(self, values: Tensor) -> int | None:
        """Return the first index at which an int64 CPU vector differs between processes, or None."""
        if self.size == 1 or len(values) == 0:
            return None
        both = torch.cat([values, ~values])  # the complement reverses the order without overflow
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        unequal = (both[: len(values)] != ~both[len(values) :]).nonzero()
        return int(unequal[0]) if len(unequal) else None

    def gather_objects(self, value: Any) -> list[Any] | None:
        """Return every process's value, in order of rank, on process 0; None elsewhere."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return every process's rows in order of rank, with gradients: see `StepContext.gather`."""
        if self.size == 1:
            return rows
        gathered: Tensor = _GatherRows.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def broadcast_object(self, value: Any) -> Any:
        """Return process 0's value everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def run_on_rank0(self, call: Callable[[], T]) -> T | None:
        """Call on process 0 alone and return its value there, None elsewhere; its InputError is raised everywhere."""
        value, problem = None, None
        if self.is_main:
            try:
                value = call()
            except InputError as error:
                problem = str(error)
        if problem := self.broadcast_object(problem):
            raise InputError(problem)
        return value

    def run_everywhere(self, call: Callable[[], T]) -> T:
        """Call on every process and return each one's value; an InputError of any is raised on all of them."""
        value, problem = None, None
        try:
            value = call()
        except InputError as error:
            problem = f"process {self.rank}: {error}" if self.rank else str(error)
        problems = self.broadcast_object(self.gather_objects(problem))
        if said := next((each for each in problems if each), None):
            raise InputError(said)
        return cast(T, value)

    def check_equal(self, value: Tensor, what: str) -> None:
        """Raise when a 0-d tensor differs between processes.

        Raises:
            RuntimeError: They differ: a forward pass bypassed the wrapped network, so no gradients were averaged.
        """
        if self.size == 1:
            return
        values = self.gather_objects(float(value))
        bad = self.broadcast_object(values if values and len({v for v in values if v == v}) > 1 else None)
        if bad:
            raise RuntimeError(f"{what} differs between processes ({bad}): is a forward pass not going through `nets`?")


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes; backward sums the gradients of every process's loss by the local rows.

    With the same loss on each of n processes that sum is n times the loss's gradient, which averaging undoes. Uses
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
def process_group(device: str, *, timeout_minutes: float) -> Iterator[World]:
    """Join the process group that the environment names (torchrun's variables), and leave it after the block.

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
    with translate_errors():
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield World(rank, size, chosen)
    finally:
        # Gloo's threads need the interpreter's lock to drop the tensors of finished collectives. Destroying the group
        # waits for these threads while it holds the lock, so a late one would deadlock the process (seen under load, in
        # the destructor at interpreter exit). Sleeping releases the lock first.
        time.sleep(0.25)
        dist.destroy_process_group()
