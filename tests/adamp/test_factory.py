"""Optimizers by name, here and in timm's factory."""

import logging

import pytest
import torch
from torch import nn

import adamp
from adamp.factory import OPTIMIZERS


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_gives_its_class_with_the_given_options(name):
    made = adamp.create(name, model(), lr=0.25)
    assert type(made) is OPTIMIZERS[name]
    assert made.param_groups[0]["lr"] == 0.25
    assert made.defaults == OPTIMIZERS[name](model().parameters(), lr=0.25).defaults


def test_an_example_batch_puts_each_parameter_into_the_group_of_its_mark():
    net = model()
    made = adamp.create("adamp", net, example_batch=torch.randn(16, 4), weight_decay=0.1)
    marked = {id(p): group["scale_invariant"] for group in made.param_groups for p in group["params"]}
    assert {name: marked[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": "rows", "1.weight": False, "1.bias": False, "3.weight": False, "3.bias": False,
    }  # fmt: skip
    assert all(group["weight_decay"] == 0.1 for group in made.param_groups)


def test_a_layer_before_layer_norm_is_marked_as_a_whole():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
    made = adamp.create("adamp", net, example_batch=torch.randn(16, 4))
    assert [(group["scale_invariant"], len(group["params"])) for group in made.param_groups] == [
        ("tensor", 1),
        (False, 4),
    ]


@pytest.mark.parametrize(
    ("name", "given", "options", "message"),
    [
        ("adam", model(), {}, r"name='adam' is not valid: it must be one of adamp, sgdp, adarem, adarem_s"),
        ("adamp", list(model().parameters()), {"example_batch": torch.ones(8, 4)}, "example_batch is for a model"),
        ("adarem", model(), {"example_batch": torch.ones(8, 4), "lr": 0.1}, "example_batch is not valid for adarem"),
        ("sgdp", model(), {"lr": -1.0}, "lr=-1.0"),
    ],
    ids=["name", "parameters", "adarem", "rate"],
)
def test_bad_arguments_are_named(name, given, options, message):
    with pytest.raises(ValueError, match=message):
        adamp.create(name, given, **options)


@pytest.fixture
def timm(monkeypatch):
    factory = pytest.importorskip("timm.optim._optim_factory")
    monkeypatch.setattr(factory.default_registry, "_optimizers", dict(factory.default_registry._optimizers))
    return pytest.importorskip("timm.optim")


def test_timms_own_defaults_are_those_that_the_migration_page_names(timm):
    assert timm.get_optimizer_info("adamp").defaults == {"wd_ratio": 0.01, "nesterov": True}
    assert timm.get_optimizer_info("sgdp").defaults == {"nesterov": True}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_call_puts_our_optimizers_behind_timms_names(timm, name, caplog):
    with caplog.at_level(logging.WARNING):
        adamp.register_with_timm()
        adamp.register_with_timm()  # a second call changes nothing
    assert not caplog.records
    made = timm.create_optimizer_v2(model(), opt=name.replace("_", ""), lr=0.1, weight_decay=0.05)
    assert type(made) is OPTIMIZERS[name]
    assert [group["weight_decay"] for group in made.param_groups] == [0.0, 0.05]
    kept = OPTIMIZERS[name](model().parameters(), lr=0.1, **({"momentum": 0.9} if name == "sgdp" else {})).defaults
    assert {**made.defaults, "weight_decay": 0.0} == kept


def test_timms_factory_passes_the_options_of_its_own_defaults_on(timm):
    adamp.register_with_timm()
    made = timm.create_optimizer_v2(model(), opt="adamp", lr=0.1, wd_ratio=0.01, nesterov=True)
    assert (made.defaults["wd_ratio"], made.defaults["nesterov"]) == (0.01, True)
