"""The optimizers of the battery: every class, its options and its implementations."""

from dataclasses import dataclass

import pytest
import torch

from adamp import SGDP, AdamP, AdaRem, AdaRemS, project_updates
from tests.adamp.conftest import PATHS, path_options


@dataclass
class Case:
    """An optimizer as the battery builds it.

    Attributes:
        cls: Builds it.
        options: With these.
        path: How SGDP and AdamP compute, a key of PATHS; "" for the other optimizers.
        projects: Whether its projection can be marked and tested.
    """

    cls: object
    options: dict
    path: str = ""

    def __call__(self, params, **options):
        how = path_options(self.path) if self.path else {}
        return self.cls(params, **{**self.options, **how, **options})

    @property
    def lr(self):
        return self.options["lr"]

    def groups(self, model):
        """The parameters of `net`; on spheres only the convolution, which the normalisation makes scale-invariant."""
        if self.cls is not AdaRemS:
            return list(model.parameters())
        conv, *rest = model.parameters()
        return [{"params": [conv]}, {"params": rest, "scale_invariant": False}]


def around(cls):
    """An optimizer of torch with the projection around it."""

    def build(params, **options):
        optimizer = cls(params, **options)
        project_updates(optimizer)
        return optimizer

    return build


PROJECTED = {
    "sgdp": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    "sgdp-nesterov": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "sgdp-published": (SGDP, {"lr": 0.1, "momentum": 0.9, "project_buffer": True}),
    "sgdp-plain": (SGDP, {"lr": 0.1}),
    "adamp": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamp-nesterov": (AdamP, {"lr": 1e-2, "weight_decay": 0.1, "nesterov": True}),
}
SPHERES = {"lr": 0.1, "weight_decay": 1e-2, "scale_invariant": True}
projected = {f"{name}-{path}": Case(cls, options, path) for name, (cls, options) in PROJECTED.items() for path in PATHS}
resilient = {
    "adarem": Case(AdaRem, {"lr": 0.1, "weight_decay": 1e-2}),
    "adarem-global": Case(AdaRem, {"lr": 0.1, "scope": "global"}),
    "spheres": Case(AdaRemS, SPHERES),
    "spheres-radius": Case(AdaRemS, {**SPHERES, "radius": 0.5}),
    "one-sphere": Case(AdaRemS, {**SPHERES, "sphere": "global", "scope": "global"}),
    "spheres-without-slr": Case(AdaRemS, {**SPHERES, "slr": False}),
}
hooked = {
    "projected-sgd": Case(around(torch.optim.SGD), {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    "projected-adamw": Case(around(torch.optim.AdamW), {"lr": 1e-2, "weight_decay": 0.1}),
    "projected-rmsprop": Case(around(torch.optim.RMSprop), {"lr": 1e-3}),
}
own = {**projected, **resilient}
every = {**own, **hooked}


def over(cases):
    return pytest.mark.parametrize("build", cases.values(), ids=cases.keys())


every_optimizer, our_optimizers, projecting = over(every), over(own), over(projected)
