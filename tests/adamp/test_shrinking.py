"""SGD and Adam built with the shrink attached: which weights shrink, and that the step is theirs plus the shrink."""

import pytest
import torch
from torch import nn

from adamp import shrink_weights
from adamp.hooks.weight_shrink import adam_with_shrink, sgd_with_shrink
from tests.adamp.problems import net, run

BUILDERS = pytest.mark.parametrize("build", [sgd_with_shrink, adam_with_shrink])


def matrix():
    return nn.Parameter(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("build", "base", "coupling"),
    [(sgd_with_shrink, torch.optim.SGD, "gradient"), (adam_with_shrink, torch.optim.Adam, "weights")],
)
def test_marked_groups_shrink_and_all_others_decay(build, base, coupling):
    model, twin = net(), net()
    conv, *rest = model.parameters()
    groups = [{"params": iter(rest), "rule": ""}, {"params": conv, "shrink": True, "weight_decay": 0.3}]
    optimizer = build(groups, lr=0.01, weight_decay=0.1, alpha=0.5)
    assert type(optimizer) is base
    conv, *rest = twin.parameters()
    momentum = {"momentum": 0.9} if base is torch.optim.SGD else {}
    other = base([{"params": rest}, {"params": [conv], "weight_decay": 0.0}], lr=0.01, weight_decay=0.1, **momentum)
    shrink_weights(other, alpha=0.5, params=[conv], kind="ws", coupling=coupling)
    assert all(torch.equal(a, b) for a, b in zip(run(model, optimizer, 3), run(twin, other, 3), strict=True))


@BUILDERS
def test_groups_stay_as_many_and_keep_their_options(build):
    given = [{"params": [matrix()], "lr": 0.5}, {"params": [matrix(), matrix()], "shrink": True, "rule": "conv"}]
    kept = [dict(group) for group in given]
    optimizer = build(given, lr=0.1, weight_decay=0.01)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (0.5, 0.01, 1), (0.1, 0.0, 2),
    ]  # fmt: skip
    assert optimizer.param_groups[1]["rule"] == "conv"
    assert given == kept


@BUILDERS
def test_groups_of_named_parameters_shrink(build):
    named, plain = matrix(), matrix()
    for param, entry in ((named, ("conv.weight", named)), (plain, plain)):
        param.grad = torch.ones(2, 3)
        build([{"params": [entry], "shrink": True}], lr=0.1, alpha=0.5, kind="wn").step()
    assert torch.equal(named, plain)
    assert not torch.equal(named, matrix())


@pytest.mark.parametrize("betas", [("0.9", "0.999"), [0.9, "0.99"]])
def test_betas_that_are_no_numbers_are_named(betas):
    with pytest.raises(ValueError, match="betas="):
        adam_with_shrink([{"params": [matrix()], "shrink": True}], betas=betas)


@BUILDERS
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "no group of parameters has shrink=True"),
        ([{"params": [matrix()], "shrink": True}, matrix()], "not all are groups"),
        ([matrix()], "no group of parameters has shrink=True"),
        ([{"params": [matrix()], "shrink": False}], "no group of parameters has shrink=True"),
        ([{"params": [matrix()], "shrink": 1}], "shrink=1 is not valid"),
        ([{"params": [nn.Parameter(torch.ones(3))], "shrink": True}], r"shape \(3,\)"),
    ],
)
def test_what_cannot_shrink_is_refused(build, params, message):
    with pytest.raises(ValueError, match=message):
        build(params, lr=0.1)
