"""The example of Lightning: a run, also a resumed one, has the weights of a plain loop in torch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from tests.integrations import examples

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings("default")  # those of Lightning's own code


def test_automatic_optimization_in_bf16_clipped_and_resumed_is_the_plain_loop(tmp_path: Path) -> None:
    module = examples.load("lightning_module")
    torch.manual_seed(0)
    model = module.Classifier()
    resumed, plain = copy.deepcopy(model), copy.deepcopy(model)
    options = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    checkpoint = module.fit(model, tmp_path, epochs=1, **options)
    module.fit(resumed, tmp_path, epochs=2, resume=checkpoint, **options)

    made = plain.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]
    images, labels = module.data().tensors
    for _ in range(2):
        for x, y in zip(images.split(16), labels.split(16), strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(plain.net(x), y)
            loss.backward()
            clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
        scheduler.step()
    torch.testing.assert_close(resumed.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_manual_optimization_of_two_optimizers_is_the_plain_loop_and_runs_hooks(tmp_path: Path) -> None:
    module = examples.load("lightning_module")
    torch.manual_seed(0)
    model = module.TwoOptimizers()
    plain = copy.deepcopy(model)
    module.fit(model, tmp_path, epochs=2)

    optimizers = plain.configure_optimizers()
    images, labels = module.data().tensors
    for _ in range(2):
        for x, y in zip(images.split(16), labels.split(16), strict=True):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(plain.net(x), y).backward()
            for optimizer in optimizers:
                clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
                optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
