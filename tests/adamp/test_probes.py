"""The probe against a brute-force count, and its life around any optimizer."""

import copy
import math

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP, NormProbe
from tests.adamp import reference
from tests.adamp.problems import HostReads, backward, matrices, net, snapshot

ANY_OPTIMIZER = pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
        lambda p: SGDP(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: AdamP(p, 0.01),
    ],
)


def rows(x):
    return list(x.double().reshape(x.shape[0], -1))


def brute_force(before, grads, after, delta=0.1):
    """One step's values in float64, filter by filter."""
    norms, steps, cosines, margins, fired = [], [], [], [], []
    for w0, g, w1 in zip(before, grads, after, strict=True):
        norms += [float(b.norm()) for b in rows(w1)]
        steps += [float((b / b.norm() - a / a.norm()).norm()) for a, b in zip(rows(w0), rows(w1), strict=True)]
        own = [reference.cosine(a, b, 1e-8) for a, b in zip(rows(g), rows(w0), strict=True)]
        cosines += own
        margins.append(max(own) * math.sqrt(w0[0].numel()) / delta)
        fired.append(reference.project(w0, w0, g, delta=delta, eps=1e-8, wd_ratio=0.1)[2] > 0)
    return norms, steps, cosines, margins, fired


def median(values):
    return float(torch.tensor(values).median())


def expected_values(samples):
    """The averages over samples of what `read` returns."""
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    norms = samples[-1][0]
    return {
        "norm/mean": mean(norms), "norm/min": min(norms), "norm/median": median(norms), "norm/max": max(norms),
        "effective_step/mean": mean([mean(s[1]) for s in samples]),
        "effective_step/min": mean([min(s[1]) for s in samples]),
        "effective_step/median": mean([median(s[1]) for s in samples]),
        "effective_step/max": mean([max(s[1]) for s in samples]),
        "cosine/mean": mean([mean(s[2]) for s in samples]),
        "cosine/max": mean([max(s[2]) for s in samples]),
        "margin/max": mean([max(s[3]) for s in samples]),
        "projected/share": mean([mean(s[4]) for s in samples]),
    }  # fmt: skip


@ANY_OPTIMIZER
def test_values_agree_with_brute_force(make):
    model = net()
    optimizer = make(model.parameters())
    probe = NormProbe(model.named_parameters(), every=2)
    probe.attach(optimizer)
    samples = []
    for step in range(5):
        backward(model, seed=step)
        before, grads = snapshot(model), [p.grad.clone() for p in matrices(model).values()]
        optimizer.step()
        if step % 2 == 0:
            samples.append(brute_force(before, grads, snapshot(model)))
    values = probe.read()
    expected = expected_values(samples)
    assert list(values) == list(expected)
    for key, value in expected.items():
        tolerance = {"abs": 3e-7} if key.startswith(("cosine", "margin")) else {"rel": 1e-4}
        if key.startswith("margin"):
            tolerance = {"abs": 1e-4, "rel": 1e-4}
        assert values[key] == pytest.approx(value, **tolerance), key


def test_layers_are_named_by_parameter():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1)
    probe.attach(optimizer)
    backward(model)
    before, grads = snapshot(model), [p.grad.clone() for p in matrices(model).values()]
    optimizer.step()
    values = probe.read(layers=True)
    after = snapshot(model)
    for k, name in enumerate(matrices(model)):
        norms, steps, cosines, _, fired = brute_force(before[k : k + 1], grads[k : k + 1], after[k : k + 1])
        assert values[f"norm/{name}"] == pytest.approx(sum(norms) / len(norms))
        assert values[f"effective_step/{name}"] == pytest.approx(sum(steps) / len(steps), rel=1e-4)
        assert values[f"cosine/{name}"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
        assert values[f"projected/{name}"] == float(fired[0])
    assert len(values) == 12 + 4 * 2


def test_layers_are_averaged_since_they_were_last_read():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1)
    probe.attach(optimizer)
    single = []
    for step in range(2):
        backward(model, seed=step)
        optimizer.step()
        single.append(probe.read()["effective_step/mean"])
    values = probe.read(layers=True)
    assert "effective_step/mean" not in values
    weights = {name: p.shape[0] for name, p in matrices(model).items()}
    total = sum(n * values[f"effective_step/{name}"] for name, n in weights.items()) / sum(weights.values())
    assert total == pytest.approx(sum(single) / 2, rel=1e-5)


def test_before_any_step_only_norms_are_known():
    model = net()
    values = NormProbe(model.named_parameters()).read()
    assert set(values) == {"norm/mean", "norm/min", "norm/median", "norm/max"}
    norms = torch.cat([p.detach().flatten(1).norm(dim=1) for p in matrices(model).values()])
    assert values["norm/mean"] == pytest.approx(float(norms.mean()))


def test_reading_starts_anew_and_then_gives_the_present_norms():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1)
    probe.attach(optimizer)
    backward(model)
    optimizer.step()
    assert "effective_step/mean" in probe.read()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
    values = probe.read(layers=True)
    assert "effective_step/mean" not in values
    assert values["norm/0.weight"] == pytest.approx(2 * math.sqrt(18))


@pytest.mark.parametrize("angle", [1e-7, 1e-5, 1e-3, 0.1, 1.0, 1.6, 3.0, math.pi])
@pytest.mark.parametrize("radial", [1.0, 0.9999, 3.0])
def test_the_effective_step_is_exact_for_any_turn(angle, radial):
    param = nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    optimizer = torch.optim.SGD([param], 1.0)
    probe = NormProbe([("w", param)], every=1)
    probe.attach(optimizer)
    target = radial * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    param.grad = param.detach() - target
    optimizer.step()
    assert probe.read()["effective_step/mean"] == pytest.approx(2 * math.sin(angle / 2), rel=1e-6, abs=3e-8)


def test_the_effective_step_is_resolved_in_float32():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 64, generator=generator)
    for size in (1e-2, 1e-4, 1e-6):
        param = nn.Parameter(start.clone())
        probe = NormProbe([("w", param)], every=1)
        optimizer = torch.optim.SGD([param], size)
        probe.attach(optimizer)
        param.grad = torch.randn(8, 64, generator=generator)
        optimizer.step()
        exact = brute_force([start], [param.grad], [param.detach()])[1]
        assert probe.read()["effective_step/mean"] == pytest.approx(sum(exact) / 8, rel=1e-4)


def test_a_filter_that_is_zero_does_not_turn():
    param = nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    optimizer = torch.optim.SGD([param], 1.0)
    probe = NormProbe([("w", param)], every=1)
    probe.attach(optimizer)
    param.grad = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    optimizer.step()
    assert probe.read()["effective_step/max"] == 0.0


@pytest.mark.parametrize(("mark", "share"), [("auto", 0.0), (True, 1.0), (False, 0.0)])
def test_marks_of_the_optimizer_are_respected(mark, share):
    param = nn.Parameter(torch.randn(3, 40, generator=torch.Generator().manual_seed(0)))
    param.grad = param.detach().clone()
    optimizer = AdamP([param], scale_invariant=mark)
    probe = NormProbe([("w", param)], every=1)
    probe.attach(optimizer)
    optimizer.step()
    assert probe.read()["projected/share"] == share


def test_the_optimizers_own_delta_decides():
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(3, 40, generator=generator))
    param.grad = reference.gradient(param.detach(), "channel", generator)
    shares = []
    for delta in (0.1, 0.0):
        optimizer = AdamP([param], delta=delta)
        probe = NormProbe([("w", param)], every=1)
        with probe.attach(optimizer):
            optimizer.step()
        values = probe.read()
        shares.append(values["projected/share"])
        assert math.isfinite(values["margin/max"])
    assert shares == [1.0, 0.0]


def test_parameters_without_gradient_count_only_for_norms_and_steps():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1)
    probe.attach(optimizer)
    backward(model)
    model[0].weight.grad = None
    optimizer.step()
    values = probe.read(layers=True)
    assert values["effective_step/min"] == 0
    assert "cosine/0.weight" not in values
    assert values["effective_step/0.weight"] == 0
    assert values["cosine/3.weight"] == pytest.approx(values["cosine/mean"])
    for p in model.parameters():
        p.grad = None
    optimizer.step()
    assert "cosine/mean" not in probe.read()


def test_nothing_is_read_back_before_read():
    model = net()
    optimizer = SGDP(model.parameters(), 0.1, momentum=0.9)
    probe = NormProbe(model.named_parameters(), every=1, oscillation_window=2)
    probe.attach(optimizer)
    for step in range(3):
        backward(model, seed=step)
        with HostReads() as reads:
            optimizer.step()
        assert reads.count == 0


def test_skipped_steps_are_not_seen():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=2)
    probe.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for bad in (True, False, True, False, False):
        model.zero_grad()
        scaler.scale(model(torch.ones(6, 2, 4, 4) * torch.arange(6).view(6, 1, 1, 1)).square().mean()).backward()
        if bad:
            model[0].weight.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
    assert probe.state_dict()["step"] == 3


def test_the_probe_does_not_change_training():
    model, twin = net(), net()
    optimizer, other = AdamP(model.parameters(), 0.01), AdamP(twin.parameters(), 0.01)
    NormProbe(model.named_parameters(), every=1, oscillation_window=2).attach(optimizer)
    for step in range(3):
        for m, o in ((model, optimizer), (twin, other)):
            backward(m, seed=step)
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_removed_probe_sees_nothing_and_can_be_attached_again():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1)
    handle = probe.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached already"):
        probe.attach(optimizer)
    handle.remove()
    backward(model)
    optimizer.step()
    assert probe.state_dict()["step"] == 0
    with probe.attach(torch.optim.SGD(model.parameters(), 0.1)):
        pass


def test_a_resumed_probe_continues_bitwise(tmp_path):
    def start():
        model = net()
        optimizer = SGDP(model.parameters(), 0.1, momentum=0.9)
        probe = NormProbe(model.named_parameters(), every=2, oscillation_window=3)
        probe.attach(optimizer)
        return model, optimizer, probe

    def go(model, optimizer, steps):
        for step in steps:
            backward(model, seed=step)
            optimizer.step()

    model, optimizer, probe = start()
    go(model, optimizer, range(2))  # in the middle of the window
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "probe": probe.state_dict()}
    torch.save(saved, tmp_path / "saved.pt")
    go(model, optimizer, range(2, 9))
    expected = probe.read(layers=True)

    model, optimizer, probe = start()
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    probe.load_state_dict(saved["probe"])
    go(model, optimizer, range(2, 9))
    assert probe.read(layers=True) == expected
    assert "oscillation/mean" in expected


def test_the_state_of_other_parameters_is_refused():
    state = NormProbe(net().named_parameters()).state_dict()
    with pytest.raises(ValueError, match="other names"):
        NormProbe([("w", nn.Parameter(torch.ones(2, 2)))]).load_state_dict(state)


def test_a_state_does_not_change_with_the_probe():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = NormProbe(model.named_parameters(), every=1, oscillation_window=4)
    probe.attach(optimizer)
    backward(model)
    optimizer.step()
    state = probe.state_dict()
    frozen = copy.deepcopy(state)
    optimizer.step()
    probe.read(layers=True)
    assert repr(state) == repr(frozen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_every_dtype_is_measured(dtype):
    param = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype))
    optimizer = torch.optim.SGD([param], 0.1, foreach=False)
    probe = NormProbe([("w", param)], every=1)
    probe.attach(optimizer)
    param.grad = torch.ones_like(param)
    optimizer.step()
    values = probe.read()
    exact = param.detach().to(torch.complex128).abs().square().sum(1).sqrt().mean()
    assert values["norm/mean"] == pytest.approx(float(exact), rel=1e-6)
    assert values["effective_step/min"] > 0


def test_channels_last_weights_give_the_same_values():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = net().to(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probe = NormProbe(model.named_parameters(), every=1)
        probe.attach(optimizer)
        backward(model)
        optimizer.step()
        results.append(probe.read())
    assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)


def test_large_weights_are_measured_in_blocks(monkeypatch):
    results = []
    for block in (1, 40, 1 << 19):
        monkeypatch.setattr("adamp.probes.movement._BLOCK", block)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probe = NormProbe(model.named_parameters(), every=1)
        probe.attach(optimizer)
        backward(model)
        optimizer.step()
        results.append(probe.read(layers=True))
    assert results[0] == pytest.approx(results[2], rel=1e-6)
    assert results[1] == pytest.approx(results[2], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"every": 0}, "every"), ({"delta": 0.0}, "delta"), ({"delta": math.nan}, "delta"), ({"eps": -1.0}, "eps"),
     ({"oscillation_window": -1}, "oscillation_window")],
)  # fmt: skip
def test_a_bad_option_is_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}="):
        NormProbe(net().named_parameters(), **options)


def test_parameters_must_have_filters_and_names_of_their_own():
    with pytest.raises(ValueError, match="no parameter of two"):
        NormProbe([("b", nn.Parameter(torch.ones(3)))])
    with pytest.raises(ValueError, match="twice"):
        NormProbe([("w", nn.Parameter(torch.ones(3, 3))), ("w", nn.Parameter(torch.ones(3, 3)))])
