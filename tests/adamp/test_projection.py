"""The scale-invariance test and the projection, point by point."""

import math

import pytest
import torch

from adamp.projection import (
    RowSums,
    channel_view,
    cosine,
    is_scale_invariant,
    layer_view,
    project,
    remove_radial,
)
from tests.adamp import reference
from tests.adamp.problems import HostReads

OPTIONS = {"delta": 0.1, "eps": 1e-8, "wd_ratio": 0.1}


def random_case(shape, kind, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    g = reference.gradient(w, kind, generator)
    u = torch.randn(shape, generator=generator, dtype=torch.float64)
    return u.to(dtype), w.to(dtype), g.to(dtype)


def decision(w, g, **options):
    return int(project(torch.ones_like(w), w, g, **OPTIONS, **options).decision)


@pytest.mark.parametrize(("kind", "expected"), [("channel", 1), ("layer", 2), ("none", 0)])
@pytest.mark.parametrize("shape", [(6, 20), (4, 3, 3, 3), (5, 2, 7)])
def test_projection_agrees_with_a_plain_loop(kind, expected, shape):
    u, w, g = random_case(shape, kind)
    result = project(u, w, g, **OPTIONS)
    update, ratio, found = reference.project(u, w, g, **OPTIONS)
    assert found == expected == int(result.decision)
    assert float(result.ratio) == ratio
    torch.testing.assert_close(result.update, update, rtol=0, atol=1e-14)


def test_the_raw_gradient_decides_and_the_update_is_projected():
    w = torch.tensor([[1.0, 0.0]])
    radial, tangent = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert decision(w, tangent) == 1
    torch.testing.assert_close(project(radial, w, tangent, **OPTIONS).update, torch.zeros(1, 2), atol=1e-7, rtol=0)
    assert int(project(tangent, w, radial, **OPTIONS).decision) == 0


def test_one_row_above_the_threshold_sends_the_tensor_to_the_layer_test():
    _, w, g = random_case((8, 50), "channel")
    g[3] += 0.5 * w[3] * g[3].norm() / w[3].norm()
    assert decision(w, g) == 0
    g[3] *= 1e-3  # now invisible in the whole, though its own cosine is the same
    assert decision(w, g) == 2


def test_a_cosine_equal_to_the_threshold_does_not_fire():
    w = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[0.5, math.sqrt(0.75), 0.0, 0.0]], dtype=torch.float64)
    sums = RowSums((w * g).sum(1), (w * w).sum(1), (g * g).sum(1))
    delta = 2 * float(cosine(sums, eps=0.0))
    for value, fires in ((delta, False), (delta * (1 + 1e-12), True)):
        assert bool(is_scale_invariant(w, g, delta=value, view=channel_view, eps=0.0)) is fires


def test_eps_clamps_each_norm_on_its_own():
    a, b = torch.tensor([[1e-10, 0.0]]).double(), torch.tensor([[1e-3, 0.0]]).double()
    sums = RowSums((a * b).sum(1), (a * a).sum(1), (b * b).sum(1))
    assert float(cosine(sums, eps=1e-8)) == pytest.approx(1e-2)


def test_eps_is_added_to_the_norm_of_the_projection():
    w, u = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    out = remove_radial(u, w, view=channel_view, eps=0.5)
    torch.testing.assert_close(out, u - w * 11 / 5.5**2)


def test_a_zero_row_is_left_alone():
    u, w, g = random_case((4, 10), "channel")
    w[2] = 0
    result = project(u, w, g, **OPTIONS)
    assert int(result.decision) == 1
    assert torch.equal(result.update[2], u[2])
    assert torch.isfinite(result.update).all()


@pytest.mark.parametrize("mark", ["auto", True])
def test_a_zero_row_is_left_alone_without_eps(mark):
    u, w, g = random_case((4, 10), "channel")
    w[2] = 0
    result = project(u, w, g, delta=0.1, eps=0.0, wd_ratio=0.1, scale_invariant=mark)
    assert torch.isfinite(result.update).all()


def test_a_zero_gradient_fires():
    _, w, _ = random_case((4, 10), "none")
    assert decision(w, torch.zeros_like(w)) == 1


def test_a_zero_gradient_row_does_not_hide_the_others():
    _, w, g = random_case((4, 10), "none")
    g[1] = 0
    assert decision(w, g) == 0


def test_rows_of_one_entry_are_decided_by_the_layer_test():
    _, w, g = random_case((12, 1), "layer")
    assert decision(w, g) == 2


def test_for_a_single_row_channel_and_layer_are_the_same():
    u, w, g = random_case((1, 30), "layer")
    assert decision(w, g) == 1
    by_row = remove_radial(u, w, view=channel_view, eps=1e-8)
    torch.testing.assert_close(by_row, remove_radial(u, w, view=layer_view, eps=1e-8))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_stops_the_projection_and_stays_alone(bad):
    u, w, g = random_case((4, 10), "channel")
    g[1, 0] = bad
    u[1] = bad
    result = project(u, w, g, **OPTIONS)
    assert int(result.decision) == 0
    assert float(result.ratio) == 1
    rest = [0, 2, 3]
    assert torch.equal(result.update[rest], u[rest])


def test_a_nan_update_row_does_not_reach_other_rows():
    u, w, g = random_case((4, 10), "channel")
    u[1] = math.nan
    result = project(u, w, g, **OPTIONS)
    assert int(result.decision) == 1
    assert torch.isfinite(result.update[[0, 2, 3]]).all()


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_vectors_and_scalars_are_never_projected(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for mark in ("auto", True, False):
        result = project(torch.ones(shape), w, torch.zeros(shape), **OPTIONS, scale_invariant=mark)
        assert int(result.decision) == 0
        assert float(result.ratio) == 1
        assert torch.equal(result.update, torch.ones(shape))


def test_marks_overrule_the_test():
    u, w, g = random_case((4, 10), "none")
    forced = project(u, w, g, **OPTIONS, scale_invariant=True)
    assert int(forced.decision) == 1
    assert float(forced.ratio) == 0.1
    torch.testing.assert_close(forced.update, remove_radial(u, w, view=channel_view, eps=1e-8))
    _, w, g = random_case((4, 10), "channel")
    left = project(u, w, g, **OPTIONS, scale_invariant=False)
    assert int(left.decision) == 0
    assert torch.equal(left.update, u)


def test_delta_zero_never_fires():
    u, w, g = random_case((4, 10), "channel")
    assert int(project(u, w, torch.zeros_like(g), delta=0.0, eps=1e-8, wd_ratio=0.1).decision) == 0


@pytest.mark.parametrize("kind", ["channel", "layer", "none"])
def test_memory_layout_does_not_matter(kind):
    u, w, g = random_case((4, 6, 3, 3), kind)
    plain = project(u, w, g, **OPTIONS)
    last = [x.to(memory_format=torch.channels_last) for x in (u, w, g)]
    strided = [x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in (u, w, g)]
    for tensors in (last, strided, (u, last[1], strided[2])):
        result = project(*tensors, **OPTIONS)
        torch.testing.assert_close(result.update, plain.update)
        assert int(result.decision) == int(plain.decision)
        view = remove_radial(tensors[0], tensors[1], view=channel_view, eps=1e-8)
        torch.testing.assert_close(view, remove_radial(u, w, view=channel_view, eps=1e-8))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 3, 3, 3), (3, 0, 3)])
def test_empty_tensors_pass_through(shape):
    w = torch.zeros(shape)
    assert project(w, w, w, **OPTIONS).update.shape == w.shape
    assert channel_view(w).shape[0] == shape[0]
    assert layer_view(w).shape == (1, 0)
    assert remove_radial(w, w, view=layer_view, eps=1e-8).shape == w.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    u, w, g = random_case((4, 300), "channel", dtype=dtype)
    wide = project(u.float(), w.float(), g.float(), **OPTIONS)
    result = project(u, w, g, **OPTIONS)
    assert result.update.dtype == dtype
    assert torch.equal(result.update, wide.update.to(dtype))
    assert int(result.decision) == int(wide.decision)


def test_the_ratio_has_the_precision_of_the_weight():
    _, w, g = random_case((4, 10), "channel")
    ratio = project(g, w, g, **OPTIONS).ratio
    assert ratio.dtype == torch.float64
    assert float(ratio) == 0.1


def test_a_complex_matrix_is_projected_as_its_real_view_and_a_complex_vector_is_not():
    u, w, g = random_case((4, 10, 2), "channel")
    real = project(u, w, g, **OPTIONS)
    result = project(*(torch.view_as_complex(x) for x in (u, w, g)), **OPTIONS)
    assert int(result.decision) == 1
    assert torch.equal(torch.view_as_real(result.update), real.update)
    view = remove_radial(torch.view_as_complex(u), torch.view_as_complex(w), view=channel_view, eps=1e-8)
    torch.testing.assert_close(torch.view_as_real(view), real.update)
    vector = [torch.view_as_complex(x[0].contiguous()) for x in (u, w, g)]
    assert int(project(*vector, **OPTIONS).decision) == 0


@pytest.mark.parametrize("mark", ["auto", True, False])
def test_nothing_is_read_back_to_the_host(mark):
    u, w, g = random_case((4, 10), "channel")
    with HostReads() as reads:
        project(u, w, g, **OPTIONS, scale_invariant=mark)
        remove_radial(u, w, view=channel_view, eps=1e-8)
        is_scale_invariant(w, g, delta=0.1, view=layer_view, eps=1e-8)
    assert reads.count == 0


@pytest.mark.parametrize("view", [channel_view, layer_view])
@pytest.mark.parametrize("kind", ["channel", "layer", "none"])
def test_the_separate_functions_agree_with_the_whole(view, kind):
    u, w, g = random_case((4, 25), kind)
    fires = bool(is_scale_invariant(w, g, delta=0.1, view=view, eps=1e-8))
    assert fires == (kind == "channel" or (kind == "layer" and view is layer_view))
    expected = project(u, w, g, **OPTIONS)
    if fires and int(expected.decision) == (1 if view is channel_view else 2):
        torch.testing.assert_close(remove_radial(u, w, view=view, eps=1e-8), expected.update)
