"""Which tensors are scale-invariant on this task, and on which AdamP acts."""

import pytest
import torch

from adamp import AdamP, NormProbe, scale_invariant_parameters
from tasks.retrieval import EmbeddingNet, proxy_anchor_loss, semihard_triplet_loss
from tests.tasks.retrieval.small import SMALL


def projected_share(net, loss, *, steps=6):
    """Return how often AdamP projects each parameter, as a whole or channel by channel."""
    images, labels = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255, torch.arange(12) % 4
    named = [(name, p) for name, p in net.named_parameters() if p.ndim > 1]
    optimizer = AdamP(net.parameters(), lr=1e-4)
    probe = NormProbe(named, every=1)
    probe.attach(optimizer)
    for _ in range(steps):
        rows, proxies = net(images)
        if loss == "proxy_anchor":
            value = proxy_anchor_loss(rows, labels, proxies)
        else:
            value = semihard_triplet_loss(rows, labels, margin=0.5)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    found = probe.read(layers=True)
    return {name: found[f"projected/{name}"] for name, _ in named}


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet"])
def test_with_frozen_batchnorm_adamp_acts_on_the_embedding_and_the_proxies_and_hardly_on_convolutions(loss):
    torch.manual_seed(0)
    net = EmbeddingNet("resnet18", 4 if loss == "proxy_anchor" else 0, width=0.125)
    net.measure_statistics([torch.rand(32, 3, 32, 32) * 255])
    share = projected_share(net, loss)
    convolutions = [value for name, value in share.items() if name.startswith("backbone.")]
    assert share["embedding.weight"] == 1
    assert loss == "triplet" or share["proxies"] == 1
    assert sum(convolutions) / len(convolutions) < 0.35  # the test of a whole layer passes by chance now and then


def test_by_structure_only_the_proxies_are_invariant_alone_and_the_embedding_together_with_its_bias():
    torch.manual_seed(0)
    net, images = SMALL(num_proxies=4).double(), torch.rand(8, 3, 32, 32) * 255
    assert scale_invariant_parameters(net, images) == {"proxies": "rows"}
    before = net(images)[0]
    with torch.no_grad():
        net.embedding.bias.normal_()
        before = net(images)[0]
        net.embedding.weight.mul_(3)
        net.embedding.bias.mul_(3)
    assert torch.allclose(net(images)[0], before, atol=1e-12)
    trained = SMALL(num_proxies=4, freeze_statistics=False)
    assert any(name.startswith("backbone.") for name in scale_invariant_parameters(trained, images))
