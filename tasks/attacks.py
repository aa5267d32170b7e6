"""Projected gradient descent on images: the inner attack of adversarial training, as a pure function.

Shapes: B images, C channels, H W pixels, K classes. Images lie in the clip range, [0, 1] unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.base import InputError
from tasks.precision import widen

Norm = Literal["linf", "l2"]
Direction = Literal["steepest", "sign"]
NORMS = ("linf", "l2")


class NonFiniteLossError(InputError):
    """The attacked loss is infinite or not a number, so that its gradient points nowhere."""


@dataclass(frozen=True)
class Attack:
    """The settings of an attack: a ball, and how it is searched.

    Attributes:
        norm: Of the ball.
        epsilon: Its radius, in units of a pixel's full range.
        step_size: Length of a step, in the norm of its direction.
        direction: See `pgd_attack`.
        random_start_train: Whether an attack in training starts at a random point.
        random_start_eval: The same in evaluation.
    """

    norm: Norm
    epsilon: float
    step_size: float
    direction: Direction = "steepest"
    random_start_train: bool = True
    random_start_eval: bool = False


# AdamP paper, section 4.2 and appendix E.4.1; step size and starts are those of the code it names. "paper-l2" is that
# code's attack: sign steps of length 2/255 * sqrt(3072) = 0.435 in a ball of radius 0.314. "l2" follows the gradient.
PRESETS = {
    "paper-linf": Attack("linf", 4 / 255, 2 / 255),
    "paper-l2": Attack("l2", 80 / 255, 2 / 255, "sign"),
    "l2": Attack("l2", 80 / 255, 2.5 * 80 / 255 / 10, random_start_eval=True),
}


def as_length(value: float | str, *, option: str) -> float:
    """Return a radius or step size given as a number or as a fraction such as "4/255".

    Raises:
        InputError: if it is neither, negative or not finite.
    """
    try:
        over, _, under = value.partition("/") if isinstance(value, str) else (value, "", "")
        length = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise InputError(f"{option}={value}: must be a number or a fraction such as 4/255") from None
    if not (length >= 0 and math.isfinite(length)):
        raise InputError(f"{option}={value}: must be finite and at least 0")
    return length


def pgd_attack(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    epsilon: float,
    steps: int,
    step_size: float,
    random_start: bool,
    clip: tuple[float, float] = (0.0, 1.0),
    direction: Direction = "steepest",
    start: Tensor | None = None,
    check_finite: bool = True,
) -> Tensor:
    """Return images that raise the cross-entropy of their labels, within `epsilon` of the given ones.

    With d_0 = 0 or random, and P the projection onto the ball, each step takes
    `d <- clip(x + P(d + step_size * direction(grad))) - x`. The steepest direction is sign(grad) for `linf` and
    grad / ||grad|| of each image for `l2`. Networks in training mode are attacked in evaluation mode and given back
    as they were: dropout off, batch norm with its running statistics and without updating them. Only the gradient to
    the images is taken: gradients and flags of parameters stay as they are, and no graph outlives its step.

    Images below float32 are attacked in float32 and rounded towards the clean image, so the bounds hold in every
    dtype. Differences that float64 can represent are bounded exactly.

    Args:
        network: Maps images (B, C, H, W) to logits (B, K).
        images: (B, C, H, W), floating point, in the clip range; B may be 0.
        labels: (B,) class numbers; the attack is untargeted.
        norm: "linf", the largest change of a pixel, or "l2", the Euclidean length over C, H and W.
        epsilon: Radius of the ball, at least 0.
        steps: Gradient steps, at least 0.
        step_size: Length of a step, at least 0: in Linf for sign steps, in L2 for gradient steps.
        random_start: Start at a uniformly random point of the ball, drawn from torch's global generator.
        clip: Smallest and largest pixel value.
        direction: "steepest", or "sign": moves of the Linf attack whatever the norm, which is what the AdamP paper's
            code does for L2. Its random start is then uniform in the cube [-epsilon, epsilon]; only the projections
            are onto the ball.
        start: A perturbation (B, C, H, W) to start from instead of a drawn one.
        check_finite: Raise where a loss is not finite; without, such an image becomes not a number.

    Returns:
        (B, C, H, W), of the dtype of `images`, without a graph.

    Raises:
        InputError: if an option is out of its range, or `images` leaves the clip range.
        NonFiniteLossError: if the loss of any image is infinite or not a number at any step.

    Reference:
        Madry et al., arXiv:1706.06083.
    """
    _check(images, labels, norm=norm, epsilon=epsilon, steps=steps, step_size=step_size, clip=clip, direction=direction)
    # The start d_0: given, random in the ball, or zero
    clean = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    if start is not None:
        delta = start.detach().to(clean)
    elif random_start:
        delta = random_perturbation(clean, norm="linf" if direction == "sign" else norm, epsilon=epsilon)
    else:
        delta = torch.zeros_like(clean)
    delta = (clean + delta).clamp(*clip) - clean
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    with _evaluation_mode(network), torch.enable_grad():
        for _ in range(steps):
            # Ascend the loss, project onto the ball, clip to the pixel range
            grad, loss = _image_gradient(network, (clean + delta).to(images.dtype), labels)
            finite = finite & loss.isfinite().all() & grad.isfinite().all()
            delta = delta + step_size * _unit(grad.to(clean.dtype), "linf" if direction == "sign" else norm)
            delta = (clean + _project(delta, norm=norm, epsilon=epsilon)).clamp(*clip) - clean
    outside = (clean < clip[0]) | (clean > clip[1]) | clean.isnan()
    # One transfer for both questions: asking the device at every step would stall it.
    all_finite, any_outside = torch.stack([finite, outside.any()]).tolist()
    if any_outside:
        raise InputError(f"images: a pixel lies outside clip={tuple(clip)}")
    if check_finite and not all_finite:
        raise NonFiniteLossError(
            "the attack met a loss or gradient that is not finite: the network's weights have probably diverged; lower "
            "opt.lr, or clip with train.clip_norm"
        )
    return _within(clean, _project(delta, norm=norm, epsilon=epsilon), dtype=images.dtype, clip=clip)


def random_perturbation(
    images: Tensor, *, norm: Norm, epsilon: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return a point drawn uniformly from the ball around zero for each image, float32 or the images' wider dtype.

    Args:
        images: (B, C, H, W); gives shape, dtype and device.
        norm: "linf" draws from the cube, "l2" a Gaussian direction at the radius epsilon * u^(1/n), n = C * H * W.
        epsilon: Radius.
        generator: On the images' device; None is torch's global one.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    form: dict[str, Any] = {"dtype": dtype, "device": images.device, "generator": generator}
    if norm == "linf":
        return epsilon * (2 * torch.rand(images.shape, **form) - 1)
    point = _unit(torch.randn(images.shape, **form), "l2")
    radius = torch.rand((len(images), 1, 1, 1), **form) ** (1 / max(images[:1].numel(), 1))
    return epsilon * radius * point


def _check(
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    epsilon: float,
    steps: int,
    step_size: float,
    clip: tuple[float, float],
    direction: str,
) -> None:
    if norm not in NORMS:
        raise InputError(f"norm={norm}: must be linf or l2")
    if direction not in ("steepest", "sign"):
        raise InputError(f"direction={direction}: must be steepest or sign")
    as_length(epsilon, option="epsilon")
    as_length(step_size, option="step_size")
    if not steps >= 0:
        raise InputError(f"steps={steps}: must be at least 0")
    low, high = clip
    if not low <= high:
        raise InputError(f"clip={tuple(clip)}: must be two numbers, smallest <= largest")
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"images: {images.dtype} of shape {tuple(images.shape)}, not floating point of (B, C, H, W)")
    if labels.shape != images.shape[:1]:
        raise InputError(f"labels: shape {tuple(labels.shape)} does not fit {len(images)} images")


@contextmanager
def _evaluation_mode(network: object) -> Iterator[None]:
    """Put every module into evaluation mode and then back into its own: some may have been frozen there."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _image_gradient(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the summed cross-entropy and the losses (B,), both without a graph.

    The sum, not the mean, which would shrink each image's gradient with the batch.
    """
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(widen(network(images)), labels, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), images)
    return grad, loss.detach()


def _lengths(delta: Tensor) -> Tensor:
    """Return each image's L2 length, (B, 1, 1, 1) float64: squares of small gradients underflow in float32."""
    return torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64).view(-1, 1, 1, 1)


def _unit(grad: Tensor, norm: Norm) -> Tensor:
    """Return the direction of steepest ascent of length 1 in the norm; zero where the gradient is zero."""
    if norm == "linf":
        return grad.sign()
    length = _lengths(grad)
    return torch.where(length > 0, grad / length, 0.0).to(grad.dtype)


def _project(delta: Tensor, *, norm: Norm, epsilon: float) -> Tensor:
    """Return the nearest perturbation in the ball, never outside by rounding."""
    if norm == "linf":
        rounded = torch.tensor(epsilon, dtype=delta.dtype)
        lower = torch.nextafter(rounded, torch.zeros_like(rounded))
        bound = torch.where(rounded.double() > epsilon, lower, rounded).item()
        return delta.clamp(-bound, bound)
    length = _lengths(delta)
    # Each entry of the product rounds by half a unit in the last place at most, so this factor keeps the length below.
    inner = epsilon * (1 - torch.finfo(delta.dtype).eps)
    shrunk = delta * (inner / length.clamp_min(torch.finfo(torch.float64).tiny))
    return torch.where(length > epsilon, shrunk, delta).to(delta.dtype)


def _within(clean: Tensor, delta: Tensor, *, dtype: torch.dtype, clip: tuple[float, float]) -> Tensor:
    """Return clean + delta in the dtype, each pixel rounded towards the clean one.

    No pixel then moves further than delta says, so the sum lies in every ball that delta lies in.
    """
    origin = clean.to(dtype)
    moved = (clean + delta).clamp(*clip).to(dtype)
    too_far = (moved.double() - origin.double()).abs() > delta.double().abs()
    return torch.where(too_far, torch.nextafter(moved, origin), moved)
