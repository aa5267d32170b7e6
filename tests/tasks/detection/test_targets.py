"""CenterNet's targets, losses and decoding against loops over pixels, and their symmetries."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tasks.detection.detector import Objects
from tasks.detection.targets import centernet_losses, decode, encode, focal_loss, gaussian_radius

K, SIDE, STRIDE = 4, 32, 4


def own(count):
    return count


def objects(*rows):
    """Rows of (picture, label, x0, y0, x1, y1)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Objects(table[:, 2:], table[:, 1].long(), table[:, 0].long())


THREE = objects((0, 1, 8, 8, 40, 24), (0, 3, 61, 50, 90.5, 101), (0, 1, 20, 10, 50, 60))


def targets(found, *, batch=1):
    return encode(found, batch=batch, num_classes=K, size=(SIDE, SIDE), stride=STRIDE)


def radius_by_hand(height, width, overlap=0.7):
    roots = []
    for a, b, c in (
        (1, height + width, width * height * (1 - overlap) / (1 + overlap)),
        (4, 2 * (height + width), (1 - overlap) * width * height),
        (4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height),
    ):
        roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    return min(roots)


def heat_by_hand(found):
    """Draw every pixel by itself."""
    heat = np.zeros((K, SIDE, SIDE))
    for label, (x0, y0, x1, y1) in zip(found.labels.tolist(), (found.boxes / STRIDE).tolist(), strict=True):
        column, row = math.floor((x0 + x1) / 2), math.floor((y0 + y1) / 2)
        r = max(0, int(radius_by_hand(math.ceil(y1 - y0), math.ceil(x1 - x0))))
        sigma = (2 * r + 1) / 6
        for y in range(SIDE):
            for x in range(SIDE):
                if abs(y - row) <= r and abs(x - column) <= r:
                    value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                    heat[label, y, x] = max(heat[label, y, x], value)
    return heat


def test_targets_of_three_objects_are_those_drawn_pixel_by_pixel():
    found = targets(THREE)
    np.testing.assert_allclose(found.heat[0].numpy(), heat_by_hand(THREE), atol=1e-6)
    assert (found.heat == 1).sum() == 3
    assert found.sizes.tolist() == [[8, 4], [7.375, 12.75], [7.5, 12.5]]
    centres = [(6, 4), (18.9375, 18.875), (8.75, 8.75)]
    assert found.cells.tolist() == [math.floor(y) * SIDE + math.floor(x) for x, y in centres]
    assert found.offsets.tolist() == [[0, 0], [0.9375, 0.875], [0.75, 0.75]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (17, 9), (100, 128)])
def test_the_radius_is_that_of_the_published_code(height, width):
    found = gaussian_radius(torch.tensor(float(height)), torch.tensor(float(width)))
    assert float(found) == pytest.approx(radius_by_hand(height, width), rel=1e-5)


def test_boxes_are_clipped_and_nothing_is_drawn_of_those_outside():
    found = targets(objects((0, 0, -40, 8, 40, 24), (0, 1, 200, 0, 300, 50), (0, 2, 10, 10, 10, 40)))
    assert found.sizes.tolist() == [[10, 4]]
    assert found.heat[0, 1:].sum() == 0
    full = targets(objects((0, 0, 124, 124, 128, 128)))  # the last pixel of the map
    assert full.cells.tolist() == [SIDE * SIDE - 1]


def test_only_the_first_128_objects_of_a_picture_count():
    rows = [(0, 0, 8, 8, 16, 16)] * 130 + [(1, 0, 8, 8, 16, 16)] * 3
    assert torch.bincount(targets(objects(*rows), batch=2).owner).tolist() == [128, 3]


def as_outputs(found, *, logit=4.0):
    """Return maps that say exactly what the targets say."""
    heat = torch.where(found.heat == 1, logit, -8.0)
    sizes, offsets = torch.zeros(2, len(found.heat), 2, SIDE * SIDE)
    sizes[found.owner, :, found.cells] = found.sizes
    offsets[found.owner, :, found.cells] = found.offsets
    shape = (len(found.heat), 2, SIDE, SIDE)
    return heat, sizes.view(shape), offsets.view(shape)


def test_decoding_gives_back_what_was_encoded():
    both = objects(
        (0, 1, 8, 8, 40, 24), (0, 3, 61, 50, 90.5, 101), (1, 0, 3.3, 77.7, 120.1, 99.9), (1, 2, 0, 0, 128, 128)
    )  # fmt: skip
    for number, found in enumerate(decode(as_outputs(targets(both, batch=2)), stride=STRIDE)):
        mine = both.owner == number
        best = found[: int(mine.sum())]
        assert (best[:, 4] > 0.9).all()
        for box, label in zip(both.boxes[mine], both.labels[mine], strict=True):
            (same,) = best[best[:, 5] == label]
            assert (same[:4] - box).abs().max() < 1e-3  # half a pixel is asked for


def test_decoding_is_a_search_over_all_pixels_of_all_classes():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, K, 8, 8, generator=generator)
    sizes, offsets = torch.rand(2, 1, 2, 8, 8, generator=generator)
    expected = []
    for label in range(K):
        for y in range(8):
            for x in range(8):
                window = logits[0, label, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                if logits[0, label, y, x] == window.max():
                    cx, cy = x + offsets[0, 0, y, x], y + offsets[0, 1, y, x]
                    w, h = sizes[0, :, y, x]
                    box = [STRIDE * v for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)]
                    expected.append([*box, torch.sigmoid(logits[0, label, y, x]), label])
    expected = torch.tensor(sorted(expected, key=lambda row: -row[4]))
    (found,) = decode((logits, sizes, offsets), stride=STRIDE)
    assert found.shape == (100, 6)
    torch.testing.assert_close(found[: len(expected)], expected)
    assert (found[len(expected) :, 4] == 0).all()


def test_targets_of_mirrored_boxes_are_the_mirrored_targets():
    shifted = objects((0, 1, 9, 8, 41, 24), (0, 3, 61, 50, 90.5, 101))  # centres off the borders between pixels
    boxes = shifted.boxes.clone()
    boxes[:, [0, 2]] = SIDE * STRIDE - shifted.boxes[:, [2, 0]]
    plain, mirrored = targets(shifted), targets(Objects(boxes, shifted.labels, shifted.owner))
    torch.testing.assert_close(mirrored.heat, plain.heat.flip(3))
    torch.testing.assert_close(mirrored.sizes, plain.sizes)
    torch.testing.assert_close(mirrored.offsets[:, 0], 1 - plain.offsets[:, 0])


def test_losses_are_those_of_a_loop_over_pixels_and_objects():
    generator = torch.Generator().manual_seed(5)
    outputs = tuple(torch.randn(1, channels, SIDE, SIDE, generator=generator) for channels in (K, 2, 2))
    found = targets(THREE)
    expected = 0.0
    for y, logit in zip(found.heat.flatten().tolist(), outputs[0].flatten().tolist(), strict=True):
        p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        expected -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    loss, parts = centernet_losses(outputs, found, mean=own, size_weight=0.1)
    assert float(parts["heat"]) == pytest.approx(expected / 3, rel=1e-4)
    size = sum(
        abs(float(outputs[1][0, axis].flatten()[cell]) - float(found.sizes[number, axis]))
        for number, cell in enumerate(found.cells.tolist())
        for axis in range(2)
    )
    assert float(parts["size"]) == pytest.approx(size / (6 + 1e-4), rel=1e-5)
    assert float(loss) == pytest.approx(float(parts["heat"] + 0.1 * parts["size"] + parts["offset"]))


def test_the_loss_of_a_batch_without_objects_is_finite_and_so_are_its_gradients():
    outputs = tuple(torch.randn(2, channels, SIDE, SIDE, requires_grad=True) for channels in (K, 2, 2))
    loss, parts = centernet_losses(outputs, targets(objects(), batch=2), mean=own, size_weight=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    torch.testing.assert_close(parts["heat"], focal_loss(outputs[0], torch.zeros_like(outputs[0])))
    assert parts["size"].item() == parts["offset"].item() == 0
    assert all(torch.isfinite(output.grad).all() for output in outputs)


def test_a_perfect_heat_map_costs_nothing_to_speak_of():
    found = targets(THREE)
    assert float(focal_loss(torch.where(found.heat == 1, 12.0, -12.0), found.heat)) < 1e-3


def test_losses_and_gradients_of_halves_with_a_shared_count_average_to_those_of_the_whole():
    generator = torch.Generator().manual_seed(6)
    whole = [torch.randn(2, channels, SIDE, SIDE, generator=generator) for channels in (K, 2, 2)]
    rows = [(0, 1, 8, 8, 40, 24), (1, 3, 61, 50, 90.5, 101), (1, 1, 20, 10, 50, 60)]
    loss, _ = centernet_losses(tuple(whole), targets(objects(*rows), batch=2), mean=own, size_weight=0.1)
    counts = {"centres": 1.5, "coordinates": 3.0}  # means over two processes

    def losses(picture, mine):
        found = targets(objects(*[(0, *row[1:]) for row in mine]))
        means = iter(counts.values())
        outputs = tuple(output[picture : picture + 1] for output in whole)
        return centernet_losses(outputs, found, mean=lambda count: torch.tensor(next(means)), size_weight=0.1)[0]

    halves = (losses(0, rows[:1]) + losses(1, rows[1:])) / 2
    assert float(halves) == pytest.approx(float(loss), rel=1e-4)


def test_l1_is_read_at_the_centres_alone():
    found = targets(THREE)
    outputs = as_outputs(found)
    noise = torch.ones_like(outputs[1])
    noise.flatten(2)[found.owner, :, found.cells] = 0
    _, parts = centernet_losses((outputs[0], outputs[1] + noise, outputs[2]), found, mean=own, size_weight=0.1)
    assert float(parts["size"]) == 0
    assert F.l1_loss(noise, torch.zeros_like(noise)) > 0.9
