"""The example of accelerate: a run is the plain loop, resumed or with hooks attached before or after `prepare`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

import adamp
from tests.integrations import examples

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("default")  # those of accelerate's own code


def plain_loop(kind: str) -> nn.Module:
    """Return the example's model after 8 batches, without accelerate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    points = torch.randn(64, 6)
    labels = points[:, :3].argmax(1)
    if kind == "adamp":
        optimizer = adamp.AdamP(model.parameters(), lr=1e-2, weight_decay=1e-2)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        adamp.project_updates(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for pair in range(4):
        for x, y in zip(
            points.split(8)[2 * pair : 2 * pair + 2], labels.split(8)[2 * pair : 2 * pair + 2], strict=True
        ):
            (F.cross_entropy(model(x), y) / 2).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model


def test_a_resumed_run_of_adamp_is_the_plain_loop(tmp_path: Path) -> None:
    module = examples.load("accelerate_loop")
    module.train(4, save=str(tmp_path))
    model = module.train(8, resume=str(tmp_path))
    torch.testing.assert_close(model.state_dict(), plain_loop("adamp").state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["before_prepare", "after_prepare"])
def test_the_projection_attached_before_or_after_prepare_is_the_plain_loop(kind: str) -> None:
    model = examples.load("accelerate_loop").train(8, kind=kind)
    torch.testing.assert_close(model.state_dict(), plain_loop(kind).state_dict(), rtol=0, atol=0)
