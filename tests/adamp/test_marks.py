"""Marks of slices: every implementation projects slice by slice, as a plain loop over the slices does."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from adamp import SGDP, AdamP, AdaRemS, NormProbe, mark_groups, project_updates, shrink_weights
from adamp.marks import num_slices, slices_first, spread
from tests.adamp.conftest import PATHS, path_options
from tests.adamp.problems import make_param

MARKS = {
    "rows": ("rows", (6, 4, 3)),
    "columns": ("columns", (6, 4, 3)),
    "blocks of columns": (("columns", 3), (6, 4, 3)),
    "columns of a matrix": ("columns", (5, 7)),
    "tensor": ("tensor", (6, 4, 3)),
}
marks = pytest.mark.parametrize(("mark", "shape"), MARKS.values(), ids=MARKS.keys())


def slices(shape: tuple[int, ...], mark: object) -> list[Tensor]:
    """Return the boolean mask of each slice, from the definition of the mark."""
    index = torch.arange(torch.Size(shape).numel()).view(shape)
    if mark == "tensor":
        return [torch.ones(shape, dtype=torch.bool)]
    if mark == "rows":
        return [torch.isin(index, index[k]) for k in range(shape[0])]
    size = shape[0] // (1 if mark == "columns" else mark[1])
    blocks = [index[start : start + size] for start in range(0, shape[0], size)]
    return [torch.isin(index, block[:, j].contiguous()) for block in blocks for j in range(shape[1])]


@marks
def test_slices_come_first_in_the_order_of_their_values(mark, shape):
    x = torch.randn(shape)
    masks = slices(shape, mark)
    assert len(masks) == num_slices(shape, mark)
    for mask, part in zip(masks, slices_first(x, mark), strict=True):
        assert torch.equal(x[mask].sort().values, part.flatten().sort().values)
    numbers = spread(torch.arange(len(masks)), shape, mark).expand(shape)
    for k, mask in enumerate(masks):
        assert set(numbers[mask].tolist()) == {k}


@pytest.mark.parametrize("cls", [SGDP, AdamP])
@pytest.mark.parametrize("path", PATHS)
@marks
def test_a_step_projects_slice_by_slice(mark, shape, path, cls):
    param, free = (make_param(shape, dtype=torch.float64, kind="none") for _ in range(2))
    start = param.detach().clone()
    cls([param], 0.1, weight_decay=0.1, wd_ratio=0.5, eps=0.0, scale_invariant=mark, **path_options(path)).step()
    cls([free], 0.1, eps=0.0, scale_invariant=False, foreach=False).step()
    expected = start.clone()
    for mask in slices(shape, mark):
        w, change = start[mask], (free.detach() - start)[mask]
        expected[mask] += change - (w @ change) / (w @ w) * w - 0.1 * 0.1 * 0.5 * w
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_memory_formats_do_not_matter(path):
    starts = [make_param((6, 4, 3, 3), dtype=torch.float64, kind="none").detach() for _ in range(4)]
    starts[1] = starts[1].to(memory_format=torch.channels_last)
    starts[2] = starts[2].transpose(0, 1).contiguous().transpose(0, 1)
    starts[3] = starts[3].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    ends = {}
    for mark in ("columns", ("columns", 2), "tensor"):
        params = [nn.Parameter(w.clone()) for w in starts]
        for p in params:
            p.grad = torch.ones_like(p).cumsum(0)
        AdamP(params, 0.1, scale_invariant=mark, **path_options(path)).step()
        ends[mark] = [p.detach() for p in params]
        for end in ends[mark][1:]:
            torch.testing.assert_close(end, ends[mark][0], rtol=0, atol=1e-12)
    assert not torch.allclose(ends["columns"][0], ends["tensor"][0])
    assert not torch.allclose(ends["columns"][0], ends["columns", 2][0])


@marks
def test_project_updates_makes_the_step_of_adamp(mark, shape):
    weights = [make_param(shape, dtype=torch.float64, kind="none") for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.1}
    AdamP([weights[0]], **options, scale_invariant=mark).step()
    optimizer = torch.optim.AdamW([{"params": weights[1:], "scale_invariant": mark}], **options)
    project_updates(optimizer)
    optimizer.step()
    torch.testing.assert_close(*weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["wn", "ws"])
@pytest.mark.parametrize("coupling", ["gradient", "weights"])
@marks
def test_a_shrink_follows_the_scale_of_each_slice(mark, shape, coupling, kind):
    param = make_param(shape, dtype=torch.float64, kind="none")
    start, grad = param.detach().clone(), param.grad.clone()
    optimizer = torch.optim.SGD([{"params": [param], "scale_invariant": mark}], lr=0.1)
    shrink_weights(optimizer, alpha=0.2, params=[param], kind=kind, coupling=coupling)
    optimizer.step()
    expected = start - 0.1 * grad
    for mask in slices(shape, mark):
        w = start[mask]
        expected[mask] -= 0.1 * 0.2 * (w.norm() if kind == "wn" else w.std(correction=0)) * w
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-12)


@marks
def test_a_probe_measures_each_slice(mark, shape):
    param = make_param(shape, dtype=torch.float64, kind="none")
    start, grad = param.detach().clone(), param.grad.clone()
    optimizer = AdamP([param], 0.1, scale_invariant=mark)
    probe = NormProbe([("w", param)], every=1)
    probe.attach(optimizer)
    masks = slices(shape, mark)
    norms = torch.stack([start[mask].norm() for mask in masks])
    assert probe.read()["norm/mean"] == pytest.approx(norms.mean().item())
    optimizer.step()
    values = probe.read(layers=True)
    after = param.detach()
    turns = [(after[m] / after[m].norm() - start[m] / start[m].norm()).norm() for m in masks]
    cosines = [(start[m] @ grad[m]).abs() / start[m].norm() / grad[m].norm() for m in masks]
    assert values["norm/max"] == pytest.approx(max(after[m].norm().item() for m in masks))
    assert values["norm/w"] == values["norm/mean"]
    assert values["effective_step/mean"] == pytest.approx(torch.stack(turns).mean().item())
    assert values["cosine/max"] == pytest.approx(max(cosines).item())
    assert values["margin/max"] == pytest.approx(max(cosines).item() / 0.1 * math.sqrt(start.numel() / len(masks)))
    assert values["projected/share"] == 1


@marks
def test_any_mark_puts_a_weight_on_its_sphere(mark, shape):
    ends = []
    for value in (True, mark):
        param = make_param(shape, dtype=torch.float64, kind="none")
        AdaRemS([param], 0.1, scale_invariant=value).step()
        ends.append(param.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("mark", ["columns", ("columns", 2), "tensor"])
def test_a_mark_goes_through_a_checkpoint(mark, tmp_path):
    param = make_param((4, 3), kind="none")
    optimizer = AdamP([param], 0.1, scale_invariant=mark)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = AdamP([make_param((4, 3), kind="none")], 0.1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["scale_invariant"] == mark
    for both in (optimizer, other):
        both.param_groups[0]["params"][0].data.fill_(1)
        both.step()
    assert torch.equal(other.param_groups[0]["params"][0], param)


WRONG = {
    "unknown": ("filters", "'columns', ('columns', blocks) or 'tensor'"),
    "no blocks": (("columns", 0), "it must be"),
    "a fraction of a block": (("columns", 1.5), "it must be"),
    "blocks of rows": (("rows", 2), "it must be"),
    "blocks that do not divide": (("columns", 4), "the blocks must divide its first dimension"),
}


@pytest.mark.parametrize(("mark", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("build", ["AdamP", "SGDP", "project_updates", "shrink_weights"])
def test_a_mark_that_does_not_fit_is_refused(build, mark, message):
    param = make_param((6, 2), kind="none")
    groups = [{"params": [param], "scale_invariant": mark}]
    with pytest.raises(ValueError, match=re.escape(message)):
        if build == "AdamP":
            AdamP(groups)
        elif build == "SGDP":
            SGDP(groups, 0.1)
        elif build == "project_updates":
            project_updates(torch.optim.SGD(groups, 0.1))
        else:
            shrink_weights(torch.optim.SGD(groups, 0.1), alpha=0.1, params=[param])


@pytest.mark.parametrize("mark", ["rows", "columns", ("columns", 1), "tensor"])
def test_a_mark_of_a_vector_is_refused(mark):
    with pytest.raises(ValueError, match="only parameters of two or more dimensions"):
        AdamP([nn.Parameter(torch.ones(3))], scale_invariant=mark)


def test_groups_by_marks_hold_every_parameter_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.Linear(3, 3))
    marks = {"0.weight": "rows", "1.weight": "tensor", "2.weight": ("columns", 2), "3.weight": "rows"}
    groups = {group["scale_invariant"]: group["params"] for group in mark_groups(model, marks)}
    assert groups["rows"] == [model[0].weight, model[3].weight]
    assert groups["tensor"] == [model[1].weight]
    assert groups["columns", 2] == [model[2].weight]
    assert groups[False] == [layer.bias for layer in model]
    with pytest.raises(ValueError, match=r"'4\.weight', which is not a parameter"):
        mark_groups(model, {"4.weight": "rows"})
