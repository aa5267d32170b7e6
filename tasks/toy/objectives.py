"""Scale-invariant objectives in two and three dimensions.

Notation: `R` independent problems, one per row; `w` the weight, `(R, 2)` or `(R, 3)`.

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
    Figures 1 and 3, Appendix B. https://arxiv.org/abs/2006.08217
"""

from __future__ import annotations

import torch
from torch import Tensor

OPTIMUM_2D = (0.0, -1.0)
START_2D = (0.001, 1.0)
OPTIMUM_AB = (1.0, 1.0)
START_AB = (-2.0, 2.0)
ANGLE_SCALE = 1.5  # c in a = c psi, b = c phi


def cosine_loss(w: Tensor, *, power: int = 2) -> Tensor:
    """Return `(1 - cos(w, w*))^power` of each row, (R,).

    The paper's equation B.1 asks for the least cosine, which would lead to `-w*`. The losses that the project page's
    videos print are those of power 2; power 1 is what its text describes, up to a constant.
    """
    target = torch.tensor(OPTIMUM_2D, dtype=w.dtype)
    cosine = (w @ target) / w.norm(dim=1) / target.norm()
    return (1 - cosine) ** power


def sphere_coordinates(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b, each (R,): the angles psi (azimuth) and phi (elevation) of each row, times c = 1.5.

    The paper's equation B.2 prints psi as acos(x / z). That has no negative values, so the start would not exist;
    atan2(x, z) reproduces the published paths.
    """
    x, y, z = w.unbind(dim=1)
    return ANGLE_SCALE * torch.atan2(x, z), ANGLE_SCALE * torch.asin(y / w.norm(dim=1))


def on_sphere(a: Tensor, b: Tensor) -> Tensor:
    """Return the points of the unit sphere with these coordinates, (..., 3)."""
    psi, phi = a / ANGLE_SCALE, b / ANGLE_SCALE
    return torch.stack([phi.cos() * psi.sin(), phi.sin(), phi.cos() * psi.cos()], dim=-1)


def rosenbrock(a: Tensor, b: Tensor) -> Tensor:
    """Return `(1 - a)^2 + 300 (b - a^2)^2`, least at (1, 1)."""
    return (1 - a) ** 2 + 300 * (b - a**2) ** 2


def spherical_rosenbrock(w: Tensor) -> Tensor:
    """Return Rosenbrock's function of each row's direction, (R,) (equations B.2 and B.3)."""
    return rosenbrock(*sphere_coordinates(w))


def start_3d() -> Tensor:
    """Return the start of Figure 3, (3,): (a, b) = (-2, 2) at radius 1."""
    return on_sphere(*torch.tensor(START_AB, dtype=torch.float64))


def distance_to_optimum(a: Tensor, b: Tensor) -> Tensor:
    """Return how far (a, b) is from (1, 1), same shape."""
    return ((a - OPTIMUM_AB[0]) ** 2 + (b - OPTIMUM_AB[1]) ** 2).sqrt()
