"""What detectors see: boxes follow their pixels through every change, and detections find the way back."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.detection.views import CenterNetColours, CenterNetView, SsdView, remaining, to_original
from tests.tasks.detection import layouts


def scene(width, height, box):
    """A black picture with one white rectangle."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels)


def measured(view):
    """Return the edges of what is brighter than half, as the sum of brightness sees them: to a fraction of a pixel."""
    brightness = view[0].float() / 255
    edges = []
    for axis in (0, 1):
        profile = brightness.amax(axis)
        inside = torch.nonzero(profile > 0.5).flatten()
        first, last = int(inside[0]), int(inside[-1])
        before = profile[first - 1] if first else torch.tensor(0.0)
        after = profile[last + 1] if last + 1 < len(profile) else torch.tensor(0.0)
        edges.append((first + 1 - float(profile[first]) - float(before), last + float(profile[last]) + float(after)))
    return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


def seeded(number):
    random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize("number", range(12))
def test_boxes_follow_their_pixels_through_scale_shift_and_mirror_image(number):
    box = (150, 110, 230, 200)
    image = scene(400, 300, box)
    seeded(number)
    view, (boxes, labels) = CenterNetView(128, colours=False).train(
        image, torch.tensor([box], dtype=torch.float32), labels=torch.tensor([3])
    )
    assert view.shape == (3, 128, 128)
    assert labels.tolist() == [3]
    assert boxes[0].tolist() == pytest.approx(measured(view), abs=0.5)


@pytest.mark.parametrize(
    "view",
    [
        CenterNetView(100, crop=False, colours=False),
        SsdView(100, (0.5, 0.5, 0.5), crop=False, colours=False),
    ],
)
def test_without_cropping_training_sees_the_whole_picture_mirrored_or_not(view):
    box = (60, 40, 90, 100)
    image = scene(200, 120, box)
    plain, back = view.test(image)
    seen = set()
    for number in range(8):
        seeded(number)
        shown, (boxes, _) = view.train(image, torch.tensor([box], dtype=torch.float32), labels=torch.tensor([0]))
        mirrored = not shown.equal(plain)
        assert shown.equal(plain.flip(2) if mirrored else plain)
        if not mirrored:
            assert to_original(boxes, back)[0].tolist() == pytest.approx(box)
        seen.add(mirrored)
    assert seen == {False, True}


def test_colours_are_jittered_in_floats_beyond_black_and_white():
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    picture[:, :4] = 255
    views = []
    for number in range(20):
        seeded(number)
        views.append(CenterNetColours()(picture))
    assert all(view.dtype == torch.float32 for view in views)
    assert min(view.min().item() for view in views) < -5
    assert max(view.max().item() for view in views) > 300
    assert any((view != view.round()).any() for view in views)


def test_without_strength_and_lighting_colours_stay(monkeypatch):
    monkeypatch.setattr(CenterNetColours, "STRENGTH", 0.0)
    monkeypatch.setattr(CenterNetColours, "LIGHTING", 0.0)
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(CenterNetColours()(picture), picture.float())


def test_both_mirror_images_and_all_eight_scales_occur():
    view, seen = CenterNetView(64, colours=False), set()
    box = (150, 110, 170, 150)
    image = scene(320, 320, box)
    for number in range(80):
        seeded(number)
        _, (boxes, _) = view.train(image, torch.tensor([box], dtype=torch.float32), labels=torch.tensor([0]))
        if len(boxes) and (boxes > 0).all() and (boxes < 64).all():
            seen.add(round(64 * 20 / 320 / float(boxes[0, 2] - boxes[0, 0]), 1))
    assert seen == {0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3}


@pytest.mark.parametrize(("length", "border"), [(640, 128), (257, 128), (256, 64), (128, 32), (64, 16)])
def test_the_centre_keeps_from_the_border_less_in_small_pictures(length, border):
    assert CenterNetView(64)._border(length) == border


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (96, 96)])
@pytest.mark.parametrize("view", [CenterNetView(96), CenterNetView(96, keep_size=True), SsdView(96, (0.5, 0.5, 0.5))])
def test_the_way_back_from_an_evaluation_view_is_exact(size, view):
    box = (30, 50, 90, 80)
    shown, back = view.test(scene(*size, box))
    assert shown.dtype == torch.uint8
    found = to_original(torch.tensor([measured(shown)]), back)
    scale = float(back[0])
    assert found[0].tolist() == pytest.approx(box, abs=0.6 * max(1.0, scale))


def test_pictures_at_their_size_are_padded_to_multiples_of_32_as_in_the_published_code():
    shown, back = CenterNetView(512, keep_size=True).test(scene(64, 50, (10, 10, 20, 20)))
    assert shown.shape == (3, 64, 96)  # (h | 31) + 1: at least one pixel more
    assert back.tolist() == [1, 1, -16, -7]


def test_what_is_left_of_boxes_is_clipped_and_nothing_is_dropped():
    boxes = torch.tensor([[-5.0, 2, 4, 9], [30, 30, 40, 40], [10, 10, 10, 20], [-9, 0, 0, 5]])
    found, labels = remaining(boxes, torch.arange(4), size=32)
    assert found.tolist() == [[0, 2, 4, 9], [30, 30, 32, 32]]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("number", range(8))
def test_ssds_augmentation_keeps_boxes_on_their_colours(number):
    ((_, box),) = layouts.rectangles(1, seed=9)[0]
    x, y, w, h = box
    image = layouts.paint([(7, box)])
    seeded(number)
    view, (boxes, labels) = SsdView(96, (0.5, 0.5, 0.5)).train(
        image, torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32), labels=torch.tensor([1])
    )
    assert view.shape == (3, 96, 96)
    assert len(boxes) == len(labels) <= 1
    for x0, y0, x1, y1 in boxes.round().long().tolist():
        inside = view[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].float()
        grey = inside.amax(0) - inside.amin(0)
        assert inside.numel() == 0 or (grey > 30).float().mean() > 0.95


def test_a_picture_without_objects_passes():
    for view in (CenterNetView(64), SsdView(64, (0.5, 0.5, 0.5))):
        seeded(1)
        shown, (boxes, labels) = view.train(
            layouts.paint([]), torch.empty(0, 4), labels=torch.empty(0, dtype=torch.int64)
        )
        assert (shown.shape, boxes.shape, labels.shape) == ((3, 64, 64), (0, 4), (0,))
