"""Schedules are multipliers of each group's own value."""

import pytest
import torch

from adamp import AdaRem
from tasks.base import InputError
from tasks.engine import schedules
from tasks.engine.optim import apply_schedules
from tasks.engine.schedules import constant, cosine, epochs_begun, step


def test_cosine_goes_from_one_to_final() -> None:
    assert cosine(0, 100) == 1.0
    assert cosine(50, 100) == pytest.approx(0.5)
    assert cosine(100, 100) == pytest.approx(0.0)
    assert cosine(100, 100, final=0.1) == pytest.approx(0.1)


def test_cosine_warms_up_linearly() -> None:
    assert cosine(0, 100, warmup_epochs=5) == 0.0
    assert cosine(2.5, 100, warmup_epochs=5) == 0.5
    assert cosine(5, 100, warmup_epochs=5) == 1.0


@pytest.mark.parametrize(("epoch", "value"), [(30.99, 8.5355339e-1), (60, 0.5), (119.5, 1.7133751e-4)])
def test_cosine_by_whole_epochs_changes_between_epochs_only(epoch: float, value: float) -> None:
    assert cosine(epoch, 120, whole_epochs=True) == pytest.approx(value)


@pytest.mark.parametrize(("epoch", "value"), [(0, 1), (29.99, 1), (30, 0.1), (60, 0.01), (90, 0.001), (99.9, 0.001)])
def test_step_drops_at_30_60_and_90_percent(epoch: float, value: float) -> None:
    assert step(epoch, 100) == pytest.approx(value)


def test_step_drops_at_the_same_share_of_a_short_run() -> None:
    # 0.3 of 10 epochs is not a float; the drop still comes at epoch 3
    assert [step(epoch, 10) for epoch in (2, 3)] == pytest.approx([1, 0.1])


def test_epochs_begun_counts_from_one_and_changes_between_epochs_only() -> None:
    assert [epochs_begun(epoch, 3) for epoch in (0, 0.99, 1, 2.5)] == [1, 1, 2, 3]


def test_it_raises_the_lambda_of_adarem_once_an_epoch() -> None:
    optimizer = AdaRem([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    for epoch, power in ((0, 1), (0.5, 1), (1, 2), (7.9, 8)):
        apply_schedules(optimizer, {"lam_power": epochs_begun}, epoch=epoch, epochs=10)
        assert optimizer.param_groups[0]["lam_power"] == power


def test_schedules_start_from_each_groups_own_value_every_time() -> None:
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 100.0}])
    for epoch in (10, 20, 50):
        apply_schedules(optimizer, {"lr": cosine}, epoch=epoch, epochs=100)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 50.0])


def test_a_tensor_rate_is_changed_in_place() -> None:
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rate)
    for epoch in (0, 50):
        apply_schedules(optimizer, {"lr": cosine}, epoch=epoch, epochs=100)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.5)


def test_any_entry_of_a_group_can_be_scheduled_and_an_unknown_one_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.8)
    apply_schedules(optimizer, {"momentum": lambda epoch, epochs: 0.5, "lr": constant}, epoch=0, epochs=1)
    assert optimizer.param_groups[0]["momentum"] == 0.4
    with pytest.raises(InputError, match="no entry 'lam'"):
        apply_schedules(optimizer, {"lam": constant}, epoch=0, epochs=1)


def test_the_decaying_schedule_drops_at_equal_intervals_after_its_warm_up() -> None:
    assert schedules.decay(1.0, 450, warmup_epochs=2, scale=3.0) == 1.5
    assert schedules.decay(2.39, 450) == 1.0
    assert schedules.decay(2.4, 450) == pytest.approx(0.97)
    assert schedules.decay(449.9, 450) == pytest.approx(0.97**187)
    assert schedules.decay(0.5, 10, every=0.05, factor=0.5) == 0.5  # shares of the run, so short runs keep the shape


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 4.0), ("linear", 16.0)])
def test_the_rate_follows_the_batch_by_the_rule_asked_for(rule: str, factor: float) -> None:
    assert schedules.batch_scale(4096, rule=rule) == factor
    scaled = schedules.cosine(25, 100, warmup_epochs=5, scale=schedules.batch_scale(4096, rule=rule))
    assert scaled == pytest.approx(factor * schedules.cosine(25, 100, warmup_epochs=5))


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="lr_scaling is 'cubic'; choose one of none, sqrt, linear"):
        schedules.batch_scale(4096, rule="cubic")


def test_steps_and_constants_scale_and_warm_up_alike() -> None:
    assert schedules.step(50, 100, scale=4.0) == pytest.approx(0.4)
    assert schedules.step(1, 100, scale=4.0, warmup_epochs=5) == pytest.approx(0.8)
    assert schedules.constant(3, 10, scale=2.0) == 2.0
