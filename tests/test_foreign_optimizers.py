"""The optimizers of other packages in configs/opt make the first step that their papers print."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

import scripts.train  # noqa: F401  (registers the schema of train.*)
from tests.configurations import CONFIGS

Step = Callable[[Tensor, Tensor, Any], Tensor]


def sgd(w: Tensor, g: Tensor, o: Any) -> Tensor:
    g = g + o.weight_decay * w
    return w - o.lr * (1 + o.momentum * o.nesterov) * g


def adam(w: Tensor, g: Tensor, o: Any) -> Tensor:
    g = g + o.weight_decay * w
    return w - o.lr * g / (g.abs() + o.eps)


def adamw(w: Tensor, g: Tensor, o: Any) -> Tensor:
    return (1 - o.lr * o.weight_decay) * w - o.lr * g / (g.abs() + o.eps)


def nadam(w: Tensor, g: Tensor, o: Any) -> Tensor:
    g = g + o.weight_decay * w
    beta1 = o.betas[0]
    first, second = (beta1 * (1 - 0.5 * 0.96 ** (t * o.momentum_decay)) for t in (1, 2))
    return w - o.lr * (1 + second * (1 - beta1) / (1 - first * second)) * g / (g.abs() + o.eps)


def radam(w: Tensor, g: Tensor, o: Any) -> Tensor:
    return w - o.lr * (g + o.weight_decay * w)  # the variance is not tractable yet: no denominator


def rmsprop(w: Tensor, g: Tensor, o: Any) -> Tensor:
    g = g + o.weight_decay * w
    return w - o.lr * g / (math.sqrt(1 - o.alpha) * g.abs() + o.eps)


def rmsprop_tf(w: Tensor, g: Tensor, o: Any) -> Tensor:
    g = g + o.weight_decay * w
    return w - o.lr * g / (o.alpha + (1 - o.alpha) * g.square() + o.eps).sqrt()


def lion(w: Tensor, g: Tensor, o: Any) -> Tensor:
    return (1 - o.lr * o.weight_decay) * w - o.lr * g.sign()


def lamb(w: Tensor, g: Tensor, o: Any) -> Tensor:
    eps = o.base.eps if "base" in o else o.eps
    r = g / (g.abs() + eps) + o.weight_decay * w
    return w - o.lr * w.norm() / r.norm() * r


def adabound(w: Tensor, g: Tensor, o: Any) -> Tensor:
    beta1, beta2 = o.betas
    rate = o.lr * math.sqrt(1 - beta2) / (1 - beta1) / (math.sqrt(1 - beta2) * g.abs() + o.eps)
    lower, upper = o.final_lr * (1 - 1 / (o.gamma + 1)), o.final_lr * (1 + 1 / o.gamma)
    return (1 - o.lr * o.weight_decay) * w - rate.clamp(lower, upper) * (1 - beta1) * g


def muon(w: Tensor, g: Tensor, o: Any) -> Tensor:
    if w.ndim < 2:  # AdamW with Nesterov's momentum
        return (1 - o.lr * o.weight_decay) * w - o.lr * (1 + o.betas[0]) * g / (g.abs() + 1e-7)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    return (1 - o.lr * o.weight_decay) * w - o.lr * 0.2 * math.sqrt(max(w.shape)) * u @ v


FIRST_STEPS: dict[str, Step] = {
    "sgd": sgd, "adam": adam, "adam_sgd_paper": adam, "adam_sgd_reference": adam, "adamw": adamw, "nadam": nadam,
    "radam": radam, "rmsprop": rmsprop, "rmsprop_tf": rmsprop_tf, "lion": lion, "lionp": lion, "lamb": lamb,
    "lambp": lamb, "adabound": adabound, "muon": muon,
}  # fmt: skip


def has_projection(opt: str) -> bool:
    return "with_projection" in (CONFIGS / "opt" / f"{opt}.yaml").read_text()


def is_foreign(opt: str) -> bool:
    return has_projection(opt) or "_target_: adamp." not in (CONFIGS / "opt" / f"{opt}.yaml").read_text()


def test_every_foreign_optimizer_has_its_first_step_here() -> None:
    assert set(FIRST_STEPS) == {path.stem for path in (CONFIGS / "opt").glob("*.yaml") if is_foreign(path.stem)}


def first_steps(opt: str, weight_decay: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the changes of a matrix and of a vector, measured and as printed."""
    overrides = [f"opt={opt}", f"opt.weight_decay={weight_decay}"] + ["opt.delta=0"] * has_projection(opt)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        options = compose("train", overrides).opt
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in [(4, 6), (6,)]]
    weights = [param.detach().clone() for param in params]
    optimizer = instantiate(options)(params)
    for param in params:  # of less than the norm at which LAMB clips
        param.grad = 0.1 * torch.randn(param.shape, generator=generator, dtype=torch.float64)
    grads = [param.grad.clone() for param in params if param.grad is not None]
    optimizer.step()
    for param, w, g in zip(params, weights, grads, strict=True):
        yield param.detach() - w, FIRST_STEPS[opt](w, g, options) - w


@pytest.mark.parametrize("weight_decay", [0.0, 1e-8, 0.1])
@pytest.mark.parametrize("opt", FIRST_STEPS)
def test_the_first_step_is_the_papers(opt: str, weight_decay: float) -> None:
    for change, expected in first_steps(opt, weight_decay):
        # Muon's Newton-Schulz iteration leaves singular values near 1
        tolerance = 0.2 if opt == "muon" and change.ndim > 1 else 1e-6
        assert float((change - expected).norm() / expected.norm()) < tolerance
