"""Former module paths: imports, configurations and pickles of version 0.1 before its modules moved."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adamp
from adamp.moved_modules import MOVED_MODULES

PICKLES = Path(__file__).with_name("pickles_0_1.pt")


@pytest.mark.parametrize("former", MOVED_MODULES)
def test_a_former_path_imports_the_present_module(former):
    module = importlib.import_module(MOVED_MODULES[former])
    assert importlib.import_module(former) is module
    assert module.__name__ == module.__spec__.name == MOVED_MODULES[former]


def test_former_modules_are_attributes_and_submodules_in_a_fresh_process():
    code = (
        "import adamp, sys; assert not adamp.moved_modules.MOVED_MODULES.keys() & sys.modules.keys()\n"
        "from adamp import paths; from adamp.aws import shrink_rate; from adamp.movement import Movement\n"
        "assert adamp.invariance.scale_invariant_parameters is adamp.scale_invariant_parameters\n"
        "assert not hasattr(adamp, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickles_of_the_former_modules_load_and_go_on():
    """Four optimizers after one step, a probe within an oscillation window, a hook handle and a layer."""
    objects = torch.load(PICKLES, weights_only=False)
    assert isinstance(objects["handle"], adamp.hooks.HookHandle) and isinstance(objects["layer"], adamp.layers.WNLinear)
    for name, cls in {
        "adamp": adamp.AdamP,
        "sgdp": adamp.SGDP,
        "adarem": adamp.AdaRem,
        "adarem_s": adamp.AdaRemS,
    }.items():
        optimizer = objects[name]
        assert type(optimizer) is cls
        (weight,) = optimizer.param_groups[0]["params"]
        before = weight.detach().clone()
        weight.grad = torch.tensor([[1.0, -2.0]])
        optimizer.step()
        assert not torch.equal(weight, before)

    weight = next(iter(objects["probe"]._parameters.values()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with objects["probe"].attach(optimizer):
        weight.grad = torch.ones_like(weight)
        optimizer.step()  # the third of a window of three
    values = objects["probe"].read(layers=True)
    assert values["norm/w"] > 0 and values["oscillation/ratio"] == pytest.approx(1)
