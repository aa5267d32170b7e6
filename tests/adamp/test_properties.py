"""Properties of the projection and of both optimizers on random tensors."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adamp import SGDP, AdamP
from adamp.projection import channel_view, is_scale_invariant, layer_view, project, remove_radial

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)
views = st.sampled_from([channel_view, layer_view])
fast = settings(max_examples=40, deadline=None)


def tensors(shape, seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@fast
@given(shape=shapes, seed=seeds, view=views)
def test_the_projected_update_is_tangent(shape, seed, view):
    u, w = tensors(shape, seed, 2)
    q = view(remove_radial(u, w, view=view, eps=0.0))
    assert ((q * view(w)).sum(1).abs() <= 1e-12 * view(w).norm(dim=1) * view(u).norm(dim=1)).all()


@fast
@given(shape=shapes, seed=seeds, view=views)
def test_projecting_twice_is_projecting_once_and_never_lengthens(shape, seed, view):
    u, w = tensors(shape, seed, 2)
    once = remove_radial(u, w, view=view, eps=0.0)
    torch.testing.assert_close(remove_radial(once, w, view=view, eps=0.0), once, rtol=0, atol=1e-12)
    assert float(once.norm()) <= float(u.norm()) * (1 + 1e-12)


@fast
@given(shape=shapes, seed=seeds, view=views, factor=st.floats(1e-3, 1e3))
def test_the_scale_of_weight_and_gradient_does_not_matter(shape, seed, view, factor):
    u, w, g = tensors(shape, seed, 3)
    torch.testing.assert_close(
        remove_radial(u, factor * w, view=view, eps=0.0), remove_radial(u, w, view=view, eps=0.0), rtol=0, atol=1e-9
    )
    options = {"delta": 0.1, "view": view, "eps": 1e-12}
    fired = is_scale_invariant(w, g, **options)
    assert bool(is_scale_invariant(factor * w, g / factor, **options)) == bool(fired)


@fast
@given(shape=shapes, seed=seeds)
def test_the_order_of_rows_does_not_matter(shape, seed):
    u, w, g = tensors(shape, seed, 3)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    options = {"delta": 1.0, "eps": 1e-8, "wd_ratio": 0.1}
    plain, moved = project(u, w, g, **options), project(u[order], w[order], g[order], **options)
    assert int(plain.decision) == int(moved.decision)
    torch.testing.assert_close(moved.update, plain.update[order], rtol=0, atol=1e-12)


@fast
@given(seed=seeds, factor=st.floats(0.1, 10.0), adam=st.booleans())
def test_a_layers_scale_only_rescales_time(seed, factor, adam):
    """A scale-invariant weight c w takes the same turn: SGDP with lr c² times as large, AdamP with c times."""
    w, target = tensors((3, 6), seed, 2)

    def turned(scale, lr):
        weight = nn.Parameter(scale * w)
        optimizer = AdamP([weight], lr, eps=1e-30) if adam else SGDP([weight], lr, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            ((weight / weight.norm(dim=1, keepdim=True) - target) ** 2).sum().backward()
            optimizer.step()
        return weight.detach() / weight.detach().norm(dim=1, keepdim=True)

    torch.testing.assert_close(
        turned(factor, 0.05 * (factor if adam else factor**2)), turned(1.0, 0.05), rtol=0, atol=1e-6
    )


@fast
@given(seed=seeds, adam=st.booleans())
def test_the_order_of_parameters_does_not_matter(seed, adam):
    shapes_here = [(2, 3), (4,), (3, 2, 2)]
    starts = [tensors(shape, seed + k, 2) for k, shape in enumerate(shapes_here)]

    def run(order):
        params = [nn.Parameter(w.clone()) for w, _ in starts]
        chosen = [params[k] for k in order]
        optimizer = AdamP(chosen, 0.1, weight_decay=0.1) if adam else SGDP(chosen, 0.1, momentum=0.9)
        for _ in range(2):
            for p, (_, g) in zip(params, starts, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return params

    assert all(torch.equal(a, b) for a, b in zip(run([0, 1, 2]), run([2, 0, 1]), strict=True))
