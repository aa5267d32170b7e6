"""The example of timm: its factory makes our AdamP, its schedulers decay the rate by layer, and hooks run."""

from __future__ import annotations

import pytest

import adamp
from tests.integrations import examples

pytest.importorskip("timm")


def test_the_factory_makes_our_adamp_within_lookahead_and_a_probe_sees_its_steps() -> None:
    module = examples.load("timm_factory")
    model, optimizer, probe = module.train(steps=2)
    assert type(optimizer).__name__ == "Lookahead"
    inner = optimizer._base_optimizer
    assert type(inner) is adamp.AdamP
    assert inner.defaults["wd_ratio"] == 0.1  # timm's own is 0.01
    assert probe.read()["effective_step/mean"] > 0
    assert all(inner.state[param]["step"] == 2 for param in model.parameters())
    rates = {group["lr_scale"]: group["lr"] for group in inner.param_groups}
    assert sorted(rates) == pytest.approx([0.7**3, 0.7**2, 0.7, 1.0])
    assert [rates[scale] for scale in sorted(rates)] == pytest.approx([scale * rates[1.0] for scale in sorted(rates)])
