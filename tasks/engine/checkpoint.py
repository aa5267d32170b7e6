"""Checkpoints: written whole or not at all, read back exactly, never overwritten when they cannot be read."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.base import InputError

FORMAT = 1  # of the file; raise it when its keys change meaning
State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a state beside `path`, then move it there: a reader or a crash sees the old file or the new one.

    The file that stood there before stays as `<stem>.previous.pt` until the next save.

    Raises:
        InputError: The disk refuses, e.g. because it is full; the checkpoint that stood there is untouched.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    # torch reports a short write of its archive as a RuntimeError.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = f"{path} from before is still valid" if path.exists() else "there was none before"
        cause: BaseException = error
        while not isinstance(cause, OSError) and cause.__context__ is not None:
            cause = cause.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]
        raise InputError(f"cannot save a checkpoint in {path.parent}: {reason}; {kept}; run again to resume") from None
    if path.exists():
        _keep_previous(path)
    temporary.replace(path)
    _sync_folder(path.parent)


def _keep_previous(path: Path) -> None:
    previous = path.with_suffix(".previous.pt")
    with contextlib.suppress(OSError):
        previous.unlink(missing_ok=True)
        previous.hardlink_to(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, *, run: str) -> State:
    """Read a checkpoint of the named run onto the CPU.

    Only tensors and plain containers are unpickled. A file that cannot be read, or that belongs to another run, is
    moved aside under a name that nothing overwrites.

    Raises:
        InputError: The file is truncated, not a checkpoint, or another run's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a broken archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise _set_aside(path, f"cannot be read ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "networks" not in state:
        raise _set_aside(path, "is not a checkpoint of this suite, or of another version")
    if state.get("run") != run:
        raise _set_aside(path, f"belongs to the run {state.get('run')!r}")
    return dict(state)


def _set_aside(path: Path, reason: str) -> InputError:
    number = 1
    while (aside := path.with_name(f"{path.stem}.unreadable-{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    previous = path.with_suffix(".previous.pt")
    then = "resume from the checkpoint before it" if previous.exists() else "start over"
    return InputError(f"checkpoint {path} {reason}\nIt is kept as {aside.name}; run the same command again to {then}.")


def latest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the last one, else the one before it, else None."""
    for path in (folder / "last.pt", folder / "last.previous.pt"):
        if path.exists():
            return path
    return None


def generator_states(device: torch.device) -> State:
    """Return the states of this process's random generators, as tensors and plain containers."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    states: State = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: State, device: torch.device) -> None:
    """Put back what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_generators(seed: int, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators; each process its own stream."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
