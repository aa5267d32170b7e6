"""Pictures and tables of a trained audio network: its filterbank, q over training, the score of every tag or word."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/filterbank.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from evidence.runs.run import ReadError, load_run  # noqa: E402
from evidence.tables.render import markdown, write_csv  # noqa: E402
from scripts.options import command, parse  # noqa: E402
from scripts.restore import build, configuration, weights  # noqa: E402
from tasks.audio import AudioClassifier, HarmonicCnn  # noqa: E402
from tasks.audio.scores import per_tag_table, per_word_table  # noqa: E402
from tasks.base import InputError, Shard  # noqa: E402

USAGE = """
usage: python scripts/filterbank.py run=FOLDER [checkpoint=best] [split=test] [data_root=FOLDER]

Draws the learned filterbank of an audio run and q over its training, and scores every tag or word of a split.
Writes RUN/figures/filterbank.png, .svg and .csv, and RUN/tags.csv and tags.md.

  run=FOLDER        a run of speech-commands, mtat or dcase: results/runs/EXPERIMENT/NAME
  checkpoint=best   best or last
  split=test        val or test; none draws only
  data_root=FOLDER  where the clips lie now, if not where the run had them

example: python scripts/filterbank.py run=results/runs/speech-commands/NAME
"""
OPTIONS = {"run": "", "checkpoint": "best", "split": "test", "data_root": ""}
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
        _, epochs, found = load_run(folder).series("train/q")
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


def main(argv: Sequence[str]) -> int:
    values = parse(argv, options=OPTIONS)
    if not values["run"]:
        raise ReadError("run=FOLDER is missing; see --help")
    if values["split"] not in ("val", "test", "none"):
        raise ReadError(f"split={values['split']}: choose val, test or none")
    folder = Path(values["run"])
    written = write_filterbank(
        folder, checkpoint=values["checkpoint"], split=values["split"], data_root=values["data_root"]
    )
    if "tags.md" in written:
        print((folder / "tags.md").read_text(encoding="utf-8"))
    print(f"written to {folder}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
