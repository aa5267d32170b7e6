"""Saving and restoring a `TrainState`: the contents of checkpoints, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tasks.base import InputError, LoopState
from tasks.engine import checkpoint
from tasks.engine.distributed import World
from tasks.engine.nested import map_tensors
from tasks.engine.reproducibility import generator_states, set_generator_states
from tasks.engine.train_state import Best, Progress, TrainState


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: last.pt, everything to go on from, and best.pt, weights alone.

    Attributes:
        folder: Where they are.
        run: Identity of the run; a checkpoint of another run is refused.
        world: The processes.
        restart: Start over where checkpoints were set aside and none is left to resume from.
    """

    folder: Path
    run: str
    world: World
    restart: bool = False

    def save_last(
        self, state: TrainState, *, metrics_offset: int, faulty_examples: Mapping[str, list[Any]] | None = None
    ) -> None:
        """Write last.pt. Collective.

        Args:
            state: The state.
            metrics_offset: Bytes of metrics.jsonl that belong to it.
            faulty_examples: `Task.faulty_examples` of all processes.

        Raises:
            InputError: The file cannot be written; raised on every process, so that none waits for another.
        """
        # Each process's own part
        process_state = {
            "generators": generator_states(self.world.device),
            "carry": map_tensors(Tensor.cpu, [dict(loop_state) for loop_state in state.loop_states]),
            "meter": state.meter.state_dict(),
            # Running statistics differ between processes; a task may read them in training (an attack in eval mode).
            "buffers": {role: _own(dict(net.named_buffers()), cpu=True) for role, net in _networks(state).items()},
        }
        contents: checkpoint.Contents = {
            **self._weights(state),
            "at": vars(state.progress).copy(),
            "optimizers": {role: optimizer.state_dict() for role, optimizer in state.optimizers.items()},
            "probes": {role: probe.state_dict() for role, probe in state.probes.items()},
            "scaler": state.scaler.state_dict(),
            **({"guard": state.non_finite.state_dict()} if state.non_finite.counts_skips else {}),
            "faulty_examples": dict(faulty_examples or {}),
            "processes": self.world.gather_objects(process_state),
            "metrics_offset": metrics_offset,
        }
        self.world.run_on_rank0(lambda: checkpoint.save(self.folder / "last.pt", contents))

    def save_best(self, state: TrainState) -> None:
        """Write best.pt; collective, with the errors of `save_last`."""
        contents = self._weights(state)
        self.world.run_on_rank0(lambda: checkpoint.save(self.folder / "best.pt", contents))

    def _weights(self, state: TrainState) -> checkpoint.Contents:
        return {
            "run": self.run,
            "step": state.progress.step,
            "networks": {role: _own(net.state_dict()) for role, net in state.modules.items()},
            "averages": {role: net.state_dict() for role, net in state.averages.items()},
            "best": vars(state.best).copy(),
            "scores": dict(state.scores),
        }

    def load_latest(self) -> checkpoint.Contents | None:
        """Read the last checkpoint on every process.

        Raises:
            InputError: It cannot be used, or those of the folder were set aside and `restart` is not set.
        """
        path = self.world.broadcast_object(self.world.run_on_rank0(self._latest))
        return None if path is None else self._load(path)

    def _latest(self) -> Path | None:
        path = checkpoint.latest(self.folder)
        if path is None and not self.restart and (kept := checkpoint.unusable(self.folder)):
            raise InputError(
                f"{self.folder} holds no checkpoint to resume from, only {', '.join(kept[:3])}, which cannot be used\n"
                "Put a copy back as last.pt, or start over with train.restart=true."
            )
        return path

    def _load(self, path: Path) -> checkpoint.Contents:
        """Read a checkpoint on every process, process 0 first: only it may set a damaged file aside."""
        contents = self.world.run_on_rank0(lambda: checkpoint.load(path, run=self.run))
        return self.world.run_everywhere(
            lambda: contents if contents is not None else checkpoint.load(path, run=self.run)
        )

    def restore_best(self, state: TrainState) -> None:
        """Load the best weights so far into the state.

        Raises:
            InputError: There are none yet: the phase before has not been evaluated.
        """
        path = self.folder / "best.pt"
        if not self.world.broadcast_object(self.world.run_on_rank0(lambda: path.name in checkpoint.names(self.folder))):
            raise InputError(f"a phase starts from the best checkpoint, and {path} does not exist")
        _load_weights(state, self._load(path))


def restore(state: TrainState, contents: checkpoint.Contents, world: World) -> None:
    """Restore everything that exists before a phase makes its optimizers: position, weights, counts, loop states.

    Raises:
        InputError: The checkpoint holds loop states of another number of processes.
    """
    state.progress, state.best, state.scores = Progress(**contents["at"]), Best(**contents["best"]), contents["scores"]
    _load_weights(state, contents)
    state.scaler.load_state_dict(contents["scaler"])
    if "guard" in contents:
        state.non_finite.load_state_dict(contents["guard"])
    processes = contents["processes"]
    if has_same_processes(contents, world):
        buffers = processes[world.rank]["buffers"]
        for role, net in _networks(state).items():
            for name, buffer in net.named_buffers():
                if role in buffers:  # older checkpoints lack those of averages
                    buffer.copy_(buffers[role][name])
    elif any(any(_loop_states(process)) for process in processes):
        raise InputError(
            f"the checkpoint carries state of {len(processes)} processes; resume with GPUS={len(processes)}, "
            f"not {world.size}"
        )
    process = _process_state(contents, world)
    state.loop_states = map_tensors(lambda t: t.to(world.device), _loop_states(process))
    state.meter.load_state_dict(process["meter"], world.device)


def check_position(state: TrainState, epochs: Sequence[int], epoch_steps: int) -> None:
    """Refuse a restored position that no run of these phases and this data can reach.

    Args:
        state: Restored.
        epochs: Of each phase.
        epoch_steps: Steps of an epoch of the data at hand.

    Raises:
        InputError: Phase, epoch, batch and step do not belong together: the data had another size.
    """
    progress = state.progress
    if not progress.fits(epochs, epoch_steps):
        raise InputError(
            f"the checkpoint is at step {progress.step}, batch {progress.batch} of epoch {progress.epoch + 1} of its "
            f"phase, and the data have {epoch_steps} steps an epoch: it was saved on other data\n"
            "Resume it with the data_root that it began with, or give the new run a name of its own with tag=NAME."
        )


def restore_optimizers_and_rng(state: TrainState, contents: checkpoint.Contents, world: World) -> None:
    """Restore optimizers, probes and, last, the random generators: wrapping and compiling may draw numbers."""
    for role, optimizer in state.optimizers.items():
        optimizer.load_state_dict(contents["optimizers"][role])
    for role, probe in state.probes.items():
        probe.load_state_dict(contents["probes"][role])
    set_generator_states(_process_state(contents, world)["generators"], world.device)


def has_same_processes(contents: checkpoint.Contents, world: World) -> bool:
    """Return whether as many processes saved as resume now; else resuming is exact in the data, not bitwise."""
    return len(contents["processes"]) == world.size


def _process_state(contents: checkpoint.Contents, world: World) -> Mapping[str, Any]:
    index = world.rank if has_same_processes(contents, world) else 0
    process: Mapping[str, Any] = contents["processes"][index]
    return process


def _networks(state: TrainState) -> dict[str, nn.Module]:
    """Return the networks and, as "<role>_ema", their moving averages."""
    return {**state.modules, **{f"{role}_ema": average.module for role, average in state.averages.items()}}


def _own(tensors: Mapping[str, Tensor], *, cpu: bool = False) -> dict[str, Tensor]:
    """Return tensors, parts of larger ones copied: torch saves the whole storage of a part."""
    moved = {name: tensor.cpu() if cpu else tensor for name, tensor in tensors.items()}
    return {name: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for name, t in moved.items()}


def _loop_states(process: Mapping[str, Any]) -> list[LoopState]:
    """Return one process's loop states, one per micro-batch; checkpoints of version 0.1 hold a single dict."""
    loop_states = process["carry"]
    return loop_states if isinstance(loop_states, list) else [loop_states]


def _load_weights(state: TrainState, contents: checkpoint.Contents) -> None:
    for role, net in state.modules.items():
        net.load_state_dict(contents["networks"][role])
    for role, average in state.averages.items():
        average.load_state_dict(contents["averages"][role])
