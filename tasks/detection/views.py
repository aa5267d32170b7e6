"""Views of detection pictures and their boxes: augmented for training, resized for evaluation.

Shapes: S side of a training view in pixels, n objects. Boxes are x0, y0, x1, y1 with edges, not pixel centres, as
numbers: the first column of pixels reaches from 0 to 1. So a mirror image maps x to width - x.
"""

from __future__ import annotations

import random
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

Objects = tuple[Tensor, Tensor]  # boxes (n, 4) float32, labels (n,) int64


class View(Protocol):
    """What a detector asks of its pictures; `size` is S."""

    size: int

    def train(self, image: Image.Image, boxes: Tensor, *, labels: Tensor) -> tuple[Tensor, Objects]:
        """Return an augmented picture (3, S, S), 0 to 255, and the objects left in it, in its pixels.

        It is uint8, or float32 where its colours were jittered beyond that range.
        """

    def test(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return a picture (3, H, W) uint8, and what maps its pixels back: (4,) scales and shifts of x and y."""


def remaining(boxes: Tensor, labels: Tensor, *, size: int) -> Objects:
    """Return boxes clipped to the view, without those that nothing is left of."""
    clipped = boxes.clamp(0, size)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped[has_area], labels[has_area]


def to_original(boxes: Tensor, back: Tensor) -> Tensor:
    """Map boxes (..., 4) of a test view to pixels of the stored picture.

    Args:
        boxes: In pixels of the view.
        back: (..., 4) scale of x, scale of y, shift of x, shift of y.
    """
    scale, shift = back[..., :2], back[..., 2:]
    return boxes * torch.cat([scale, scale], -1) + torch.cat([shift, shift], -1)


class CenterNetColours:
    """The published code's colour jitter: brightness, contrast and saturation in random order, then lighting noise.

    Each scales towards black, towards the mean grey, or towards the picture's own grey by a factor of 1 +- 0.4 at most;
    both greys are those of the picture as it came. Nothing is rounded or clipped, so values leave 0 to 255.
    """

    STRENGTH, LIGHTING = 0.4, 0.1
    # Square roots of the eigenvalues and the eigenvectors of the covariance of COCO's colours, in [0, 1]; rows R, G, B
    VALUES = (0.2141788, 0.01817699, 0.00341571)
    VECTORS = (
        (-0.56089297, 0.71832671, 0.41158938),
        (-0.5832747, 0.00994535, -0.81221408),
        (-0.58752847, -0.69563484, 0.41340352),
    )

    def __call__(self, picture: Tensor) -> Tensor:
        """Map (3, S, S) uint8 to float32 of the same scale."""
        pixels = picture.float()
        grey = v2.functional.rgb_to_grayscale(pixels)
        for towards in random.sample([torch.zeros(()), grey.mean(), grey], k=3):
            factor = 1 + random.uniform(-self.STRENGTH, self.STRENGTH)
            pixels = factor * pixels + (1 - factor) * towards
        noise = self.LIGHTING * torch.randn(3) * torch.tensor(self.VALUES)
        return pixels + 255 * (torch.tensor(self.VECTORS) @ noise).view(3, 1, 1)


class CenterNetView:
    """One affine map to a square: zoom, shift and mirror image, then colour; black where the picture ends.

    Training: the longer side times one of 0.6, 0.7, ..., 1.3 fills the view, about a point at least 128 pixels inside
    (less in small pictures). Evaluation: the longer side fills the view, or the picture as it is, padded to
    a multiple of 32.

    Args:
        size: Side S of a view.
        crop: Zoom and shift in training; else the whole picture, mirrored or not.
        colours: Jitter colours in training.
        keep_size: Evaluate at the stored size.

    Reference:
        Zhou et al., arXiv:1904.07850, section 4; scales and border as in its published code.
    """

    SCALES = tuple(step / 10 for step in range(6, 14))
    BORDER = 128

    def __init__(self, size: int, *, crop: bool = True, colours: bool = True, keep_size: bool = False) -> None:
        self.size, self.crop, self.keep_size = size, crop, keep_size
        self._colours = CenterNetColours() if colours else None

    def train(self, image: Image.Image, boxes: Tensor, *, labels: Tensor) -> tuple[Tensor, Objects]:
        """Return a random view."""
        width, height = image.size
        side, centre = float(max(width, height)), [width / 2, height / 2]
        if self.crop:
            side *= random.choice(self.SCALES)
            centre = [random.randint(border := self._border(length), length - border) for length in (width, height)]
        mirrored = random.random() < 0.5
        view = self._warp(image, centre, side=side, mirrored=mirrored)
        scale = self.size / side
        moved = (boxes - torch.tensor(centre * 2)) * scale + self.size / 2
        if mirrored:
            moved = torch.stack([self.size - moved[:, 2], moved[:, 1], self.size - moved[:, 0], moved[:, 3]], dim=1)
        picture = v2.functional.pil_to_tensor(view)
        return self._colours(picture) if self._colours else picture, remaining(moved, labels, size=self.size)

    def test(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the whole picture, in the middle of a square or at its own size."""
        width, height = image.size
        if self.keep_size:
            padded = [(length | 31) + 1 for length in (width, height)]
            left, top = (padded[0] - width) // 2, (padded[1] - height) // 2
            view = Image.new("RGB", (padded[0], padded[1]))
            view.paste(image, (left, top))
            return v2.functional.pil_to_tensor(view), torch.tensor([1.0, 1.0, -left, -top])
        side = float(max(width, height))
        view = self._warp(image, [width / 2, height / 2], side=side, mirrored=False)
        scale = side / self.size
        back = torch.tensor([scale, scale, (width - side) / 2, (height - side) / 2])
        return v2.functional.pil_to_tensor(view), back

    def _border(self, length: int) -> int:
        """Return how far inside the centre must lie: 128, halved until it fits."""
        part = 1
        while length - self.BORDER // part <= self.BORDER // part:
            part *= 2
        return self.BORDER // part

    def _warp(self, image: Image.Image, centre: list[Any], *, side: float, mirrored: bool) -> Image.Image:
        """Return the square of side `side` about `centre`. Pillow asks for the map from the view to the picture."""
        step = side / self.size
        across = -step if mirrored else step
        half = self.size / 2
        coefficients = (across, 0.0, centre[0] - across * half, 0.0, step, centre[1] - step * half)
        return image.transform((self.size, self.size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


class SsdView:
    """SSD's augmentation of torchvision's reference training, then a resize to a square; plain resize in evaluation.

    Args:
        size: Side S of a view.
        mean: Channel means in [0, 1]: the colour around a picture that is zoomed out.
        crop: Zoom out and crop in training; else the whole picture, mirrored or not.
        colours: Distort colours in training.

    Reference:
        Liu et al., arXiv:1512.02325, section 2.2 and 3.6.
    """

    def __init__(self, size: int, mean: tuple[float, float, float], *, crop: bool = True, colours: bool = True) -> None:
        self.size = size
        around = {tv_tensors.Image: [255 * value for value in mean], "others": 0}
        self._transform = v2.Compose(
            [
                *([v2.RandomPhotometricDistort()] if colours else []),
                *([v2.RandomZoomOut(fill=around), v2.RandomIoUCrop()] if crop else []),
                v2.RandomHorizontalFlip(),
                v2.Resize((size, size), antialias=True),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def train(self, image: Image.Image, boxes: Tensor, *, labels: Tensor) -> tuple[Tensor, Objects]:
        """Return a random view."""
        framed: Any = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width))
        sample = {"image": tv_tensors.Image(v2.functional.pil_to_tensor(image)), "boxes": framed, "labels": labels}
        transformed = self._transform(sample)
        objects = remaining(transformed["boxes"].as_subclass(Tensor), transformed["labels"], size=self.size)
        return transformed["image"].as_subclass(Tensor), objects

    def test(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the picture stretched to the square."""
        view = v2.functional.resize(v2.functional.pil_to_tensor(image), [self.size, self.size], antialias=True)
        return view, torch.tensor([image.width / self.size, image.height / self.size, 0.0, 0.0])
