"""CenterNet's targets and losses: Gaussian heat map of centres, box sizes, and sub-pixel offsets.

Shapes: B pictures, K classes, H W the output map (a quarter of the view), N objects of all pictures together.
Reference: Zhou et al., arXiv:1904.07850, section 3; details as in its published code, from which we differ in one
point: coordinates count edges, not pixel centres, so a box may reach to W where there it reaches to W - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.detection.detector import Mean, Objects
from tasks.precision import widen

MIN_OVERLAP = 0.7
MAX_OBJECTS = 128  # of one picture, the first in the file's order


@dataclass(frozen=True)
class Targets:
    """What the maps should be.

    Attributes:
        heat: (B, K, H, W) in 0..1, exactly 1 at each centre.
        cells: (N,) position of each centre in a map, row * W + column.
        owner: (N,) picture of each object.
        sizes: (N, 2) width and height in output pixels.
        offsets: (N, 2) centre minus the corner of its pixel, in 0..1.
    """

    heat: Tensor
    cells: Tensor
    owner: Tensor
    sizes: Tensor
    offsets: Tensor


def gaussian_radius(height: Tensor, width: Tensor, *, overlap: float = MIN_OVERLAP) -> Tensor:
    """Return how far a corner may move before the overlap with the box falls below `overlap`, as CornerNet's code.

    Three cases: both corners inside, both outside, one each. That code takes (b + sqrt(b^2 - 4ac)) / 2 for the root in
    all of them, not / 2a; every published CenterNet is trained so, and so are ours.

    Args:
        height: Of the boxes, output pixels.
        width: Of the boxes.
        overlap: Intersection over union.
    """
    perimeter, area = height + width, height * width
    cases = (
        (1.0, perimeter, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * perimeter, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * perimeter, (overlap - 1) * area),
    )
    roots = [(b + (b * b - 4 * a * c).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0)


def encode(objects: Objects, *, batch: int, num_classes: int, size: tuple[int, int], stride: int) -> Targets:
    """Return the targets of a batch.

    Boxes are clipped to the map; those without area are left out, and those beyond the 128th of a picture.

    Args:
        objects: In pixels of the view.
        batch: B.
        num_classes: K.
        size: H, W.
        stride: Pixels of the view in one of the map.
    """
    height, width = size
    # Rank of each object within its picture
    first = torch.searchsorted(objects.owner, torch.arange(batch, device=objects.owner.device))
    rank = torch.arange(len(objects.owner), device=objects.owner.device) - first[objects.owner]
    # Boxes on the map's grid; drop the empty ones and those beyond MAX_OBJECTS
    limits = torch.tensor([width, height, width, height], device=objects.boxes.device)
    boxes = (objects.boxes.float() / stride).clamp(min=0).minimum(limits)
    sizes = boxes[:, 2:] - boxes[:, :2]
    used = (sizes > 0).all(1) & (rank < MAX_OBJECTS)
    boxes, sizes, labels, owner = boxes[used], sizes[used], objects.labels[used], objects.owner[used]
    # Centres, their cells, and the Gaussian radius of each box
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centres.floor()
    up = sizes.double().ceil()
    radius = gaussian_radius(up[:, 1], up[:, 0]).floor().clamp(min=0).float()
    heat = draw(cells, radius, maps=owner * num_classes + labels, count=batch * num_classes, size=size)
    position = (cells[:, 1] * width + cells[:, 0]).long()
    return Targets(heat.view(batch, num_classes, height, width), position, owner, sizes, centres - cells)


def draw(centres: Tensor, radius: Tensor, *, maps: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Return maps (count, H, W), each the maximum of its objects' Gaussians, all objects at once.

    A Gaussian of deviation (2 r + 1) / 6 ends r pixels from its centre to each side. It is the outer product of its
    column and its row, so N (2 R + 1) exponentials are computed and N (2 R + 1)^2 pixels written, R the largest radius.

    Args:
        centres: (N, 2) column and row of each centre, whole numbers.
        radius: (N,) r, whole numbers.
        maps: (N,) the map of each object.
        count: Number of maps.
        size: H, W.
    """
    height, width = size
    reach = _reach(radius, size)
    away = torch.arange(-reach, reach + 1, device=centres.device)  # (2 R + 1,)
    bump = torch.exp(-away.square() / (2 * ((2 * radius[:, None] + 1) / 6).square()))
    bump = bump.where(away.abs() <= radius[:, None], torch.zeros_like(bump))  # (N, 2 R + 1)
    columns, rows = (centres[:, axis, None].long() + away for axis in (0, 1))
    # What lies outside the map goes to its edge as 0, which is no maximum
    sides = [bump * ((place >= 0) & (place < length)) for place, length in ((columns, width), (rows, height))]
    bumps = sides[1][:, :, None] * sides[0][:, None, :]  # (N, 2 R + 1, 2 R + 1)
    pixels = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    pixels += (maps * (height * width))[:, None, None]
    heat = _zeros(count * height * width, like=bumps)
    return heat.scatter_reduce_(0, pixels.flatten(), bumps.flatten(), "amax").view(count, height, width)


def _reach(radius: Tensor, size: tuple[int, int]) -> int:
    """Return the largest radius, or on a GPU, where reading it would wait, that of a box as large as the map."""
    if radius.device.type == "cpu":
        return int(radius.amax()) if len(radius) else 0
    return int(gaussian_radius(*(torch.tensor(float(length)) for length in size)))


def _zeros(length: int, *, like: Tensor) -> Tensor:
    # A batch of 64 at COCO's size has 336 MB of zeros. numpy takes them as untouched pages from the system, where torch
    # writes every one, which takes longer than drawing.
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return torch.from_numpy(np.zeros(length, np.float32))
    return like.new_zeros(length)


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Return the sum of the pixel-wise focal loss of the heat maps (equation 1 of the paper, before dividing by N).

    Probabilities are kept in 1e-4..1 - 1e-4 as in the published code: beyond, the gradient is zero.
    """
    p = torch.sigmoid(widen(logits)).clamp(1e-4, 1 - 1e-4)
    centre = heat == 1
    at_centres = (1 - p).square() * p.log()
    elsewhere = (1 - heat).pow(4) * p.square() * torch.log1p(-p)
    return -torch.where(centre, at_centres, elsewhere).sum()


def at_centres(values: Tensor, targets: Targets) -> Tensor:
    """Return a map's (B, C, H, W) values at the objects' centres, (N, C)."""
    return values.flatten(2)[targets.owner, :, targets.cells]


def centernet_counts(targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the number of centres (pixels that are exactly 1), and twice the number of objects, 0-d each."""
    return (targets.heat == 1).sum(), torch.tensor(float(targets.sizes.numel()), device=targets.heat.device)


def centernet_losses(
    outputs: tuple[Tensor, Tensor, Tensor], targets: Targets, *, mean: Mean, size_weight: float, share: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return focal loss + size_weight x size loss + offset loss, and the three parts.

    The focal loss is divided by the number of centres (pixels that are exactly 1), or by nothing where there is none;
    the L1 losses by twice the number of objects plus 1e-4.

    Args:
        outputs: Heat-map logits (B, K, H, W), sizes (B, 2, H, W), offsets (B, 2, H, W).
        targets: Of the same batch.
        mean: Averages a count over processes and micro-batches.
        size_weight: 0.1 in the paper.
        share: Of the step's pictures that the batch holds: its part of the 1e-4.
    """
    logits, sizes, offsets = outputs
    centres, count = (mean(count) for count in centernet_counts(targets))
    count = count + 1e-4 * share
    parts = {
        "heat": focal_loss(logits, targets.heat) / centres.where(centres > 0, torch.ones_like(centres)),
        "size": F.l1_loss(at_centres(widen(sizes), targets), targets.sizes, reduction="sum") / count,
        "offset": F.l1_loss(at_centres(widen(offsets), targets), targets.offsets, reduction="sum") / count,
    }
    return parts["heat"] + size_weight * parts["size"] + parts["offset"], parts


def decode(outputs: tuple[Tensor, Tensor, Tensor], *, stride: int, most: int = 100) -> list[Tensor]:
    """Return each picture's (n, 6) detections: box in pixels of the view, score, label; no suppression, no threshold.

    A detection is a pixel that none of its eight neighbours exceeds, among the `most` highest of all classes.

    Args:
        outputs: As for `centernet_losses`.
        stride: Pixels of the view in one of the map.
        most: Detections per picture.
    """
    logits, sizes, offsets = (output.float() for output in outputs)
    batch, num_classes, height, width = logits.shape
    # Peaks: 3x3 max pooling in place of non-maximum suppression
    heat = torch.sigmoid(logits)
    peaks = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    scores, indices = peaks.flatten(1).topk(min(most, num_classes * height * width))  # (B, n)
    # Boxes from the size and offset maps at the peaks
    labels, cells = indices // (height * width), indices % (height * width)
    rows = torch.arange(batch, device=logits.device)[:, None]
    centres = torch.stack([cells % width, cells // width], dim=2) + offsets.flatten(2)[rows, :, cells]
    half = sizes.flatten(2)[rows, :, cells] / 2
    boxes = stride * torch.cat([centres - half, centres + half], dim=2)
    return list(torch.cat([boxes, scores.unsqueeze(2), labels.unsqueeze(2)], dim=2))
