"""Augmentation of single pictures beyond crop and mirror image.

It draws from the global generators of python, numpy and torch, which the loader seeds for each picture; so it repeats
however a run is cut or resumed.

Shapes: S side in pixels; pictures are (3, S, S) uint8 on the way in and out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from tasks.base import InputError
from tasks.checks import check_at_least

Triple = tuple[float, float, float]


class RandAugment:
    """timm's RandAugment, then random erasing with noise: the picture half of timm's EfficientNet recipe.

    Args:
        image_size: S; translations reach to 45 % of it.
        mean: Channel means in [0, 1]: the colour of what a translation or rotation uncovers.
        std: Channel deviations in [0, 1]; erased parts are noise of this mean and deviation.
        magnitude: Strength of the operations, 0 to 10.
        magnitude_std: Deviation of each operation's own strength.
        num_ops: Operations per picture.
        erase_prob: Share of pictures with an erased rectangle.

    Reference:
        Cubuk et al., arXiv:1909.13719; Zhong et al., arXiv:1708.04896; values of `rand-m9-mstd0.5` and
        `--reprob 0.2 --remode pixel` in timm's training documentation.
    """

    def __init__(
        self,
        image_size: int,
        mean: Triple,
        *,
        std: Triple,
        magnitude: float = 9,
        magnitude_std: float = 0.5,
        num_ops: int = 2,
        erase_prob: float = 0.2,
    ) -> None:
        if not 0 <= magnitude <= 10:
            raise InputError(f"task.augment.magnitude={magnitude}: must lie in 0 to 10")
        check_at_least(0, {"task.augment.magnitude_std": magnitude_std, "task.augment.num_ops": num_ops})
        if not 0 <= erase_prob <= 1:
            raise InputError(f"task.augment.erase_prob={erase_prob}: must lie in 0 to 1")
        from timm.data.auto_augment import rand_augment_transform  # seconds to import, and few runs need it
        from timm.data.random_erasing import RandomErasing

        fill = tuple(round(255 * value) for value in mean)
        self._operations = rand_augment_transform(
            f"rand-m{magnitude:g}-mstd{magnitude_std:g}-n{num_ops}",
            {"translate_const": int(0.45 * image_size), "img_mean": fill},
        )
        self._erase = RandomErasing(erase_prob, mode="pixel", device="cpu")
        self._mean, self._std = (255 * torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, picture: Tensor) -> Tensor:
        """Return an augmented picture."""
        changed = self._operations(v2.functional.to_pil_image(picture))
        # timm erases what is normalised already: its noise has mean 0 and deviation 1.
        pixels = (v2.functional.pil_to_tensor(changed) - self._mean) / self._std
        return (self._erase(pixels) * self._std + self._mean).round().clamp(0, 255).to(torch.uint8)


class ColourJitter:
    """Brightness, contrast and saturation jitter and AlexNet's lighting noise, as in clovaai/CutMix-PyTorch.

    The AdamP paper does not mention it, so no experiment uses it by default:
    `+task.augment={_target_: tasks.data.ColourJitter, _partial_: true}`.

    Args:
        image_size: Not used; every augmentation is built from the same facts about the data.
        mean: Not used.
        std: Not used.
        strength: Largest relative change of brightness, contrast and saturation.
        lighting: Deviation of the coefficients of the three principal components of ImageNet's colours.

    Reference:
        Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1.
    """

    # Square roots of the eigenvalues and the eigenvectors of the covariance of ImageNet's colours, in [0, 1].
    VALUES = (0.2175, 0.0188, 0.0045)
    VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

    def __init__(
        self, image_size: int, mean: Triple, *, std: Triple, strength: float = 0.4, lighting: float = 0.1
    ) -> None:
        if not 0 <= strength <= 1:
            raise InputError(f"task.augment.strength={strength}: must lie in 0 to 1")
        if not lighting >= 0:
            raise InputError(f"task.augment.lighting={lighting}: must be at least 0")
        self._jitter: Any = v2.ColorJitter(strength, strength, strength)
        self._lighting = lighting

    def __call__(self, picture: Tensor) -> Tensor:
        """Return a picture of other colours."""
        jittered = self._jitter(picture.contiguous())
        coefficients = self._lighting * torch.randn(3) * torch.tensor(self.VALUES)
        shift = 255 * (torch.tensor(self.VECTORS) @ coefficients).view(3, 1, 1)
        return (jittered + shift).round().clamp(0, 255).to(torch.uint8)
