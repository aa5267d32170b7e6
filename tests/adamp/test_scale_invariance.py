"""The structural truth about scale invariance, found by rescaling."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamp import layers, scale_invariant_parameters


def batch(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )  # fmt: skip


def test_only_weights_before_a_normalisation_are_invariant():
    assert scale_invariant_parameters(conv_net(), batch(4, 3, 6, 6)) == {"0.weight": "rows"}


def test_the_model_and_the_random_state_stay_untouched():
    model = conv_net().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scale_invariant_parameters(model, batch(4, 3, 6, 6))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model[1].eps == 1e-5
    assert not model[1]._forward_pre_hooks
    assert next(model.parameters()).dtype == torch.float32


def test_zero_weights_are_not_taken_for_invariant():
    model = conv_net()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[5].weight)
    nn.init.zeros_(model[3].weight)
    assert scale_invariant_parameters(model, batch(4, 3, 6, 6)) == {"0.weight": "rows"}


def test_a_parameter_without_effect_is_not_invariant():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = conv_net(), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    assert scale_invariant_parameters(Net(), batch(4, 3, 6, 6)) == {"used.0.weight": "rows"}


def test_dropout_does_not_disturb():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    assert scale_invariant_parameters(model, batch(16, 5)) == {"0.weight": "rows"}


def test_layer_norm_makes_the_whole_invariant_but_not_its_rows():
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
    assert scale_invariant_parameters(model, batch(16, 5)) == {"0.weight": "tensor"}
    assert scale_invariant_parameters(model, batch(16, 5), per_filter=True) == {}
    model[1] = nn.BatchNorm1d(8)
    assert scale_invariant_parameters(model, batch(16, 5), per_filter=True) == {"0.weight": "rows"}


@pytest.mark.parametrize("kind", ["wn", "ws"])
def test_normalised_layers_are_invariant(kind):
    model = layers.convert(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Flatten(), nn.Linear(96, 2)), kind)
    assert scale_invariant_parameters(model, batch(2, 3, 6, 6), per_filter=True) == {"0.weight": "rows"}


class Tokens(nn.Module):
    """Integer input, two arguments, a dictionary of outputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, tokens, scale):
        return {"logits": [self.out(self.norm(self.embed(tokens) * scale))], "mask": tokens > 2}


def test_inputs_may_be_several_and_outputs_nested():
    tokens = torch.tensor([[0, 1, 2, 3], [3, 4, 5, 6]])
    assert scale_invariant_parameters(Tokens(), (tokens, torch.tensor(2.0))) == {"embed.weight": "rows"}


def test_a_batch_too_small_for_batch_norm_is_refused():
    with pytest.raises(ValueError, match="more than two"):
        scale_invariant_parameters(conv_net(), batch(2, 3, 3, 3))


def test_outputs_without_numbers_are_refused():
    class Labels(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(ValueError, match="no floating-point"):
        scale_invariant_parameters(Labels(3, 4), batch(2, 3))

    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="do not depend"):
        scale_invariant_parameters(Detached(3, 4), batch(2, 3))


def share(name):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    found = scale_invariant_parameters(model, batch(4, 3, 32, 32))
    assert all("conv" in key or "downsample.0" in key for key in found)
    return sum(sizes[key] for key in found), sum(sizes.values())


def test_resnet18_has_the_share_of_the_paper():
    invariant, total = share("resnet18")
    assert (invariant, total) == (11_166_912, 11_689_512)
    assert round(100 * invariant / total, 2) == 95.53


@pytest.mark.slow
def test_resnet50_has_the_share_of_the_paper():
    invariant, total = share("resnet50")
    assert (invariant, total) == (23_454_912, 25_557_032)
    assert round(100 * invariant / total, 2) == 91.77


def test_an_effect_far_below_the_outputs_is_still_an_effect() -> None:
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loud = nn.Linear(4, 4)
            self.faint = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.loud(x) + 1e-9 * self.faint(x)

    torch.manual_seed(0)
    assert scale_invariant_parameters(Faint(), torch.randn(16, 4)) == {}


class Counting(nn.Module):
    """A layer whose buffer, attribute or parameter changes its outputs with each forward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(36, 3)
        self.register_buffer("calls", torch.ones(()))
        self.number, self.gain, self.last = 1, nn.Parameter(torch.ones(())), {}

    def forward(self, x: Tensor) -> Tensor:
        gains = {"buffer": self.calls, "attribute": self.number, "parameter": self.gain.detach().clone()}
        factor = gains.get(self.kind, 1 + len(self.last))
        with torch.no_grad():
            self.calls = self.calls + 1
            self.gain += 1
        self.number, self.last[f"call {self.number}"] = self.number + 1, x
        return factor * self.linear(x)


def with_head(head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), head)


HEADS = {
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(36, 3)),
    "spectral norm by hooks": lambda: nn.utils.spectral_norm(nn.Linear(36, 3)),
    "weight norm by hooks": lambda: nn.utils.weight_norm(nn.Linear(36, 3)),
    **{f"a changing {kind}": lambda kind=kind: Counting(kind) for kind in ("buffer", "attribute", "parameter", "dict")},
}


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("trained", [False, True])
def test_a_module_that_changes_state_in_its_forward_pass_does_not_hide_the_others(kind, trained):
    torch.manual_seed(0)
    model, x = with_head(HEADS[kind]()), batch(4, 3, 5, 5)
    if trained:
        model(x)
    state = copy.deepcopy(model.state_dict())
    found = scale_invariant_parameters(model, x)
    assert found.pop("0.weight") == "rows"
    assert not [
        name for name in found if "weight_v" not in name and "weight_orig" not in name and "original" not in name
    ]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


class RootMeanSquare(nn.Module):
    """RMS normalisation with a large epsilon under another name, or in the code alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.variance_epsilon = kind, 1e-3

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "attribute":
            return x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        if self.kind == "literal":
            return x / (x.norm(dim=-1, keepdim=True) + 1e-3)
        if self.kind == "tensor":
            return x / (x.square().mean(-1, keepdim=True) + torch.tensor(self.variance_epsilon)).sqrt()
        if self.kind == "bound":
            return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        functions = {
            "layer norm": lambda: F.layer_norm(x, x.shape[-1:], eps=1e-3),
            "batch norm": lambda: F.batch_norm(x, None, None, training=True, eps=1e-3),
            "group norm": lambda: F.group_norm(x, 1, eps=1e-3),
            "instance norm": lambda: F.instance_norm(x.unsqueeze(0), eps=1e-3).squeeze(0),
            "rms norm": lambda: F.rms_norm(x, x.shape[-1:], eps=1e-3),
            "normalize": lambda: F.normalize(x, dim=-1, eps=1e-3),
        }
        return functions[self.kind]()


EPSILONS = (
    "attribute",
    "literal",
    "tensor",
    "bound",
    "layer norm",
    "batch norm",
    "group norm",
    "instance norm",
    "rms norm",
)


@pytest.mark.parametrize("kind", [*EPSILONS, "normalize"])
def test_an_epsilon_is_found_whatever_its_name(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8, bias=False), RootMeanSquare(kind), nn.Linear(8, 2)), batch(16, 5)
    with torch.no_grad():
        model[0].weight.mul_(2e-3 / model[0](x).norm(dim=1).min())  # so small that the epsilon hides the invariance
    assert scale_invariant_parameters(model, x) == {"0.weight": "rows" if kind == "batch norm" else "tensor"}


@pytest.mark.parametrize(
    "inner", [nn.LeakyReLU(0.009), nn.Sigmoid(), Function(lambda x: 0.005 * x), Function(lambda x: (0.005 * x).tanh())]
)
def test_small_constants_that_are_no_epsilons_stay(inner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), inner, nn.Linear(8, 2))
    assert scale_invariant_parameters(model, batch(16, 5)) == {}


def test_constants_of_a_module_follow_it_to_float64():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.mask = nn.Linear(5, 8), torch.arange(8) / 4  # neither a buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) @ self.mask.diag()

    model = nn.Sequential(Masked(), nn.BatchNorm1d(8))
    assert scale_invariant_parameters(model, batch(16, 5))["0.linear.weight"] == "rows"


def test_a_parameter_without_values_is_refused():
    with pytest.raises(ValueError, match=r"'1\.weight' on the meta device"):
        scale_invariant_parameters(nn.Sequential(nn.ReLU(), nn.Linear(3, 4, device="meta")), batch(2, 3))


class Spectrum(nn.Module):
    """Complex weights, whose rows or tensor are divided by their norm, and a complex constant; conjugate outputs."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, dtype=torch.complex64))
        self.head = nn.Parameter(torch.randn(6, 2, dtype=torch.complex64))
        self.register_buffer("phase", torch.exp(1j * torch.arange(8)))
        self.dim = dim

    def forward(self, x):
        hidden = (x * self.phase) @ (self.weight / self.weight.norm(dim=self.dim, keepdim=True)).mH
        return (hidden @ self.head).conj()


@pytest.mark.parametrize(("dim", "mark"), [(1, "rows"), (0, "columns"), ((0, 1), "tensor")])
def test_complex_weights_and_constants_stay_complex(dim, mark):
    assert scale_invariant_parameters(Spectrum(dim), batch(16, 8)) == {"weight": mark}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    model, example_batch = conv_net(), batch(4, 3, 6, 6)
    expected = scale_invariant_parameters(model, example_batch)
    with mode():
        assert scale_invariant_parameters(model, example_batch) == expected != {}
