"""The oscillation metric against a brute-force count."""

import itertools

import pytest
import torch
from torch import nn

from adamp import NormProbe
from adamp.probes.oscillation import OscillationWindow
from tests.adamp.problems import backward, net, snapshot


def follow(path):
    """The three values of a window over the given successive weights."""
    param = nn.Parameter(torch.tensor(path[0], dtype=torch.float64))
    window = OscillationWindow(len(path) - 1, [param])
    with torch.no_grad():
        for weights in path[1:]:
            window.before_step(may_start=True)
            param.copy_(torch.tensor(weights))
            values = window.after_step()
    return values


def test_path_over_displacement():
    values = follow([[[0.0, 0.0]], [[1.0, 2.0]], [[3.0, 1.0]]])
    torch.testing.assert_close(values, torch.tensor([(1 + 3) / 2, 1.0, (3 + 3) / (3 + 1)], dtype=torch.float64))


def test_entries_that_never_moved_are_skipped():
    values = follow([[[0.0, 5.0]], [[1.0, 5.0]], [[0.5, 5.0]]])
    torch.testing.assert_close(values, torch.tensor([3.0, 3.0, 3.0], dtype=torch.float64))


def test_an_entry_that_came_back_stays_finite():
    values = follow([[[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 2.0]]])
    assert values[0] == pytest.approx((2**24 + 1) / 2)


def test_one_window_between_two_reads_starts_at_a_sampled_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    probe = NormProbe(model.named_parameters(), every=4, oscillation_window=3)
    probe.attach(optimizer)
    weights, values = [snapshot(model)], []
    for step in range(13):
        backward(model, seed=step)
        optimizer.step()
        weights.append(snapshot(model))
        if step in (5, 11):  # the steps 4 and 8 are sampled; a window opens at 0, and after the first read at 8
            values.append(probe.read())
    for first, read in zip((0, 8), values, strict=True):
        window = [torch.cat([x.flatten() for x in w]).double() for w in weights[first : first + 4]]
        path = sum((b - a).abs() for a, b in itertools.pairwise(window))
        moved = (window[-1] - window[0]).abs()
        q = path / moved
        expected = [float(q.mean()), float(q.median()), float(path.sum() / moved.sum())]
        found = [read[f"oscillation/{key}"] for key in ("mean", "median", "ratio")]
        assert found == pytest.approx(expected, rel=1e-3)
    assert "oscillation/mean" not in probe.read()


def test_a_window_longer_than_the_interval_ends_before_the_next_starts():
    param = nn.Parameter(torch.ones(1, 1))
    optimizer = torch.optim.SGD([param], 1.0)
    probe = NormProbe([("w", param)], every=2, oscillation_window=3)
    probe.attach(optimizer)
    ends = []
    for step in range(8):
        param.grad = torch.ones(1, 1)
        optimizer.step()
        if "oscillation/mean" in probe.read():
            ends.append(step)
    assert ends == [2, 6]
