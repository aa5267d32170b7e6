"""Our attack beside other people's: foolbox's PGD, and AutoAttack, which must never be the weaker one."""

import warnings

import pytest
import torch

from tasks.adversarial import autoattack
from tests.tasks.attacked import attack, batch, net, sizes


def prepared(num, *, scale):
    """Return a network, images, and the labels it gives them: every image starts out right."""
    network, (images, _) = net(scale=scale).eval(), batch(num)
    with torch.no_grad():
        return network, images, network(images).argmax(1)


def fooled(network, images, labels):
    with torch.no_grad():
        return network(images).argmax(1) != labels


@pytest.mark.parametrize(("norm", "name", "epsilon"), [("linf", "LinfPGD", 0.03), ("l2", "L2PGD", 0.25)])
def test_it_succeeds_at_least_as_often_as_foolbox_at_the_same_budget(norm, name, epsilon):
    foolbox = pytest.importorskip("foolbox")
    network, images, labels = prepared(100, scale=10.0)
    theirs = getattr(foolbox.attacks, name)(abs_stepsize=epsilon / 4, steps=10, random_start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        _, moved, success = theirs(model, images, labels, epsilons=epsilon)
    ours = attack(network, images, labels, norm=norm, epsilon=epsilon, steps=10, step_size=epsilon / 4)
    assert 0.1 < success.float().mean() < 0.95, "too easy or too hard to tell two attacks apart"
    assert fooled(network, ours, labels).sum() >= success.sum()
    torch.testing.assert_close(ours, moved, rtol=0, atol=2e-5)


@pytest.mark.slow  # 5000 queries and thousands of gradients an image: 20 CPU seconds
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.15)])
def test_autoattack_stays_in_the_ball_and_is_at_least_as_strong_as_ours(norm, epsilon):
    pytest.importorskip("pyautoattack")
    network, images, labels = prepared(12, scale=10.0)
    state = torch.get_rng_state()
    theirs = autoattack(network, images, labels, norm=norm, epsilon=epsilon)
    assert torch.equal(torch.get_rng_state(), state)
    ours = attack(network, images, labels, norm=norm, epsilon=epsilon, steps=20, step_size=epsilon / 4)
    assert (sizes(theirs, images, norm) <= epsilon + 1e-5).all()
    assert 0 < fooled(network, ours, labels).sum() <= fooled(network, theirs, labels).sum()
