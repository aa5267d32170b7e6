"""What a trained detector finds: validation pictures with predicted and true boxes, and precision over recall."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from evidence.runs.run import ReadError
from launch.trained.restore import build, configuration, weights
from tasks.base import InputError, Shard
from tasks.data.images import UnreadableImageError
from tasks.detection import Detection
from tasks.detection.evaluation import Evaluation

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
