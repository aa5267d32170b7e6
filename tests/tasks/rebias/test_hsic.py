"""HSIC against published-formula values worked out by hand in float64, and against its definition."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rebias import hsic_unbiased, median_sigma, rbf_kernel

X = torch.tensor(
    [[0.0, 0.3], [-0.27, -0.89], [-0.45, -0.99], [0.06, 1.34], [-0.49, -0.62], [0.49, 0.36]], dtype=torch.float64
)
Y = torch.tensor(
    [[0.08, -0.74, -0.02], [0.39, -1.24, -0.53], [-1.79, -1.3, -1.74], [-0.15, -0.98, 0.25], [-0.17, -0.44, -2.31],
     [-0.14, 0.26, 0.38]],
    dtype=torch.float64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sigma_x", "sigma_y", "value"),
    [(1, 1, 0.0339817487), (0.5, 2.0, 0.0335458178), (1.25, 0.75, 0.0206214657), (2.0, 0.5, 0.0089593855)],
)
def test_hsic_of_known_features(sigma_x, sigma_y, value):
    hsic = hsic_unbiased(rbf_kernel(X, sigma_x), rbf_kernel(Y, sigma_y))
    assert hsic.dtype == torch.float64
    assert hsic.shape == ()
    assert hsic.item() == pytest.approx(value, rel=1e-6)


def test_hsic_of_features_with_themselves():
    kernel = rbf_kernel(X, 1.0)
    assert hsic_unbiased(kernel, kernel).item() == pytest.approx(0.1082639157, rel=1e-6)


def test_hsic_pulls_features_as_its_derivative_says():
    x = X.clone().requires_grad_()
    hsic_unbiased(rbf_kernel(x, 1), rbf_kernel(Y, 1)).backward()
    assert x.grad[0].tolist() == pytest.approx([0.0129019982, 0.0313247327], rel=1e-6)
    assert torch.autograd.gradcheck(lambda z: hsic_unbiased(rbf_kernel(z, 0.7), rbf_kernel(Y, 1.3)), (x,))


def by_definition(k, m):
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q] for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return sum(terms) / len(terms)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**16), st.integers(4, 6))
def test_hsic_is_the_mean_over_four_different_samples_of_any_kernel(seed, n):
    generator = torch.Generator().manual_seed(seed)
    k, m = (rows @ rows.T for rows in torch.randn(2, n, 3, dtype=torch.float64, generator=generator))
    hsic = hsic_unbiased(k, m)
    torch.testing.assert_close(hsic, by_definition(k, m), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hsic, hsic_unbiased(m, k), rtol=1e-9, atol=1e-12)
    order = torch.randperm(n, generator=generator)
    torch.testing.assert_close(hsic, hsic_unbiased(k[order][:, order], m[order][:, order]), rtol=1e-9, atol=1e-12)
    off_diagonal = 0.7 * (1 - torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(hsic, hsic_unbiased(k + off_diagonal, m), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_than_four_samples_are_an_error(n):
    with pytest.raises(ValueError, match=f"{n} samples: the unbiased HSIC needs at least 4"):
        hsic_unbiased(torch.eye(n), torch.eye(n))


@pytest.mark.parametrize("other", [torch.eye(5), torch.ones(4, 5), torch.ones(16)])
def test_kernels_of_different_batches_are_an_error(other):
    with pytest.raises(ValueError, match="must be n x n"):
        hsic_unbiased(torch.eye(4), other)


def test_an_rbf_kernel_is_the_gaussian_of_the_distance():
    kernel = rbf_kernel(X.unsqueeze(-1), 0.8)  # flattened from dimension 1
    expected = [[torch.exp(-((a - b) ** 2).sum() / (2 * 0.8**2)).item() for b in X] for a in X]
    assert kernel.dtype == torch.float64
    torch.testing.assert_close(kernel, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)
    assert torch.equal(kernel.diagonal(), torch.ones(6, dtype=torch.float64))


def test_a_kernel_of_equal_features_is_one_with_a_zero_gradient():
    x = torch.full((5, 3), 1e3, requires_grad=True)
    kernel = rbf_kernel(x, 1.0)
    assert torch.equal(kernel, torch.ones(5, 5))
    kernel.sum().backward()
    assert torch.equal(x.grad, torch.zeros(5, 3))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bandwidth_that_is_no_positive_number_is_an_error(sigma):
    with pytest.raises(ValueError, match="sigma="):
        rbf_kernel(X, sigma)


def test_the_median_bandwidth_counts_distances_within_each_batch():
    assert median_sigma(X).item() == pytest.approx(1.05636168, rel=1e-6)
    assert median_sigma([X[:3], X[3:]]).item() == pytest.approx(1.07018690, rel=1e-6)
    assert median_sigma(X).dtype == torch.float64
    distances = torch.cdist(X, X).square().flatten()
    assert median_sigma(X).item() == pytest.approx(distances.quantile(0.5).sqrt().item(), rel=1e-12)
    with pytest.raises(ValueError, match="no features"):
        median_sigma([])
