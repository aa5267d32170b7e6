"""COCO's average precision by pycocotools, from the detections of a whole split.

Shapes: n detections of one picture, T overlaps (0.50 to 0.95), R recalls (0 to 1 in 101 steps), K classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import InputError

EVALUATORS = ("pycocotools", "faster_coco_eval")
# Names of the first six numbers of COCO's summary: AP is the mean over ten overlaps and all classes.
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RECALLS = {6: "ar1", 7: "ar10", 8: "ar100"}  # recall with so many detections a picture


class Evaluation:
    """COCO's evaluation of boxes.

    Args:
        ground_truth: In COCO's own format, crowd regions included; the ids of its annotations do not matter.
        detections: Image id -> (n, 6): x0, y0, x1, y1 in pixels of the stored picture, score, category id. Every
            picture evaluated must be a key, without detections too: (0, 6).
        evaluator: "pycocotools", whose numbers count, or "faster_coco_eval", the same in C++.

    Raises:
        InputError: The evaluator is not known, or a detection is not finite.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        detections: Mapping[int, NDArray[np.floating[Any]]],
        *,
        evaluator: str = "pycocotools",
    ) -> None:
        if evaluator not in EVALUATORS:
            raise InputError(f"task.evaluator={evaluator}: choose one of {', '.join(EVALUATORS)}")
        bad = [image for image, rows in detections.items() if not np.isfinite(rows).all()]
        if bad:
            raise InputError(f"detections of {len(bad)} pictures (first: id {bad[0]}) are not finite; lower opt.lr")
        if evaluator == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        with redirect_stdout(io.StringIO()):  # both print what they do
            truth, results = COCO(), COCO()
            # Numbered anew: pycocotools keeps one box per id, and takes the id 0 for "nothing matched"
            boxes = [{**box, "id": number} for number, box in enumerate(ground_truth["annotations"], start=1)]
            truth.dataset = {**ground_truth, "annotations": boxes}
            truth.createIndex()
            # Not loadRes, which fails where nothing was found.
            results.dataset = {
                "info": {}, "images": ground_truth["images"], "categories": ground_truth["categories"],
                "annotations": _as_annotations(detections),
            }  # fmt: skip
            results.createIndex()
            self._eval = COCOeval(truth, results, "bbox")
            self._eval.params.imgIds = sorted(detections)
            self._eval.evaluate()
            self._eval.accumulate()
            self._eval.summarize()

    def scores(self) -> dict[str, float]:
        """Return AP and recall in percent; a size of which there is no object is left out."""
        numbers = [float(value) for value in self._eval.stats]
        named = dict(zip(SCORES, numbers, strict=False)) | {name: numbers[i] for i, name in RECALLS.items()}
        return {name: 100 * value for name, value in named.items() if value >= 0}  # -1: no object

    def precision(self, overlap: float) -> NDArray[np.float64]:
        """Return the mean precision over classes with objects at 101 recalls, (R,), for an overlap such as 0.5."""
        params = self._eval.params
        row = int(np.flatnonzero(np.isclose(params.iouThrs, overlap))[0])
        curves = np.asarray(self._eval.eval["precision"])[row, :, :, 0, -1]  # (R, K) for all areas and 100 detections
        present = curves[:, (curves >= 0).all(0)]
        return present.mean(1) if present.size else np.zeros(len(curves))


def _as_annotations(detections: Mapping[int, NDArray[np.floating[Any]]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for image, rows in detections.items():
        for x0, y0, x1, y1, score, category in np.asarray(rows, dtype=np.float64).tolist():
            width, height = x1 - x0, y1 - y0
            results.append(
                {
                    "id": len(results) + 1, "image_id": image, "category_id": int(category), "score": score,
                    "bbox": [x0, y0, width, height], "area": width * height, "iscrowd": 0,
                }
            )  # fmt: skip
    return results


def average_precision(
    ground_truth: Mapping[str, Any],
    records: Sequence[tuple[Sequence[int], Sequence[NDArray[np.floating[Any]]]]],
    *,
    evaluator: str = "pycocotools",
) -> dict[str, float]:
    """Return the scores of records (image ids, their detections), each picture counted once.

    A picture that comes again, as padded samplers hand out, would change AP; its first detections count.
    """
    merged: dict[int, NDArray[np.floating[Any]]] = {}
    for images, detected in records:
        for image, rows in zip(images, detected, strict=True):
            merged.setdefault(int(image), rows)
    return Evaluation(ground_truth, merged, evaluator=evaluator).scores()
