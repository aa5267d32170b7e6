"""The interface of detectors: outputs, losses and detections.

Shapes: B pictures, S their side, N objects of all of them together, n detections of one picture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tasks.detection.views import View

Outputs = tuple[Tensor, ...]
Mean = Callable[[Tensor], Tensor]  # a count in this process's batch to its mean over all processes


@dataclass(frozen=True)
class Objects:
    """The objects of a batch.

    Attributes:
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the view.
        labels: (N,) int64, 0..K-1.
        owner: (N,) int64, the picture in the batch, ascending.
    """

    boxes: Tensor
    labels: Tensor
    owner: Tensor


class Detector(nn.Module):
    """A network, its losses and how its outputs become boxes.

    Losses are sums over what is found in a batch divided by a count; the count is the mean over processes, so that the
    average of the processes' gradients is that of one process with the whole batch.

    Attributes:
        view: How it sees pictures.
        origin: Where its first weights come from, in words.
        num_examples: Pictures that show, in one pass, which weights have no scale: enough for every batch norm.
        example_side: Side of the part of them that is enough.
        MERGES: Whether outputs of a picture and its mirror image can be averaged.
    """

    view: View
    origin: str
    num_examples: int
    example_side: int
    MERGES: ClassVar[bool] = False

    @abstractmethod
    def losses(self, outputs: Outputs, objects: Objects, *, mean: Mean) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts by name, computed in float32."""

    @abstractmethod
    def detections(self, outputs: Outputs) -> list[Tensor]:
        """Return (n, 6) for each picture: box in pixels of the view, score, label; best first."""

    def merged(self, outputs: Outputs, mirrored: Outputs) -> Outputs:
        """Return outputs averaged with those of the mirror images."""
        raise NotImplementedError
