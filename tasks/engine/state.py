"""What a checkpoint of a trainer holds, and how it is put back: everything that decides the next step, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks.base import InputError, LoopState
from tasks.engine import checkpoint
from tasks.engine.meters import map_tensors
from tasks.engine.phases import Best, Position

if TYPE_CHECKING:
    from tasks.engine.loop import Trainer


def moving_averages(networks: Mapping[str, nn.Module], decay: float | None) -> dict[str, AveragedModel]:
    """Return an exponential moving average of each network, buffers too; nothing without a decay."""
    if decay is None:
        return {}
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return {role: AveragedModel(net, multi_avg_fn=average, use_buffers=True) for role, net in networks.items()}


def save(trainer: Trainer, kind: str) -> None:
    """Write checkpoints/last.pt, everything to go on from, or checkpoints/best.pt, weights alone. Collective.

    Raises:
        InputError: The disk refuses; raised on every process, so that none waits for another.
    """
    state = _weights(trainer) if kind == "best" else _everything(trainer)
    trainer.world.on_main(lambda: checkpoint.save(trainer.folder / "checkpoints" / f"{kind}.pt", state))


def _weights(trainer: Trainer) -> checkpoint.State:
    return {
        "run": trainer.name,
        "step": trainer.at.step,
        "networks": {role: net.state_dict() for role, net in trainer.bare.items()},
        "averages": {role: net.state_dict() for role, net in trainer.averages.items()},
        "best": vars(trainer.best).copy(),
        "scores": dict(trainer.scores),
    }


def _everything(trainer: Trainer) -> checkpoint.State:
    own = {
        "generators": checkpoint.generator_states(trainer.world.device),
        "carry": map_tensors(Tensor.cpu, [dict(state) for state in trainer.loop_states]),
        "meter": trainer.meter.state(),
        # Running statistics differ between processes; a task may read them in training (an attack in eval mode).
        "buffers": {role: {k: v.cpu() for k, v in net.named_buffers()} for role, net in trainer.bare.items()},
    }
    return {
        **_weights(trainer),
        "at": vars(trainer.at).copy(),
        "optimizers": {role: optimizer.state_dict() for role, optimizer in trainer.optimizers.items()},
        "probes": {role: probe.state_dict() for role, probe in trainer.probes.items()},
        "scaler": trainer.scaler.state_dict(),
        **({"guard": trainer.guard.state()} if trainer.guard.policy else {}),
        "processes": trainer.world.gather(own),
        "metrics_offset": trainer.record.offset() if trainer.record is not None else 0,
    }


def resume(trainer: Trainer) -> checkpoint.State | None:
    """Put back position, weights, meters and files from the folder's checkpoint; None when there is none.

    Optimizers, probes and generators follow in `put_back_after_wrapping`, once the phase has made them.

    Raises:
        InputError: The checkpoint cannot be read, or its carried state belongs to another number of processes.
    """
    state = _load_latest(trainer)
    if state is None:
        if trainer.record is not None:
            trainer.record.open(0)
        return None
    trainer.at, trainer.best, trainer.scores = Position(**state["at"]), Best(**state["best"]), state["scores"]
    load_weights(trainer, state)
    trainer.scaler.load_state_dict(state["scaler"])
    if "guard" in state:
        trainer.guard.restore(state["guard"])
    saved = state["processes"]
    if len(saved) == trainer.world.size:
        own = saved[trainer.world.rank]
        for role, net in trainer.bare.items():
            for name, buffer in net.named_buffers():
                buffer.copy_(own["buffers"][role][name])
    elif any(_loop_states(process) != [{}] * len(_loop_states(process)) for process in saved):
        raise InputError(
            f"the checkpoint carries state of {len(saved)} processes; resume with GPUS={len(saved)}, "
            f"not {trainer.world.size}"
        )
    else:  # exact in the data, not in what each process draws: say so
        own = saved[0]
        trainer.notes.append(f"resumed with {trainer.world.size} processes where {len(saved)} saved: not bitwise")
    trainer.loop_states = map_tensors(lambda t: t.to(trainer.world.device), _loop_states(own))
    trainer.meter.restore(own["meter"], trainer.world.device)
    trainer.notes.append(f"resumed at step {trainer.at.step}, epoch {trainer.epoch:.4g}")
    if trainer.record is not None:
        trainer.record.open(state["metrics_offset"])
        trainer.record.update(resumed_from=[*trainer.record.record["resumed_from"], trainer.at.step])
    return {**state, "own": own}


def _loop_states(process: Mapping[str, Any]) -> list[LoopState]:
    """Return one process's loop states, one per micro-batch; checkpoints of version 0.1 hold a single dict."""
    carried = process["carry"]
    return carried if isinstance(carried, list) else [carried]


def put_back_after_wrapping(trainer: Trainer, state: checkpoint.State) -> None:
    """Put back optimizers, probes and, last, the random generators."""
    for role, optimizer in trainer.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][role])
    for role, probe in trainer.probes.items():
        probe.load_state_dict(state["probes"][role])
    checkpoint.set_generator_states(state["own"]["generators"], trainer.world.device)


def load_best(trainer: Trainer) -> None:
    """Go back to the best weights so far.

    Raises:
        InputError: There is none yet: the phase before has not been evaluated.
    """
    path = trainer.folder / "checkpoints" / "best.pt"
    if not path.exists():
        raise InputError(f"a phase starts from the best checkpoint, and {path} does not exist")
    load_weights(trainer, checkpoint.load(path, run=trainer.name))


def load_weights(trainer: Trainer, state: checkpoint.State) -> None:
    """Load the networks and their averages."""
    for role, net in trainer.bare.items():
        net.load_state_dict(state["networks"][role])
    for role, average in trainer.averages.items():
        average.load_state_dict(state["averages"][role])


def _load_latest(trainer: Trainer) -> checkpoint.State | None:
    """Read the folder's checkpoint on every process, process 0 first: only it may set a broken file aside."""
    path = checkpoint.latest(trainer.folder / "checkpoints")
    path = trainer.world.share(path)
    if path is None:
        return None
    state = trainer.world.on_main(lambda: checkpoint.load(path, run=trainer.name))
    return state if state is not None else checkpoint.load(path, run=trainer.name)
