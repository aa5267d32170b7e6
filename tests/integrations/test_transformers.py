"""The example of transformers: a resumed run of Trainer has the weights and the moments of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import adamp
from tests.integrations import examples

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("default")  # those of transformers' own code


def test_a_resumed_run_of_trainer_is_the_undisturbed_one(tmp_path: Path) -> None:
    module = examples.load("transformers_trainer")
    whole = module.trainer(tmp_path)
    whole.train()
    resumed = module.trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.state.global_step == resumed.state.global_step == 4
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)

    inner = resumed.optimizer.optimizer
    assert type(inner) is adamp.AdamP
    assert [group["weight_decay"] for group in inner.param_groups] == [0.1, 0.0]
    torch.testing.assert_close(inner.state_dict()["state"], whole.optimizer.state_dict()["state"], rtol=0, atol=0)
