"""SSD300 and SSD512 on VGG16 with batch norm: torchvision's heads, default boxes, matching, loss and suppression.

Of our own: the last maps of SSD512 (torchvision's `highres` gives other maps than the paper's), channels at other
widths, batch norm behind the added layers, and losses normalised over processes.

Shapes: B pictures, S their side, K classes, A default boxes.
Reference: Liu et al., arXiv:1512.02325.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import box_iou

from tasks.base import InputError
from tasks.detection.detector import Detector, Mean, Objects, Outputs
from tasks.detection.views import SsdView
from tasks.detection.weights import initialise
from tasks.networks.checks import whole_channels
from tasks.precision import widen

# An added map: bottleneck channels, channels, then kernel, stride and padding of its 3x3 (or 4x4) convolution.
_Added = tuple[int, int, int, int, int]
_HALVE: tuple[int, int, int] = (3, 2, 1)


@dataclass(frozen=True)
class _Layout:
    """What differs between the two sizes; scales are those that the paper uses on COCO."""

    steps: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    added: tuple[_Added, ...]


LAYOUTS = {
    300: _Layout(
        steps=(8, 16, 32, 64, 100, 300),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        added=((256, 512, *_HALVE), (128, 256, *_HALVE), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0)),
    ),
    512: _Layout(
        steps=(8, 16, 32, 64, 128, 256, 512),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        scales=(0.04, 0.10, 0.26, 0.42, 0.58, 0.74, 0.90, 1.06),
        added=((256, 512, *_HALVE), *3 * ((128, 256, *_HALVE),), (128, 256, 4, 1, 1)),
    ),
}


class _Maps(nn.Module):
    """VGG16-BN to conv4_3 and conv5_3, fc6 and fc7 as convolutions, and the added layers.

    Args:
        layout: Of the added maps.
        width: Factor on every channel count.
        bn_extras: Batch norm behind fc6, fc7 and the added layers.
        init: Of the VGG layers.
        weights: File of ImageNet weights.
    """

    def __init__(self, layout: _Layout, *, width: float, bn_extras: bool, init: str, weights: str | None) -> None:
        super().__init__()
        plan = [each if isinstance(each, str) else whole_channels(width, each) for each in cfgs["D"]]
        layers = make_layers(plan, batch_norm=True)
        for module in layers:
            if isinstance(module, nn.Conv2d):  # as torchvision's VGG
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.origin = initialise(layers, "vgg16_bn", init=init, path=weights, prefix="features.")
        pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True  # 75 -> 38, the paper's map
        wide = [whole_channels(width, channels) for channels in (512, 1024)]
        self.scale_weight = nn.Parameter(torch.full((wide[0],), 20.0))
        self.features = nn.Sequential(*layers[: pools[3]])
        fc = [nn.MaxPool2d(3, stride=1, padding=1), *_layer(wide[0], wide[1], bn_extras, 3, 1, 6, dilation=6)]
        fc += _layer(wide[1], wide[1], bn_extras, 1, 1, 0)
        blocks = [nn.Sequential(*layers[pools[3] : -1], *fc)]
        channels = wide[1]
        self.channels = [wide[0], wide[1]]
        for narrow, out, kernel, stride, padding in layout.added:
            middle, out = whole_channels(width, narrow), whole_channels(width, out)
            first = _layer(channels, middle, bn_extras, 1, 1, 0)
            blocks.append(nn.Sequential(*first, *_layer(middle, out, bn_extras, kernel, stride, padding)))
            self.channels.append(channels := out)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        x = self.features(images)
        # In float32: the sum of squares of 512 activations overflows half precision.
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(widen(x))]
        for block in self.blocks:
            maps.append(x := block(x))
        return maps


def _layer(
    channels: int, out: int, norm: bool, kernel: int, stride: int, padding: int, *, dilation: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=not norm)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return [conv, *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU(inplace=True)]


class Ssd(SSD, Detector):
    """SSD on VGG16-BN; for 80 classes 34,313,654 parameters at 300 pixels and 36,046,644 at 512.

    The paper's size is not given; its 28.39 AP lies near the published 28.8 of SSD512, not the 25.1 of SSD300.
    Nothing is frozen: with torchvision's default the first stage would be, in the row with ImageNet weights alone.

    Args:
        num_classes: K, without the background.
        image_size: S, 300 or 512.
        width: Factor on every channel count.
        bn_extras: Batch norm behind fc6, fc7 and the added layers too; neither torchvision nor the usual code has it.
        init: "random", or "imagenet" for the thirteen convolutions of VGG; fc6 and fc7 are random in both.
        weights: File of ImageNet weights; None looks in the usual places.
        mean: Colour around pictures that are zoomed out, in [0, 1].
        crop: Zoom out and crop in training.
        colours: Distort colours in training.

    Raises:
        InputError: An option is out of its range, or the weights are missing or do not fit.
    """

    default_boxes: Tensor
    # torchvision's, whose types are not read
    backbone: Any
    head: Any
    proposal_matcher: Any
    compute_loss: Any
    postprocess_detections: Any

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 300,
        width: float = 1.0,
        bn_extras: bool = False,
        init: str = "imagenet",
        weights: str | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        crop: bool = True,
        colours: bool = True,
    ) -> None:
        if image_size not in LAYOUTS:
            raise InputError(f"model.image_size={image_size}: choose 300 or 512, SSD's two sizes")
        layout = LAYOUTS[image_size]
        boxes = DefaultBoxGenerator(
            [list(each) for each in layout.ratios], scales=list(layout.scales), steps=list(layout.steps)
        )
        maps = _Maps(layout, width=width, bn_extras=bn_extras, init=init, weights=weights)
        head = SSDHead(maps.channels, boxes.num_anchors_per_location(), num_classes + 1)
        super().__init__(maps, boxes, (image_size, image_size), num_classes + 1, head=head)
        self.transform = nn.Identity()  # views resize and the task normalises
        self.view = SsdView(image_size, (mean[0], mean[1], mean[2]), crop=crop, colours=colours)
        self.origin = maps.origin
        self.image_size, self._bn_extras = image_size, bn_extras
        # The last map has one cell: batch norm behind it sees one value per picture.
        self.num_examples, self.example_side = (4 if bn_extras else 1), image_size
        with torch.no_grad():
            empty = ImageList(torch.empty(1, 3, image_size, image_size), [(image_size, image_size)])
            sizes = _map_sizes(layout, image_size)
            default_boxes = boxes(empty, [torch.empty(1, 1, size, size) for size in sizes])[0]
        self.register_buffer("default_boxes", default_boxes, persistent=False)  # (A, 4) in pixels

    def forward(self, images: Tensor) -> Outputs:
        """Map normalised pictures (B, 3, S, S) to class logits (B, A, K + 1), background first, and codes (B, A, 4)."""
        if self._bn_extras and self.training and len(images) == 1:
            raise InputError(
                "model.bn_extras=true: batch norm behind the last map, of one cell, needs two pictures in a "
                "micro-batch; raise train.batch_size, or lower train.accumulation or gpus"
            )
        output = self.head(self.backbone(images))
        return output["cls_logits"], output["bbox_regression"]

    def losses(
        self, outputs: Outputs, objects: Objects, *, mean: Mean, share: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return cross-entropy with three hard negatives per positive, plus smooth L1, over the number of positives."""
        logits, codes = (widen(output) for output in outputs)
        targets, matches = self._match(objects, len(logits))
        anchors = [self.default_boxes] * len(logits)
        losses = self.compute_loss(targets, {"cls_logits": logits, "bbox_regression": codes}, anchors, matches)
        positives = _positives(matches)
        # compute_loss divides by this batch's own positives, at least one.
        factor = positives.clamp(min=1) / mean(positives).clamp(min=1e-6)
        parts = {"class": factor * losses["classification"], "box": factor * losses["bbox_regression"]}
        return parts["class"] + parts["box"], parts

    def counts(self, objects: Objects, *, batch: int, side: int) -> tuple[Tensor, ...]:
        return (_positives(self._match(objects, batch)[1]),)

    def _match(self, objects: Objects, batch: int) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
        """Return each picture's boxes and labels, and the box that each default box is matched with (A,), else < 0."""
        targets, matches = [], []
        for number in range(batch):
            in_picture = objects.owner == number
            boxes, labels = objects.boxes[in_picture], objects.labels[in_picture] + 1
            targets.append({"boxes": boxes, "labels": labels})
            none = torch.full((len(self.default_boxes),), -1, dtype=torch.int64, device=boxes.device)
            matches.append(self.proposal_matcher(box_iou(boxes, self.default_boxes)) if len(boxes) else none)
        return targets, matches

    def detections(self, outputs: Outputs) -> list[Tensor]:
        """Return detections: scores above 0.01, at most 400 per class, NMS at 0.45, at most 200 per picture."""
        logits, codes = (output.float() for output in outputs)
        anchors, shapes = [self.default_boxes] * len(logits), [(self.image_size, self.image_size)] * len(logits)
        detections = self.postprocess_detections({"cls_logits": logits, "bbox_regression": codes}, anchors, shapes)
        return [
            torch.cat([each["boxes"], each["scores"][:, None], each["labels"][:, None] - 1.0], dim=1)
            for each in detections
        ]


def _positives(matches: list[Tensor]) -> Tensor:
    return torch.stack([(match >= 0).sum() for match in matches]).sum()


def _map_sizes(layout: _Layout, image_size: int) -> list[int]:
    """Return the sides of the maps: VGG's stride 8 and 16 (rounded up, then down), then the added convolutions."""
    sizes = [-(-image_size // 8)]
    sizes.append(sizes[0] // 2)
    for _, _, kernel, stride, padding in layout.added:
        sizes.append((sizes[-1] + 2 * padding - kernel) // stride + 1)
    return sizes
