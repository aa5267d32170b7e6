"""Marks: entries of parameter groups by what a parameter is; convolutions made to normalise their weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adamp import layers, scale_invariant_parameters
from tasks.base import InputError
from tasks.engine.group_overrides import convert_networks, expand_overrides, normalised_parameters
from tasks.engine.optim import build_optimizer, parameter_groups
from tests import commands


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


FOUND = {"scale_invariant": {"model": ["0.weight", "3.weight"]}}


def entries(rules: Any, marks: Any, having: Any = None) -> dict[str, dict[str, Any]]:
    """Return parameter name -> its group's entries, as the optimizer gets them."""
    model = net()
    made = expand_overrides(rules, marks, networks={"model": model}, params_by_property=having or FOUND)
    names = {p: name for name, p in model.named_parameters()}
    optimizer = build_optimizer(lambda groups: torch.optim.SGD(groups, lr=1.0), parameter_groups("model", model, made))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


def test_parameters_that_have_a_property_are_marked_and_no_others() -> None:
    found = entries([], {"scale_invariant": {"scale_invariant": True}})
    assert {name for name, group in found.items() if group.get("scale_invariant")} == {"0.weight", "3.weight"}
    assert len({id(group) for group in found.values()}) == 2


def test_a_marked_parameter_keeps_the_entries_of_its_rule_which_win() -> None:
    rules = [{"match": r"model\.3", "lr_scale": 10, "mark": 1}, {"match": "bias|1.weight", "weight_decay": 0.5}]
    found = entries(rules, {"scale_invariant": {"scale_invariant": True, "mark": 2}})
    kept = {name: (g["lr"], g["weight_decay"], g.get("scale_invariant"), g.get("mark")) for name, g in found.items()}
    assert kept == {
        "0.weight": (1.0, 0, True, 2), "3.weight": (10.0, 0, True, 1), "6.weight": (1.0, 0, None, None),
        "1.weight": (1.0, 0.5, None, None), "1.bias": (1.0, 0.5, None, None),
        "4.weight": (1.0, 0, None, None), "4.bias": (1.0, 0.5, None, None), "6.bias": (1.0, 0.5, None, None),
    }  # fmt: skip


def test_a_parameter_may_have_two_properties_and_names_are_taken_literally() -> None:
    having = {"scale_invariant": {"model": ["0.weight"]}, "normalised": {"model": ["0.weight", "3.weight"]}}
    found = entries([], {"scale_invariant": {"a": 1}, "normalised": {"b": 2}}, having)
    assert [(found[name].get("a"), found[name].get("b")) for name in ("0.weight", "3.weight", "6.weight")] == [
        (1, 2), (None, 2), (None, None),
    ]  # fmt: skip
    (rule,) = expand_overrides(
        [], {"normalised": {"b": 2}}, networks={"model": net()}, params_by_property={"normalised": {"m": ["a.b"]}}
    )
    assert rule["match"] == r"^(m\.a\.b)$"


def test_a_marked_parameter_gets_the_mark_of_its_own_slices() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.Unflatten(1, (4, 1)), nn.ConvTranspose1d(4, 6, 3),
        nn.BatchNorm1d(6), nn.Conv1d(6, 2, 3), nn.BatchNorm1d(2),
    )  # fmt: skip
    marks = {"model": scale_invariant_parameters(model, torch.randn(8, 4))}
    rules = expand_overrides(
        [],
        {"scale_invariant": {"scale_invariant": True}},
        networks={"model": model},
        params_by_property={"scale_invariant": {"model": sorted(marks["model"])}},
        marks=marks,
    )
    assert {rule["match"]: rule["scale_invariant"] for rule in rules} == {
        r"^(model\.0\.weight)$": "tensor",
        r"^(model\.3\.weight)$": "columns",
        r"^(model\.5\.weight)$": True,
    }


def test_without_marks_the_rules_are_as_given() -> None:
    rules = [{"match": "bias", "weight_decay": 0}]
    assert expand_overrides(rules, {}, networks={"model": net()}, params_by_property={}) == rules


@pytest.mark.parametrize(
    ("rules", "marks", "message"),
    [
        (
            [],
            {"invariant": {"a": 1}},
            "'invariant' is no property; choose among scale_invariant, filter_invariant, norm",
        ),
        ([], {"scale_invariant": True}, "marks.scale_invariant is True; it must hold entries"),
        ([], {"scale_invariant": {}}, "it must hold entries"),
        ([], {"normalised": {"shrink": True}}, "no layer of this task's networks normalises its weight; normalise=ws"),
        ([], {"filter_invariant": {"a": 1}}, "filter by filter"),
        ([{"match": "("}], {"scale_invariant": {"a": 1}}, "is not a regular expression"),
    ],
)
def test_marks_that_cannot_be_meant_are_refused(rules: Any, marks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand_overrides(rules, marks, networks={"model": net()}, params_by_property=FOUND)


@pytest.mark.parametrize(("kind", "layer"), [("wn", layers.WNConv2d), ("ws", layers.WSConv2d)])
def test_converted_convolutions_are_found_normalised_and_scale_invariant(kind: str, layer: type[nn.Module]) -> None:
    networks = {"model": net(), "head": nn.Linear(3, 2)}
    before = dict(networks["model"].named_parameters())
    convert_networks(networks, kind)
    assert [type(networks["model"][i]) for i in (0, 3)] == [layer, layer]  # type: ignore[index]
    assert all(before[name] is p for name, p in networks["model"].named_parameters())
    assert normalised_parameters(networks) == {"model": ["0.weight", "3.weight"], "head": []}
    assert scale_invariant_parameters(networks["model"], torch.randn(8, 3, 8, 8)) == {
        "0.weight": "rows",
        "3.weight": "rows",
    }


def test_nothing_is_converted_unless_asked_and_what_cannot_be_is_refused() -> None:
    model = net()
    convert_networks({"model": model}, None)
    assert type(model[0]) is nn.Conv2d  # type: ignore[index]
    for networks, kind, message in (
        ({"model": net()}, "bn", "choose wn, ws or null"),
        ({"model": nn.Linear(2, 2)}, "wn", "no convolution without bias"),
        ({"model": nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))}, "ws", "a filter of one entry has no standard dev"),
    ):
        with pytest.raises(InputError, match=message):
            convert_networks(networks, kind)


SHORT = ("train.epochs=1", "train.log_every=100", "train.probe_every=0")


def groups_of(folder: Path) -> list[dict[str, Any]]:
    state = torch.load(commands.run_folder(folder) / "checkpoints" / "last.pt", weights_only=True)
    found: list[dict[str, Any]] = state["optimizers"]["model"]["param_groups"]
    return found


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        (("opt=adarem_s",), "scale_invariant"),
        (("opt=sgd_aws",), "shrink"),
        (("opt=adam_aws", "normalise=wn"), "shrink"),
        (("opt=adamp", "+marks.filter_invariant.scale_invariant=true"), "scale_invariant"),
    ],
)
def test_an_optimizer_that_needs_marks_finds_them_by_itself(
    words: tuple[str, ...], marked: str, tmp_path: Path
) -> None:
    done = commands.call(*commands.options(tmp_path, *words, *SHORT))
    assert done.code == 0, done.err
    counts = [len(group["params"]) for group in groups_of(tmp_path) if group.get(marked) is True]
    assert counts == [20]  # the convolutions of a ResNet18, the shortcuts' among them
    (run,) = (tmp_path / "runs" / "imagenet-resnet18").iterdir()
    assert ("normalise=wn" in run.name) == ("normalise=wn" in words)


def test_aws_without_normalised_layers_says_what_makes_some(tmp_path: Path) -> None:
    done = commands.call(*commands.options(tmp_path, "opt=sgd_aws", "normalise=null", *SHORT))
    assert done.code == 2
    assert "no layer of this task's networks normalises its weight; normalise=ws" in done.err
    assert "Traceback" not in done.err
