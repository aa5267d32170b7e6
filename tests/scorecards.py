"""A small battery for tests of scorecards, and optimizers that a scorecard must see through or refuse."""

from __future__ import annotations

from pathlib import Path

import yaml

from evidence.scorecard.battery import Battery, read_battery
from tests.commands import ROOT

OPTIMIZERS = '''
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


class SignSGD(Optimizer):
    def __init__(self, params, lr=1e-3, *, weight_decay=0.0, floor):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.floor = floor

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign() * max(group["lr"], self.floor))


class WrongBias(AdamW):
    """Multiplies by the bias correction of the second moment instead of dividing by it: steps explode at first."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=torch.zeros(()), m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                state["m"].lerp_(p.grad, 0.1)
                state["v"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                root = (state["v"] * (1 - 0.999 ** state["step"])).sqrt() + 1e-8
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * state["m"] / root)


class NeedsClosure(SGD):
    def step(self, closure):
        return super().step(closure)


class TwoCalls(SGD):
    def step(self, closure=None):
        raise RuntimeError("call first_step and second_step")


class AtOnceNan(SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.fill_(float("nan"))


class NewStorage(SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p - group["lr"] * p.grad


class OtherParameters(SGD):
    def __init__(self, params, lr=0.1):
        super().__init__([{**g, "params": [nn.Parameter(p.detach().clone()) for p in g["params"]]} for g in params], lr)


class NoRate(Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


class Averaging(SGD):
    """Trains its weights in training mode and scores their mean, as schedule-free optimizers do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["training"] = False

    @torch.no_grad()
    def _swap(self, training):
        for group in self.param_groups:
            for p in group["params"]:
                if group["training"] != training and "mean" in self.state[p]:
                    kept = p.clone()
                    p.copy_(self.state[p]["mean"])
                    self.state[p]["mean"].copy_(kept)
            group["training"] = training

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["training"]:
                raise RuntimeError("a step in evaluation mode")
            for p in group["params"]:
                state = self.state[p]
                p.sub_(group["lr"] * p.grad)
                if not state:
                    state.update(count=0, mean=p.clone())
                state["count"] += 1
                state["mean"].lerp_(p, 1 / state["count"])


plain_function = print
'''


def small_battery(folder: Path, **changes: object) -> tuple[Path, Battery]:
    """Write a battery of the toy alone, 4 trials and 3 seeds of 60 steps, and return its path and itself."""
    data = yaml.safe_load((ROOT / "configs" / "scorecard.yaml").read_text())
    toy = data["workloads"]["toy"]
    toy["words"] = [*(word for word in toy["words"] if not word.startswith("train.epochs")), "train.epochs=3"]
    data |= {"budget": 4, "seeds": [7, 8, 9], "workloads": {"toy": toy}, "baselines": ["adamw"]} | changes
    data["shared"] = [word.replace("epoch_steps=100", "epoch_steps=20") for word in data["shared"]]
    data["shared"] += ["data.num_examples=512", "train.probe_every=10"]
    path = folder / "battery.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path, read_battery(path)


def optimizers_file(folder: Path) -> Path:
    """Write the optimizers of this module into a file of their own."""
    path = folder / "candidates.py"
    path.write_text(OPTIMIZERS)
    return path
