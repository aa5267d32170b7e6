"""Rounding, determinism, random generators and checksums of weights."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from tasks.engine.config import Train
from tasks.engine.errors import RunFailed, translate_errors
from tasks.engine.reproducibility import (
    checksums,
    generator_states,
    rounding_facts,
    seed_generators,
    set_generator_states,
    set_reproducibility,
)


def test_checksums_notice_one_changed_bit_and_need_no_order() -> None:
    net = nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.BatchNorm1d(3)}).to(torch.bfloat16)
    net["a"].float()
    names, before = checksums({"model": net})
    assert names[0] == "model.a.weight" and len(names) == len(before) == 4
    with torch.no_grad():
        net["a"].weight.view(torch.int32)[1, 2] += 1
    changed = (checksums({"model": net})[1] != before).nonzero().flatten().tolist()
    assert changed == [0]


def test_determinism_raises_on_an_operation_that_has_no_deterministic_form() -> None:
    try:
        set_reproducibility(Train(deterministic=True))
        assert rounding_facts(Train(deterministic=True), torch.device("cpu"))["deterministic"]
        with (
            pytest.raises(RunFailed, match=r"train\.deterministic=true refuses an operation: put_") as error,
            translate_errors(),
        ):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        assert len(str(error.value).splitlines()) == 2
    finally:
        set_reproducibility(Train())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_record_says_how_a_run_rounds() -> None:
    found = rounding_facts(Train(precision="bf16"), torch.device("cpu"))
    assert found["precision"] == "bf16" and found["nonfinite"] == "stop"
    assert found["tf32"] == {"matmul": False, "convolution": False}
    try:
        set_reproducibility(Train(tf32=True))
        assert rounding_facts(Train(tf32=True), torch.device("cpu"))["tf32"] == {"matmul": True, "convolution": True}
    finally:
        set_reproducibility(Train())
    json.dumps(found)


def test_generator_states_continue_all_three_streams() -> None:

    seed_generators(5, 1)
    states = generator_states(torch.device("cpu"))
    drawn = (random.random(), np.random.rand(), float(torch.rand(())))
    set_generator_states(states, torch.device("cpu"))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == drawn
