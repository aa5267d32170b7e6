"""COCO's average precision on cases whose value is known."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.base import InputError
from tasks.detection import CocoSet
from tasks.detection.evaluation import EVALUATORS, Evaluation, average_precision
from tests.tasks.detection import layouts
from tests.tasks.detection.layouts import annotation

EMPTY = np.zeros((0, 6))


def truth(*annotations, images=(1, 2)):
    return {
        "info": {},
        "images": [{"id": image, "width": 200, "height": 200} for image in images],
        "annotations": [{"area": a["bbox"][2] * a["bbox"][3], **a} for a in annotations],
        "categories": [{"id": 1, "name": "one"}, {"id": 7, "name": "seven"}],
    }


TWO = truth(annotation(1, 1, 1, (10, 10, 50, 50)), annotation(2, 2, 7, (20, 30, 40, 60)))


def detected(x, y, w, h, score, category):
    return [x, y, x + w, y + h, score, category]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return CocoSet(str(layouts.write_coco(tmp_path_factory.mktemp("coco"), val=20)), name="small", categories="file")


def perfect(ground_truth):
    found = {image["id"]: [] for image in ground_truth["images"]}
    for each in ground_truth["annotations"]:
        found[each["image_id"]].append(detected(*each["bbox"], 0.9, each["category_id"]))
    return {image: np.array(rows).reshape(-1, 6) for image, rows in found.items()}


def perturbed(ground_truth, *, pixels, seed=0):
    """Move every corner and every score, and add a detection of nothing."""
    random = np.random.RandomState(seed)
    found = perfect(ground_truth)
    for rows in found.values():
        rows[:, :4] += random.uniform(-pixels, pixels, rows[:, :4].shape)
        rows[:, 4] = random.uniform(0.1, 1, len(rows))
    return {image: np.vstack([rows, detected(1, 1, 9, 9, 0.5, 7)]) for image, rows in found.items()}


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_perfect_detections_score_100_and_none_score_0(data, evaluator):
    ground_truth = data.splits["val"].ground_truth()
    scores = Evaluation(ground_truth, perfect(ground_truth), evaluator=evaluator).scores()
    assert [scores[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([100] * 3)
    nothing = dict.fromkeys(perfect(ground_truth), EMPTY)
    assert Evaluation(ground_truth, nothing, evaluator=evaluator).scores()["ap"] == 0


def test_a_known_overlap_counts_up_to_it():
    # 50 x 35 of 50 x 50: an overlap of 0.7, so five of ten thresholds (0.50 ... 0.70) for one class, all for the other.
    found = {1: np.array([detected(10, 10, 50, 35, 0.8, 1)]), 2: np.array([detected(20, 30, 40, 60, 0.8, 7)])}
    scores = Evaluation(TWO, found).scores()
    assert scores["ap"] == pytest.approx(75)
    assert (scores["ap50"], scores["ap75"]) == pytest.approx((100, 50))


def test_a_better_scored_false_detection_halves_the_precision_of_its_class():
    found = {
        1: np.array([detected(10, 10, 50, 50, 0.8, 1), detected(120, 120, 30, 30, 0.9, 1)]),
        2: np.array([detected(20, 30, 40, 60, 0.8, 7)]),
    }
    assert Evaluation(TWO, found).scores()["ap"] == pytest.approx(75)
    found[1][1, 4] = 0.1  # scored lower, it costs nothing
    assert Evaluation(TWO, found).scores()["ap"] == pytest.approx(100)


def test_a_crowd_region_makes_what_it_covers_neither_right_nor_wrong():
    crowd = annotation(3, 1, 1, (100, 100, 80, 80), iscrowd=1)
    found = {1: np.array([detected(10, 10, 50, 50, 0.8, 1), detected(110, 110, 20, 20, 0.9, 1)]), 2: EMPTY}
    one = truth(annotation(1, 1, 1, (10, 10, 50, 50)))
    assert Evaluation(one, found).scores()["ap50"] == pytest.approx(50)
    one["annotations"].append({**crowd, "area": 6400})
    assert Evaluation(one, found).scores()["ap50"] == pytest.approx(100)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("ids", [(0, 1), (5, 5)])
def test_ids_of_boxes_that_are_0_or_come_twice_change_no_score(ids, evaluator):
    two = truth(annotation(ids[0], 1, 1, (10, 10, 50, 50)), annotation(ids[1], 2, 7, (20, 30, 40, 60)))
    assert (
        Evaluation(two, perfect(two), evaluator=evaluator).scores()
        == Evaluation(TWO, perfect(TWO), evaluator=evaluator).scores()
    )


@pytest.mark.parametrize("pixels", [1.0, 3.0, 6.0])
def test_the_scores_are_those_of_pycocotools_on_result_files_and_of_the_fast_evaluator(data, tmp_path, pixels):
    ground_truth = data.splits["val"].ground_truth()
    found = perturbed(ground_truth, pixels=pixels)
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    results = [
        {"image_id": image, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": s}
        for image, rows in found.items()
        for x0, y0, x1, y1, s, c in rows.tolist()
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    official = COCO(str(tmp_path / "truth.json"))
    judged = COCOeval(official, official.loadRes(str(tmp_path / "results.json")), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    ours, fast = (Evaluation(ground_truth, found, evaluator=evaluator).scores() for evaluator in EVALUATORS)
    assert 0 < ours["ap"] < 100
    assert list(ours.values()) == [100 * value for value in np.delete(judged.stats, [9, 10, 11]) if value >= 0]
    assert fast == pytest.approx(ours)


def test_shards_in_any_cut_score_as_the_whole_and_a_repeated_picture_counts_once(data):
    ground_truth = data.splits["val"].ground_truth()
    found = perturbed(ground_truth, pixels=3)
    ids = list(found)
    whole = average_precision(ground_truth, [(ids, list(found.values()))])
    cut = [(ids[i : i + 3], [found[image] for image in ids[i : i + 3]]) for i in range(0, len(ids), 3)]
    assert average_precision(ground_truth, cut) == whole
    assert average_precision(ground_truth, [*cut, cut[0]]) == whole


def test_a_picture_that_could_not_be_read_is_not_held_against_the_others():
    found = {1: np.array([detected(10, 10, 50, 50, 0.8, 1)])}  # picture 2 is missing
    assert Evaluation(TWO, found).scores()["ap"] == pytest.approx(100)


def test_the_precision_curve_of_a_class_found_half_is_one_and_then_zero():
    half = truth(annotation(1, 1, 1, (10, 10, 50, 50)), annotation(2, 2, 1, (10, 10, 50, 50)))
    curve = Evaluation(half, {1: np.array([detected(10, 10, 50, 50, 0.8, 1)]), 2: EMPTY}).precision(0.5)
    assert curve.shape == (101,)
    assert curve.tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)


def test_detections_that_are_not_finite_and_unknown_evaluators_are_refused():
    with pytest.raises(InputError, match=r"first: id 2\) are not finite"):
        Evaluation(TWO, {1: EMPTY, 2: np.array([detected(np.nan, 0, 1, 1, 0.5, 1)])})
    with pytest.raises(InputError, match="evaluator=other"):
        Evaluation(TWO, {1: EMPTY}, evaluator="other")
