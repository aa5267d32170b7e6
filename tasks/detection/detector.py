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
Mean = Callable[[Tensor], Tensor]  # a count in this batch to its mean over all processes and micro-batches of the step


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

    Losses are sums over what is found in a batch divided by a count; the count is the mean over the processes and
    micro-batches of a step, so that the average of their gradients is that of one process with the whole batch.

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
    def losses(
        self, outputs: Outputs, objects: Objects, *, mean: Mean, share: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts by name, computed in float32 at least.

        Args:
            outputs: Of the network.
            objects: Of the same batch.
            mean: Averages a count over the processes and micro-batches of the step.
            share: Of the step's pictures that this batch holds, of the constant added to a count too.
        """

    @abstractmethod
    def counts(self, objects: Objects, *, batch: int, side: int) -> tuple[Tensor, ...]:
        """Return the counts that `losses` takes the mean of, in that order, of a batch without its outputs.

        Args:
            objects: Of the batch.
            batch: B.
            side: S.
        """

    @abstractmethod
    def detections(self, outputs: Outputs) -> list[Tensor]:
        """Return (n, 6) for each picture: box in pixels of the view, score, label; best first."""

    def merged(self, outputs: Outputs, mirrored: Outputs) -> Outputs:
        """Return outputs averaged with those of the mirror images."""
        raise NotImplementedError
