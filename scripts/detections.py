"""Draw what a trained detector finds: validation pictures with predicted and true boxes, and precision over recall."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/detections.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from evidence.runs.run import ReadError  # noqa: E402
from scripts.options import command, parse  # noqa: E402
from scripts.restore import build, configuration, weights  # noqa: E402
from tasks.base import InputError, Shard  # noqa: E402
from tasks.data.images import UnreadableImageError  # noqa: E402
from tasks.detection import Detection  # noqa: E402
from tasks.detection.evaluation import Evaluation  # noqa: E402

USAGE = """
usage: python scripts/detections.py run=FOLDER [KEY=VALUE ...]

Reads a trained detector, evaluates it on its validation pictures, and writes two pictures: pictures with the true boxes
(dashed) and those found (solid, with class and score), and precision over recall.

  run=FOLDER          a run of a detection experiment, results/runs/EXPERIMENT/NAME
  pictures=12         validation pictures to show, spread evenly over the split
  threshold=auto      least score of a box that is shown; auto: 0.3, or, while fewer boxes reach it than there are true
                      ones, the score that as many reach
  checkpoint=best     best or last
  out=FOLDER          where the pictures go; default RUN/figures
  data_root=FOLDER    where the pictures and boxes lie now, if not where the run had them

example: python scripts/detections.py run=results/runs/coco-centernet/NAME threshold=0.5
"""
OPTIONS = {"run": "", "pictures": "12", "threshold": "auto", "checkpoint": "best", "out": "", "data_root": ""}
TRUE, FOUND = "#ffffff", "#ffb000"
OVERLAPS = (0.5, 0.75, 0.9)
Found = dict[int, NDArray[Any]]  # image id -> (n, 6): box, score, category id


def load(folder: Path, checkpoint: str, *, data_root: str) -> Detection:
    """Build a run's task with the weights of a checkpoint, in evaluation mode.

    Raises:
        ReadError: The folder holds no run of a detection experiment, or no such checkpoint.
        InputError: The run's data is not where it was.
    """
    config = configuration(folder)
    node = dict(config.get("task") or {})
    if not str(node.get("_target_", "")).startswith("tasks.detection."):
        raise ReadError(f"run={folder}: is a run of {config.get('experiment_name')}, not of a detection experiment")
    node["model"] = {**node["model"], "init": "random"}  # the checkpoint has them all
    node["num_workers"] = 0
    if data_root:
        node["data"] = {**node["data"], "root": data_root}
    state = weights(folder, checkpoint).get("model", {})
    task: Detection = build(node)
    net = task.networks["model"]
    if net.state_dict().keys() != state.keys():
        raise ReadError(f"{folder / 'checkpoints'}: {checkpoint}.pt holds no detector of this run's configuration")
    net.load_state_dict(state)
    net.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return task


@torch.no_grad()
def detect(task: Detection) -> Found:
    """Return the detections of the whole validation split."""
    device = next(task.networks["model"].parameters()).device
    found: Found = {}
    for batch in task.eval_batches(Shard())["val"]:
        images, rows = task.predict(task.networks, [tensor.to(device) for tensor in batch], {})
        found |= dict(zip(images, rows, strict=True))
    return found


def visible(task: Detection, found: Found, *, usual: float = 0.3) -> float:
    """Return the score from which boxes are shown: the usual one, or less for a network that is not yet sure of any."""
    data = task.data
    true = sum(len(data.objects("val", number)[0]) for number in range(data.num_examples["val"]))
    scores = np.concatenate([np.zeros(0), *(rows[:, 4] for rows in found.values())])
    best = np.sort(scores)[::-1][:true]
    return min(usual, math.floor(1000 * best[-1]) / 1000) if len(best) else usual


def draw_pictures(task: Detection, found: Found, out: Path, *, pictures: int, threshold: float | None) -> None:
    """Draw validation pictures with their true boxes and those found."""
    data = task.data
    threshold = visible(task, found) if threshold is None else threshold
    names = dict(zip(data.category_ids, data.classes, strict=True))
    chosen = np.linspace(0, data.num_examples["val"] - 1, min(pictures, data.num_examples["val"])).round().astype(int)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3 * columns, 3.1 * rows), layout="constrained")
    for ax in figure.subplots(rows, columns, squeeze=False).flat:
        ax.set_axis_off()
    for ax, number in zip(figure.axes, chosen.tolist(), strict=False):
        image_id = data.image_id("val", number)
        ax.set_title(f"image {image_id}", fontsize=7)
        try:
            ax.imshow(data.image("val", number))
        except UnreadableImageError:
            ax.text(0.5, 0.5, "cannot be read", ha="center", transform=ax.transAxes)
            continue
        boxes, _ = data.objects("val", number)
        for x0, y0, x1, y1 in boxes.tolist():
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=TRUE, linewidth=1, linestyle="--"))
        for x0, y0, x1, y1, score, category in found.get(image_id, np.zeros((0, 6))).tolist():
            if score >= threshold:
                ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=FOUND, linewidth=1.2))
                mark = f"{names[int(category)]} {score:.2f}"
                box = {"facecolor": FOUND, "edgecolor": "none", "pad": 0.6}
                ax.text(x0, max(y0, 0), mark, fontsize=5, color="black", va="bottom", bbox=box, clip_on=True)
    figure.suptitle(f"{data.name}: true boxes dashed, found boxes (score of {threshold:g} and more) solid", fontsize=8)
    _save(figure, out)


def draw_curves(task: Detection, found: Found, out: Path) -> dict[str, float]:
    """Draw precision over recall, a mean over classes, at three overlaps, and return the scores."""
    evaluation = Evaluation(task.data.splits["val"].ground_truth(), found, evaluator=task.evaluator)
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    ax = figure.subplots()
    recall = np.linspace(0, 1, 101)
    for overlap, style in zip(OVERLAPS, ("-", "--", ":"), strict=True):
        precision = evaluation.precision(overlap)
        ax.plot(recall, precision, style, label=f"overlap {overlap:g}: AP {100 * precision.mean():.1f}")
    scores = evaluation.scores()
    ax.set(xlabel="recall", ylabel="precision, mean over classes", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_title(f"{task.data.name}, {len(found)} pictures: AP {scores['ap']:.1f}", fontsize=9)
    ax.legend(frameon=False, fontsize=8)
    _save(figure, out)
    return scores


def write_detections(
    folder: Path, *, pictures: int = 12, threshold: float | None = None, checkpoint: str = "best", out: str = "",
    data_root: str = "",
) -> dict[str, float]:  # fmt: skip
    """Write `detections.png` and `precision-recall.png` of a run, and return its scores.

    Raises:
        ReadError: The folder holds no run of a detection experiment, or no such checkpoint.
    """
    try:
        task = load(folder, checkpoint, data_root=data_root)
        found = detect(task)
        figures = Path(out) if out else folder / "figures"
        draw_pictures(task, found, figures / "detections.png", pictures=pictures, threshold=threshold)
        return draw_curves(task, found, figures / "precision-recall.png")
    except InputError as error:
        raise ReadError(str(error)) from None


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"picture  {path}")


def main(words: Sequence[str]) -> int:
    """Read, evaluate, draw and print the scores."""
    options = parse(words, options=OPTIONS)
    if not options["run"]:
        raise ReadError("run= is missing: the folder of a run, results/runs/EXPERIMENT/NAME")
    if not options["pictures"].isdecimal() or int(options["pictures"]) < 1:
        raise ReadError(f"pictures={options['pictures']}: must be a whole number, at least 1")
    threshold = None
    if options["threshold"] != "auto":
        try:
            threshold = float(options["threshold"])
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise ReadError(f"threshold={options['threshold']}: must lie in 0 to 1, or be auto")
    scores = write_detections(
        Path(options["run"]), pictures=int(options["pictures"]), threshold=threshold,
        checkpoint=options["checkpoint"], out=options["out"], data_root=options["data_root"],
    )  # fmt: skip
    print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
