"""Projected gradient descent: its bounds, its directions, and what it leaves alone."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.attacks import PRESETS, NonFiniteLossError, as_length, random_perturbation
from tasks.base import InputError
from tests.tasks.attacked import Net, attack, batch, net, sizes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def losses(network, images, labels):
    network.eval()
    with torch.no_grad():
        return F.cross_entropy(network(images), labels, reduction="none")


# Bounds ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    direction=st.sampled_from(["steepest", "sign"]),
    dtype=st.sampled_from(DTYPES),
    num=st.integers(1, 5),
    epsilon=st.one_of(st.just(0.0), st.floats(1e-6, 1.0), st.just(30.0)),
    ratio=st.floats(0.0, 3.0),
    steps=st.integers(0, 3),
    random_start=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_pixel_stays_in_the_range_and_every_image_in_its_ball(
    norm, direction, dtype, num, epsilon, ratio, steps, random_start, seed
):
    torch.manual_seed(seed)
    network = Net().to(dtype)
    images, labels = batch(num, dtype=dtype, seed=seed)
    images[0, 0] = torch.tensor([0.0, 1.0] * 32, dtype=dtype).view(8, 8)  # the ends of the range
    moved = attack(
        network, images, labels, norm=norm, epsilon=epsilon, steps=steps, step_size=ratio * epsilon,
        random_start=random_start, direction=direction,
    )  # fmt: skip
    assert moved.dtype == dtype
    assert moved.shape == images.shape
    assert not moved.requires_grad
    assert moved.min() >= 0
    assert moved.max() <= 1
    slack = 1e-15 if dtype == torch.float64 else 0.0  # differences of float64 are themselves rounded
    assert (sizes(moved, images, norm) <= epsilon * (1 + 1e-15) + slack).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_is_used_to_its_edge(norm, dtype):
    network, (images, labels) = net().to(dtype), batch(dtype=dtype)
    images = 0.25 + images / 2  # away from the ends of the range
    moved = attack(network, images, labels, norm=norm, epsilon=0.1, step_size=1.0, steps=2)
    rounding = torch.finfo(dtype).eps * (1 if norm == "linf" else math.sqrt(3 * 8 * 8))
    assert (sizes(moved, images, norm) >= 0.1 - rounding).all()


def test_another_clip_range_is_kept():
    images, labels = batch()
    moved = attack(net(), 2 * images - 1, labels, clip=(-1.0, 1.0), epsilon=0.5, step_size=0.5)
    assert moved.min() >= -1
    assert moved.max() <= 1
    assert moved.min() < -0.9


# The steps ------------------------------------------------------------------------------------------------------


def test_one_linf_step_moves_every_pixel_by_the_step_along_the_gradients_sign():
    network, (images, labels) = net().eval(), batch()
    x = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
    moved = attack(network, images, labels, steps=1, step_size=0.02)
    torch.testing.assert_close(moved, (images + 0.02 * grad.sign()).clamp(0, 1))


def test_one_l2_step_moves_every_image_by_the_step_along_its_gradient():
    network, (images, labels) = net().eval(), batch()
    x = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
    unit = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = attack(network, images, labels, norm="l2", epsilon=0.5, steps=1, step_size=0.3)
    torch.testing.assert_close(moved, (images + 0.3 * unit).clamp(0, 1))


def reference_attack(network, images, labels, *, epsilon, steps, step_size, start):
    """The L2 attack of the code behind the paper, in float64: sign steps, then the ball, then the range."""
    x = (images + start).clamp(0, 1)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
        delta = (x + step_size * grad.sign() - images).detach()
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x = (images + torch.where(length > epsilon, epsilon * delta / length, delta)).clamp(0, 1)
    return x.detach()


def test_paper_l2_is_the_reference_codes_sign_step_from_a_cube_thirty_times_the_ball():
    preset = PRESETS["paper-l2"]
    assert (preset.norm, preset.direction) == ("l2", "sign")
    assert (preset.random_start_train, preset.random_start_eval) == (True, False)
    network, (images, labels) = net().eval().double(), batch(size=8, dtype=torch.float64)
    start = random_perturbation(images, norm="linf", epsilon=preset.epsilon)
    assert sizes(images + start, images, "l2").min() > 5 * preset.epsilon  # at 32x32 about thirty times
    moved = attack(
        network, images, labels, norm="l2", epsilon=preset.epsilon, step_size=preset.step_size, steps=4,
        direction="sign", start=start,
    )  # fmt: skip
    expected = reference_attack(
        network, images, labels, epsilon=preset.epsilon, steps=4, step_size=preset.step_size, start=start
    )
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_gradient_steps_raise_the_loss_more_than_the_papers_sign_steps():
    network, (images, labels) = net(scale=4.0), batch(64)
    raised = {}
    for name in ("paper-l2", "l2"):
        preset = PRESETS[name]
        moved = attack(
            network, images, labels, norm="l2", epsilon=preset.epsilon, step_size=preset.step_size, steps=10,
            direction=preset.direction,
        )  # fmt: skip
        raised[name] = losses(network, moved, labels).mean()
    assert raised["l2"] > raised["paper-l2"] > losses(network, images, labels).mean()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_the_papers_radii_as_exact_fractions(name):
    preset = PRESETS[name]
    assert preset.epsilon == {"linf": 4 / 255, "l2": 80 / 255}[preset.norm]
    assert preset.step_size == pytest.approx(0.0784 if name == "l2" else 2 / 255, rel=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_and_a_larger_ball_never_help_the_defender(norm):
    network, (images, labels) = net(scale=4.0), batch(64)
    means = []
    for epsilon, steps in ((0.0, 5), (0.02, 1), (0.02, 10), (0.2, 10), (1.0, 10)):
        moved = attack(network, images, labels, norm=norm, epsilon=epsilon, steps=steps, step_size=epsilon / 4)
        means.append(losses(network, moved, labels).mean().item())
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_a_zero_gradient_moves_nothing_and_gives_no_nan():
    network, (images, labels) = net(), batch()
    nn.init.zeros_(network.fc.weight)
    for norm in ("linf", "l2"):
        assert torch.equal(attack(network, images, labels, norm=norm), images)


def test_gradients_whose_squares_underflow_still_give_an_l2_direction():
    images, labels = batch()
    moved = attack(lambda x: 1e-25 * x.flatten(1)[:, :10], images, labels, norm="l2", epsilon=0.1, step_size=0.1)
    assert (sizes(moved, images, "l2") > 0.05).all()


def test_the_result_of_an_image_does_not_depend_on_its_batch():
    network, (images, labels) = net().eval().double(), batch(5, dtype=torch.float64)
    for norm in ("linf", "l2"):
        whole = attack(network, images, labels, norm=norm)
        alone = [attack(network, images[i : i + 1], labels[i : i + 1], norm=norm) for i in range(5)]
        torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-12)


# Random starts --------------------------------------------------------------------------------------------------


def test_random_starts_fill_the_cube_and_the_ball_uniformly():
    images = torch.zeros(4000, 3, 1, 1)
    torch.manual_seed(0)
    cube = random_perturbation(images, norm="linf", epsilon=2.0)
    assert cube.abs().max() <= 2
    assert cube.std() == pytest.approx(2 / math.sqrt(3), rel=0.03)
    ball = random_perturbation(images, norm="l2", epsilon=2.0).flatten(1).norm(dim=1)
    assert ball.max() <= 2 * (1 + 1e-6)
    assert (ball <= 1).float().mean() == pytest.approx(1 / 8, abs=0.02)  # half the radius, an eighth of the volume


def test_a_random_start_follows_the_global_generator_and_a_given_one_replaces_it():
    network, (images, labels) = net(), batch()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(attack(network, images, labels, random_start=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(1)
    start = random_perturbation(images, norm="linf", epsilon=0.1)
    assert torch.equal(attack(network, images, labels, start=start), draws[0])


# What it leaves alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_it_touches_no_gradient_no_flag_no_mode_and_no_statistic(enabled):
    network, (images, labels) = net(), batch()
    network.train()
    network.bn.eval()  # frozen by the user
    network.conv.bias.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    original = images.clone()
    with torch.set_grad_enabled(enabled):  # evaluation runs under no_grad
        moved = attack(network, images, labels)
    assert not torch.equal(moved, images)
    assert torch.equal(images, original)
    assert not images.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all((p.grad == 3).all() if p.requires_grad else p.grad is None for p in network.parameters())
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes == {"": True, "conv": True, "bn": False, "drop": True, "fc": True}


def test_modes_come_back_even_when_the_network_fails():
    network, (images, labels) = net().train(), batch(size=6)  # the classifier wants 8x8
    with pytest.raises(RuntimeError):
        attack(network, images, labels)
    assert all(module.training for module in network.modules())


def test_the_network_is_seen_in_evaluation_mode():
    network, seen = net().train(), []
    network.drop.register_forward_hook(lambda module, args, out: seen.append((module.training, network.bn.training)))
    attack(network, *batch(), steps=3)
    assert seen == [(False, False)] * 3


def test_no_graph_outlives_its_step():
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    alive = weakref.WeakSet()
    counts = []

    def pack(tensor):
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    network = net()
    network.register_forward_pre_hook(lambda module, args: counts.append(len(alive)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        attack(network, *batch(), steps=4)
    assert counts == [0, 0, 0, 0]
    assert len(alive) == 0


def test_an_empty_batch_and_no_steps_are_fine():
    network, (images, labels) = net(), batch()
    assert attack(network, images[:0], labels[:0], norm="l2", random_start=True).shape == (0, 3, 8, 8)
    assert torch.equal(attack(network, images, labels, steps=0), images)


def test_the_images_keep_their_memory_format_in_front_of_the_network():
    network, (images, labels) = net(), batch()
    seen = []
    network.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    images = images.contiguous(memory_format=torch.channels_last)
    start = torch.zeros(images.shape)
    attack(network, images, labels, norm="l2", start=start)
    assert seen == [True] * 3


# Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon=-0.1: must be finite and at least 0"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"epsilon": math.inf}, "epsilon=inf"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"steps": -1}, "steps=-1"),
        ({"norm": "l1"}, "norm=l1: must be linf or l2"),
        ({"direction": "up"}, "direction=up"),
        ({"clip": (1.0, 0.0)}, "clip="),
        ({"clip": (0.0, 0.5)}, "outside clip"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        attack(net(), *batch(), **options)


def test_wrong_images_and_labels_are_refused_in_words():
    images, labels = batch()
    with pytest.raises(InputError, match="uint8"):
        attack(net(), images.byte(), labels)
    with pytest.raises(InputError, match=r"labels: shape \(5,\) does not fit 6 images"):
        attack(net(), images, labels[:5])
    images[2, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="outside clip"):
        attack(net(), images, labels)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_in_words(bad):
    network, (images, labels) = net(), batch()
    with torch.no_grad():
        network.fc.weight[3, 0] = bad
    with pytest.raises(NonFiniteLossError, match=r"not finite.*opt\.lr"):
        attack(network, images, labels)
    assert issubclass(NonFiniteLossError, InputError)


@pytest.mark.parametrize(("text", "value"), [("4/255", 4 / 255), ("0.5", 0.5), (0, 0.0), ("8/255", 8 / 255)])
def test_lengths_are_numbers_or_fractions(text, value):
    assert as_length(text, option="task.epsilon") == value


@pytest.mark.parametrize("text", ["-1/255", "four", "1/0", math.nan, "inf", [1], "1e999999"])
def test_other_lengths_are_refused_by_the_name_of_the_option(text):
    with pytest.raises(InputError, match=r"task\.epsilon="):
        as_length(text, option="task.epsilon")
