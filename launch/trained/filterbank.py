"""A trained audio network: its filterbank, q over training, the score of every tag or word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from evidence.csv_files import write_csv
from evidence.runs.run import ReadError, load_run
from evidence.tables.render import markdown
from launch.trained.restore import build, configuration, weights
from tasks.audio import AudioClassifier, HarmonicCnn
from tasks.audio.scores import per_tag_table, per_word_table
from tasks.base import InputError, Shard

HARMONICS = (1, 2, 4, 6)  # drawn one above the other


def draw(network: HarmonicCnn, q: tuple[Sequence[float], Sequence[float]], path: Path) -> None:
    """Write the picture, and the bands as numbers: centre and width in Hz before and after training.

    Args:
        network: Trained.
        q: Epochs and the values of q there.
        path: Of the picture, without its ending.
    """
    front = network.front
    with torch.no_grad():
        bank = front.filterbank().numpy().reshape(len(front.bins), front.num_harmonics, front.num_levels)
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(len(HARMONICS) + 1, 1)
    for axis, h in zip(axes, [h for h in HARMONICS if h <= front.num_harmonics], strict=False):
        axis.plot(front.bins.numpy(), bank[:, h - 1, ::4], linewidth=0.7)
        axis.set(xlim=(0, float(front.bins[-1])), ylabel=f"harmonic {h}")
    axes[-2].set_xlabel("frequency, Hz (every fourth band)")
    axes[-1].plot(*q, color="black")
    axes[-1].set(xlabel="epoch", ylabel="q")
    figure.suptitle(f"Learned harmonic filters, q = {float(front.q.detach()):.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".png", ".svg"):
        figure.savefig(path.with_suffix(ending), dpi=120)
    centres = front.centres.double().numpy()
    start = 0.1079 * centres + 24.7
    rows = [[f"{c:.4f}", f"{w:.4f}", f"{w / float(front.q.detach()):.4f}"] for c, w in zip(centres, start, strict=True)]
    write_csv(path.with_suffix(".csv"), ["centre, Hz", "width at q = 1, Hz", "width, Hz"], rows)


@torch.no_grad()
def table(task: AudioClassifier, split: str) -> list[list[str]]:
    """Return the table of all tags or words of a split, heads first."""
    splits = {**task.eval_batches(Shard()), **task.test_batches(Shard())}
    task.networks["model"].eval()
    records = [task.predict(task.networks, batch, {}) for batch in splits[split]]
    outputs = torch.cat([output for _, output, _ in records]).numpy()
    targets = torch.cat([target for _, _, target in records]).numpy().astype(np.int64)
    if task.data.multi_label:
        return per_tag_table(task.data.classes, targets, outputs, threshold=task.threshold)
    return per_word_table(task.data.classes, targets, outputs)


def write_filterbank(folder: Path, *, checkpoint: str = "best", split: str = "test", data_root: str = "") -> list[str]:
    """Write a run's filterbank and its scores by tag or word, and return the files' names.

    Args:
        folder: Of a run of an audio experiment.
        checkpoint: "best" or "last".
        split: "val" or "test"; "none" draws only.
        data_root: Where the clips lie now; empty: where the run had them.

    Raises:
        ReadError: The folder holds no run of an audio experiment, or no such checkpoint, or the clips are gone.
    """
    config = configuration(folder)
    if not str(config.get("task", {}).get("_target_", "")).startswith("tasks.audio."):
        raise ReadError(f"run={folder}: is a run of {config.get('experiment_name')}, not of an audio experiment")
    if data_root and "root" in config["task"]["data"]:
        config["task"]["data"]["root"] = data_root
    state = weights(folder, checkpoint)["model"]
    try:
        network = build(config["model"])(num_classes=len(state["head.4.bias"]))
        network.load_state_dict(state)
        run = load_run(folder)
        _, epochs, found = run.series("train/q") if run else ([], [], [])
        draw(network, (epochs, found), folder / "figures" / "filterbank")
        written = [f"figures/filterbank.{ending}" for ending in ("png", "svg", "csv")]
        if split == "none":
            return written
        task = build(config["task"])
    except InputError as error:
        raise ReadError(str(error)) from None
    task.networks["model"].load_state_dict(state)
    heads, *rows = table(task, split)
    write_csv(folder / "tags.csv", heads, rows)
    text = f"# {task.data.name}, {split} split, {checkpoint} weights\n\n{markdown(heads, rows)}\n"
    (folder / "tags.md").write_text(text, encoding="utf-8")
    return [*written, "tags.csv", "tags.md"]
