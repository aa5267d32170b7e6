"""Properties of the projection and of both optimizers on random tensors."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from adamp import SGDP, AdamP
from adamp.projection import channel_view, is_scale_invariant, layer_view, project, remove_radial
from tests.adamp import reference

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


# Of whole steps, on every path


few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sets_of_shapes = st.lists(shapes, min_size=1, max_size=4)
MOMENTUM = {"momentum": 0.9, "nesterov": True}


def tangent(w, seed):
    """A gradient orthogonal to every row, as that of a scale-invariant weight is."""
    return reference.gradient(w, "channel", torch.Generator().manual_seed(seed))


def steps_of(adam, starts, path, *, num_steps=3, **options):
    """Yield weights before and after each of some steps with gradients orthogonal to the weights' rows."""
    params = [nn.Parameter(w.clone()) for w in starts]
    optimizer = AdamP(params, 0.1, **options, **path) if adam else SGDP(params, 0.1, **MOMENTUM, **options, **path)
    for step in range(num_steps):
        before = [p.detach().clone() for p in params]
        for k, (p, w) in enumerate(zip(params, before, strict=True)):
            p.grad = tangent(w, 10 * step + k)
        optimizer.step()
        yield before, [p.detach().clone() for p in params]


@few
@given(shapes=sets_of_shapes, seed=seeds, adam=st.booleans())
def test_norms_never_decrease_without_decay_and_updates_are_tangent(shapes, seed, adam, path):
    starts = [w for k, shape in enumerate(shapes) for w in tensors(shape, seed + k, 1)]
    for before, after in steps_of(adam, starts, path, scale_invariant=True):
        for w, new in zip(before, after, strict=True):
            w, new = channel_view(w), channel_view(new)
            assert (new.norm(dim=1) >= w.norm(dim=1) * (1 - 1e-12)).all()
            # eps in the projection leaves 2 eps / ‖w‖ of the radial part of the step before it, whose entries are up to
            # the rate with Adam, however short the step after it
            raw = (new - w).norm(dim=1).clamp(min=0.1 * w.shape[1] ** 0.5 if adam else 0)
            slack = 1e-6 * raw * w.norm(dim=1).clamp(min=1)
            assert (((new - w) * w).sum(1).abs() <= slack + 1e-12).all()


@few
@given(shapes=sets_of_shapes, seed=seeds, adam=st.booleans())
def test_every_path_makes_the_step_of_the_readable_one(shapes, seed, adam, path):
    starts = [w for k, shape in enumerate(shapes) for w in tensors(shape, seed + k, 1)]
    both = [list(steps_of(adam, starts, how, weight_decay=0.01)) for how in (path, {"foreach": False})]
    for (_, first), (_, second) in zip(*both, strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@few
@given(seed=seeds, factor=st.floats(0.1, 10.0), adam=st.booleans())
def test_a_layers_scale_only_rescales_time(seed, factor, adam, path):
    """A scale-invariant weight c w takes the same turn: SGDP with lr c² times as large, AdamP with c times."""
    w, target = tensors((3, 6), seed, 2)

    def turned(scale, lr):
        weight = nn.Parameter(scale * w)
        optimizer = AdamP([weight], lr, eps=1e-30, **path) if adam else SGDP([weight], lr, momentum=0.9, **path)
        for _ in range(3):
            optimizer.zero_grad()
            ((weight / weight.norm(dim=1, keepdim=True) - target) ** 2).sum().backward()
            optimizer.step()
        return weight.detach() / weight.detach().norm(dim=1, keepdim=True)

    torch.testing.assert_close(
        turned(factor, 0.05 * (factor if adam else factor**2)), turned(1.0, 0.05), rtol=0, atol=1e-6
    )


@few
@given(shapes=sets_of_shapes, seed=seeds, adam=st.booleans())
def test_the_order_of_parameters_does_not_matter(shapes, seed, adam, path):
    starts = [(w, g) for k, shape in enumerate([*shapes, (4,)]) for w, g in [tensors(shape, seed + k, 2)]]
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed)).tolist()

    def run(order):
        params = [nn.Parameter(w.clone()) for w, _ in starts]
        chosen = [params[k] for k in order]
        optimizer = AdamP(chosen, 0.1, weight_decay=0.1, **path) if adam else SGDP(chosen, 0.1, momentum=0.9, **path)
        for _ in range(2):
            for p, (_, g) in zip(params, starts, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return params

    for a, b in zip(run(order), run(range(len(starts))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
