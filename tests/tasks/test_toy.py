"""The two toy problems: objectives, the published numbers, and a second implementation by hand."""

import csv
import math
from pathlib import Path

import pytest
import torch

from tasks.toy import cosine2d, rosenbrock3d
from tasks.toy.descent import descend
from tasks.toy.objectives import (
    cosine_loss,
    distance_to_optimum,
    on_sphere,
    rosenbrock,
    sphere_coordinates,
    spherical_rosenbrock,
    start_3d,
)

PUBLISHED = Path(__file__).parents[2] / "results" / "toy" / "rosenbrock3d-published.csv"


@pytest.fixture(scope="module")
def paths_2d():
    runs = (*cosine2d.RUNS, *cosine2d.IN_PLACE)
    return dict(zip(runs, cosine2d.trace(runs), strict=True))


@pytest.fixture(scope="module")
def paths_3d():
    runs = (*rosenbrock3d.RUNS, rosenbrock3d.ALGORITHM_1)
    return {run.method: path for run, path in zip(runs, rosenbrock3d.trace(runs), strict=True)}


def random_rows(size, seed=0):
    return torch.randn(5, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("loss", "size"), [(cosine_loss, 2), (spherical_rosenbrock, 3)])
def test_objectives_do_not_depend_on_the_norm(loss, size):
    w = random_rows(size)
    torch.testing.assert_close(loss(7.5 * w), loss(w), rtol=1e-12, atol=0)


def test_the_cosine_loss_is_least_at_the_optimum_and_greatest_opposite():
    rows = torch.tensor([[0.0, -3.0], [0.0, 2.0], [5.0, 0.0]], dtype=torch.float64)
    assert cosine_loss(rows).tolist() == [0.0, 4.0, 1.0]
    assert cosine_loss(rows, power=1).tolist() == [0.0, 2.0, 1.0]


def test_equation_b1_as_printed_would_lead_away_from_the_optimum():
    start = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    sgd = [lambda params: torch.optim.SGD(params, lr=0.1)]
    path = descend(lambda w: 2 - cosine_loss(w, power=1), start, optimizers=sgd, steps=300)
    assert float(cosine_loss(path.points[-1], power=1)) > 1.9


def test_angles_and_points_of_the_sphere_are_inverse():
    a, b = torch.tensor([-2.0, 1.0, 0.3]), torch.tensor([2.0, 1.0, -0.9])
    points = on_sphere(a.double(), b.double())
    torch.testing.assert_close(points.norm(dim=1), torch.ones(3, dtype=torch.float64))
    for found, expected in zip(sphere_coordinates(2.5 * points), (a, b), strict=True):
        torch.testing.assert_close(found, expected.double())


def test_the_printed_azimuth_has_no_value_at_the_start():
    x, _, z = start_3d()
    assert math.isnan(torch.acos(x / z)) and math.isclose(float(torch.atan2(x, z)), -4 / 3)


def test_rosenbrock_is_zero_at_its_optimum_alone():
    one, zero = torch.ones(()), torch.zeros(())
    assert rosenbrock(one, one) == 0 and rosenbrock(zero, zero) == 1 and rosenbrock(-one, one) == 4
    assert distance_to_optimum(one, zero) == 1


@pytest.mark.parametrize("run", cosine2d.RUNS, ids=lambda run: run.name)
def test_published_norms_and_losses_come_out_to_the_digits_printed(run, paths_2d):
    path = paths_2d[run]
    assert cosine2d.agrees(float(path.points[-1].norm()), run.norm, decimals=2)
    assert cosine2d.agrees(float(path.losses[-1]), run.loss, decimals=4)


def test_numbers_agree_only_if_their_digits_do():
    assert cosine2d.agrees(2.934, 2.93, decimals=2) and not cosine2d.agrees(2.936, 2.93, decimals=2)
    assert not cosine2d.agrees(math.nan, 2.93, decimals=2)


def test_the_iterations_to_a_small_loss(paths_2d):
    reached = {run.name: path.first_below(cosine2d.LOSS_REACHED) for run, path in paths_2d.items()}
    assert reached["gd"] == 477 and reached["momentum 0.9"] == 213 and reached["projected 0.9"] == 71
    assert reached["momentum 0.99"] is None


def test_without_decay_no_norm_decreases(paths_2d):
    for path in paths_2d.values():
        norms = path.points.norm(dim=1)
        assert (norms[1:] >= norms[:-1] * (1 - 1e-9)).all()  # the projection's eps leaves 1e-8 of the radial part


def test_the_linear_loss_reproduces_a_norm_but_not_the_losses():
    momentum = cosine2d.RUNS[1]
    (path,) = cosine2d.trace([momentum], lr=0.02, steps=499, power=1)
    assert cosine2d.agrees(float(path.points[-1].norm()), momentum.norm, decimals=2)
    assert not cosine2d.agrees(float(path.losses[-1]), momentum.loss, decimals=4)


def test_a_projected_buffer_swings_past_the_optimum_at_high_momentum(paths_2d):
    late = {run.name: float(path.losses[200:].max()) for run, path in paths_2d.items()}
    assert late["in place 0.99"] > 0.05 and late["projected 0.99"] < 1e-3


def test_the_first_thirty_points_are_the_published_ones(paths_3d):
    with PUBLISHED.open() as file:
        rows = list(csv.DictReader(file))
    for run in rosenbrock3d.RUNS:
        points = [(float(row["a"]), float(row["b"])) for row in rows if row["method"] == run.method]
        assert len(points) == 50
        first = torch.tensor(points, dtype=torch.float64)[: rosenbrock3d.FIRST + 1]
        off = (rosenbrock3d.coordinates(paths_3d[run.method])[: len(first)] - first).abs().max()
        assert off < 5e-5  # the figure's resolution


def test_the_norm_with_decay_peaks_where_the_published_one_does(paths_3d):
    norms = paths_3d["decay"].points.norm(dim=1)
    assert (int(norms.argmax()), round(float(norms.max()), 3)) == (43, 2.527)


@pytest.mark.parametrize("run", rosenbrock3d.RUNS, ids=lambda run: run.method)
def test_final_norms_are_in_the_ranges_of_slightly_changed_rates(run, paths_3d):
    assert run.low <= float(paths_3d[run.method].points[-1].norm()) <= run.high


def test_algorithm_1_and_the_buffer_in_place_part_after_three_steps(paths_3d):
    off = (paths_3d["in place"].points - paths_3d["projected"].points).norm(dim=1)
    assert (off[:3] < 1e-8).all() and off[4] > 1e-4


def test_a_row_of_a_sweep_is_the_run_at_its_rate(paths_3d):
    for run in (*rosenbrock3d.RUNS, rosenbrock3d.ALGORITHM_1):
        swept = rosenbrock3d.sweep(run.method, torch.tensor([0.01, run.lr], dtype=torch.float64)).row(1)
        torch.testing.assert_close(swept.points[:31], paths_3d[run.method].points[:31], rtol=0, atol=1e-10)


def test_neighbours_part_late_and_not_early():
    near = rosenbrock3d.neighbours(rosenbrock3d.RUNS[1], count=3)
    assert near.points.shape == (201, 6, 3)
    spread = near.norms.amax(dim=1) - near.norms.amin(dim=1)
    assert spread[30] < 1e-5 and spread[-1] > 1e-3


def step_by_hand(w, buffer, grad, *, lr, in_place):
    """Momentum with the radial part taken off, in plain arithmetic."""
    buffer = [0.9 * b + g for b, g in zip(buffer, grad, strict=True)]
    share = sum(x * b for x, b in zip(w, buffer, strict=True)) / sum(x * x for x in w)
    q = [b - share * x for x, b in zip(w, buffer, strict=True)]
    return [x - lr * u for x, u in zip(w, q, strict=True)], (q if in_place else buffer)


@pytest.mark.parametrize("method", ["in place", "projected"])
def test_thirty_steps_agree_with_a_second_implementation(method, paths_3d):
    w, buffer, lr = start_3d().tolist(), [0.0] * 3, rosenbrock3d.ALGORITHM_1.lr
    for step in range(30):
        x, y, z = w
        r = math.sqrt(x * x + y * y + z * z)
        a, b = 1.5 * math.atan2(x, z), 1.5 * math.asin(y / r)
        by_a, by_b = -2 * (1 - a) - 1200 * a * (b - a * a), 600 * (b - a * a)
        flat = math.hypot(x, z)
        da = [1.5 * z / flat**2, 0.0, -1.5 * x / flat**2]
        db = [-1.5 * x * y / (r * r * flat), 1.5 * flat / (r * r), -1.5 * z * y / (r * r * flat)]
        grad = [by_a * p + by_b * q for p, q in zip(da, db, strict=True)]
        length = math.hypot(*grad)
        grad = [g * min(1.0, 1 / (length + 1e-6)) for g in grad]
        rate = lr * (1 - step / 199)
        w, buffer = step_by_hand(w, buffer, grad, lr=rate, in_place=method == "in place")
        assert torch.dist(torch.tensor(w, dtype=torch.float64), paths_3d[method].points[step + 1]) < 2e-6


def test_each_row_may_have_an_optimizer_of_its_own():
    start = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    build = [lambda params, lr=lr: torch.optim.SGD(params, lr=lr) for lr in (0.0, 0.1)]
    path = descend(cosine_loss, start, optimizers=build, steps=3)
    assert path.points.shape == (4, 2, 2) and path.losses.shape == (4, 2) and path.points.dtype == torch.float64
    assert torch.equal(path.row(0).points[-1], start[0].double())
    assert float(path.row(1).losses[-1]) < float(path.row(1).losses[0])


def test_clipping_bounds_the_first_step():
    path = descend(
        spherical_rosenbrock,
        start_3d()[None],
        optimizers=[lambda params: torch.optim.SGD(params, lr=1.0)],
        steps=1,
        clip=0.25,
    )
    assert math.isclose(float((path.points[1] - path.points[0]).norm()), 0.25, rel_tol=1e-6)
