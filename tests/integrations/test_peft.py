"""The example of PEFT: adapters take AdamW's step, a whole layer before batch norm is projected by rows."""

from __future__ import annotations

import pytest
import torch

from tests.integrations import examples

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("default")  # those of peft's own code


def test_marks_tell_adapters_from_a_layer_that_is_trained_whole() -> None:
    module = examples.load("peft_lora")
    before = dict(module.train(steps=0)[0].named_parameters())
    model, optimizer, losses = module.train(steps=4)
    assert losses[-1] < losses[0]
    modes = {param: group["scale_invariant"] for group in optimizer.param_groups for param in group["params"]}
    trained = {name: modes[param] for name, param in model.named_parameters() if param.requires_grad}
    assert sorted(trained.values(), key=str) == [False, False, "rows"]  # A, B and the stem
    assert {name.split(".")[2] for name, mode in trained.items() if mode} == {"stem"}
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) == (not param.requires_grad), name
