"""Autocast keeps the first cast of a weight for as long as its region lasts: every changed weight must be seen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import LoopState, StepContext, Update
from tests.engine import toys

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Watched(toys.Toy):
    """Changes weights in every way a step knows, and compares each forward pass with one that casts anew.

    Two updates a batch, an attack on the input, and weights that the task itself moves: between two updates, and, as
    sharpness-aware methods do, between two forward passes of one update.
    """

    def __init__(self, precision: str) -> None:
        super().__init__(norm=False, dropout=0.0)
        self.dtype, self.seen = DTYPES[precision], set[tuple[str, float]]()

    def output(self, net: nn.Module, x: Tensor, where: str) -> Tensor:
        output = net(x)
        with torch.no_grad(), torch.autocast("cpu", self.dtype, cache_enabled=False):
            assert torch.equal(output, net(x)), where
        self.seen.add((where, float(output.detach().double().sum())))
        return output

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        (x, y), net = batch, nets["model"]
        moved = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(self.output(net, moved, "attack"), y), moved)
        yield Update(F.cross_entropy(self.output(net, x + 0.1 * grad.sign(), "first update"), y))
        yield Update(F.cross_entropy(self.output(net, x, "second update"), y))
        weights = list(net.parameters())
        with torch.no_grad():
            torch._foreach_mul_(weights, 2.0)
        loss = F.cross_entropy(self.output(net, x, "moved between updates"), y)
        with torch.no_grad():
            torch._foreach_mul_(weights, 0.5)
        torch.clear_autocast_cache()
        yield Update(loss + F.cross_entropy(self.output(net, x, "moved within an update"), y))

    def predict(self, nets: Mapping[str, nn.Module], batch: Any, state: LoopState) -> Any:
        self.output(nets["model"], batch[0], "evaluation of network and average")
        return super().predict(nets, batch, state)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", DTYPES)
def test_every_forward_pass_sees_the_weights_as_they_are(tmp_path: Path, precision: str, accumulation: int) -> None:
    task = Watched(precision)
    made = toys.trainer(task, tmp_path, precision=precision, accumulation=accumulation, ema_decay=0.5, probe_every=0)
    made.fit()
    toys.close(made)
    counts = {where: sum(place == where for place, _ in task.seen) for where, _ in task.seen}
    assert counts.pop("evaluation of network and average") > 20  # 5 batches x 3 epochs, of both
    assert counts.keys() == {
        "attack", "first update", "second update", "moved between updates", "moved within an update",
    }  # fmt: skip
    assert all(count == 12 * accumulation for count in counts.values())  # outputs differ: the weights did change
