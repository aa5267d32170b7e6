"""The interface between tasks and the engine: `Task` and the records that they exchange.

A task owns its data, its networks, its losses and its scores. It never imports the engine, `torch.distributed`,
Hydra or a logger; the engine knows tasks through this file alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the interface names torch's types, and needs none of its code
    from torch import Tensor, nn

Batch = Any  # what a task's loader yields and its losses take: nested tuples, lists, dicts of tensors
Record = Any  # what `Task.predict` returns for a batch; picklable, on the CPU
LoopState = dict[str, Any]  # what a task keeps from one batch to the next, e.g. a language model's memory


class BatchLoader(Protocol):
    """Training batches and their number: a list, or what decodes them as they are asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class InputError(ValueError):
    """A mistake in what the user gave: shown as one or two lines without a traceback, exit code 2.

    The message names the value, the rule it broke and the option to change.
    """


@dataclass(frozen=True)
class Shard:
    """One process's share of the data, and the number of micro-batches per step.

    Attributes:
        index: This process, 0 <= index < count.
        count: Number of processes.
        accumulation_steps: Micro-batches per optimizer step. A global batch of B examples reaches each process as
            `accumulation_steps` consecutive batches of B / (count * accumulation_steps) examples.
    """

    index: int = 0
    count: int = 1
    accumulation_steps: int = 1


@dataclass
class Update:
    """One optimizer step that a task requests.

    Attributes:
        loss: Scalar, the mean over this shard's examples.
        network: Key of `Task.networks` whose optimizer steps.
        log: Scalars to log beside the loss, name -> 0-d tensor, e.g. `{"train/top1": ...}`.
        lr_scale: Factor on every learning rate for this one step, on top of the schedule, e.g. the length of a
            segment over the usual length. With micro-batches it must be the same in all of them.
    """

    loss: Tensor
    network: str = "model"
    log: Mapping[str, Tensor] = field(default_factory=dict)
    lr_scale: float = 1.0


@dataclass
class ManyUpdate:
    """One optimizer step of each of several networks that are trained at once: `Update` with one row per network.

    Attributes:
        losses: (number of networks,), each the mean over the batch of that network alone.
        network: Key of `Task.networks` whose optimizers step.
        log: Name -> (number of networks,) to log beside the losses.
        lr_scale: As in `Update`, for all networks.
    """

    losses: Tensor
    network: str = "model"
    log: Mapping[str, Tensor] = field(default_factory=dict)
    lr_scale: float = 1.0


def own_rows(rows: Tensor) -> Tensor:
    """Return the rows as they are: all there are in a run of one process."""
    return rows


@dataclass(frozen=True)
class StepContext:
    """The part of the engine that `Task.updates` may use.

    Attributes:
        state: Kept from one batch to the next and saved in checkpoints; each micro-batch has its own.
        gather: Maps this process's rows (b, ...) to those of all processes (b * count, ...), in order of process. For
            losses that are no mean over examples (a batch's HSIC, pairs, proxies): every process computes the same
            loss of the gathered rows, and gradients flow back such that, averaged over processes as for any loss, they
            are exactly those of one process with the whole batch. Collective: all processes call it equally often,
            with equal shapes.
        micro_batches: This process's micro-batches of the step, not yet on the device: for losses divided by a count
            over the whole step, e.g. of objects, which later micro-batches hold too. Empty: the batch is the only one.
    """

    state: LoopState = field(default_factory=dict)
    gather: Callable[[Tensor], Tensor] = own_rows
    micro_batches: Sequence[Batch] = ()


class Task(ABC):
    """A benchmark: data, networks, losses and scores.

    Attributes:
        networks: Everything trainable, by role. Proxies and loss weights belong here too.
        monitor: The score that picks the best checkpoint, e.g. "val/top1"; greater is better. Prefixed with "-", as in
            "-val/loss", lower is better.
        predicts_alone: Whether `predict` computes other inputs for every network, such as attacked ones: of many
            networks at once each then predicts by itself.
    """

    networks: Mapping[str, nn.Module]
    monitor: str
    predicts_alone: bool = False

    @abstractmethod
    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        """Return this shard's training batches of one epoch, from step `start` on.

        Order and random augmentation depend on (seed, epoch) alone: the batches from `start` on are bitwise those of
        a full pass. That makes resuming within an epoch exact.

        Args:
            epoch: Counted from 0.
            shard: This process's share; the result holds `shard.accumulation_steps` batches per step.
            start: First step wanted; earlier ones are skipped without being decoded.

        Returns:
            An iterable with a length, `(steps per epoch - start) * shard.accumulation_steps` batches.
        """

    @abstractmethod
    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        """Return the evaluation batches: split name -> batches index, index + count, ..., without padding."""

    def test_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        """Return splits that are scored once, at the end, with the best weights; as `eval_batches`."""
        return {}

    @abstractmethod
    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        """Yield one `Update` per optimizer step, in order. The forward pass must go through `nets`.

        Each update is computed in an autocast region of its own, which keeps the first cast of every weight: a task
        that changes weights itself between two forward passes of one update calls `torch.clear_autocast_cache()`.
        """

    def many_updates(
        self, nets: Mapping[str, nn.Module], batch: Batch, contexts: Sequence[StepContext]
    ) -> Iterator[ManyUpdate] | None:
        """Yield what `updates` would for each of several networks, all at once, or return None: one by one.

        Only worth writing where the losses of many small networks cost as much time as the networks.

        Args:
            nets: Role -> all networks side by side: outputs are (B, number of networks * features of one network), the
                features of each network next to each other.
            batch: As for `updates`; all networks see the same.
            contexts: One per network.
        """
        return None

    @abstractmethod
    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return what `score` needs of one batch. Runs under `no_grad` with networks in eval mode.

        `state` is empty at the start of each split and kept from one batch of the split to the next.
        """

    @abstractmethod
    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return `{"val/top1": ...}` from the records of a whole split, in data order, gathered over processes."""

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Return network role -> positional arguments of one small forward pass, on the CPU.

        Used to find by rescaling which parameters are scale-invariant. An empty mapping means: not known.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Return facts about the data for the record of a run: name, sizes, licence.

        "name", "train_examples" and "val_examples" are printed at the start, and so is "baseline" where there is one:
        the score of a trivial predictor. They, "test_examples" and "digest", a hash of the file list or the contents,
        are the identity of the data: a run is not resumed on other data.
        """
        return {}

    def notices(self) -> dict[str, int]:
        """Return counts of data problems so far, e.g. `{"corrupt_images": 2}`, without zeros."""
        return {}

    def faulty_examples(self) -> dict[str, list[Any]]:
        """Return the faulty examples met so far by kind, in plain containers: what `notices` counts of this process.

        The engine exchanges them between processes, keeps them in checkpoints and hands them to `add_faulty_examples`,
        so that each is counted once a run. Leave out what every process finds alike.
        """
        return {}

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        """Take what `faulty_examples` returned on another process, or before the run was resumed.

        Raises:
            InputError: They are now more than the user allows.
        """
        return
