"""The marks that the search finds, for layers before normalisations, and training with the documented recipe."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from adamp import AdamP, scale_invariant_parameters
from adamp.marks import num_slices, spread

EXAMPLES, INPUTS, OUTPUTS = 6, 4, 6  # examples, inputs, outputs


class Normalised(nn.Module):
    """A layer, a normalisation of its outputs and a head that makes all of them count."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.head = layer, norm, nn.Linear(OUTPUTS, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        return self.head(y if y.ndim == 2 else y.relu().flatten(2).mean(2))


class ByChannel(nn.Module):
    """A normalisation over the last dimension, applied to the channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Normalise(nn.Module):
    """l2 normalisation over all but the first dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1)).view_as(x)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


tokens = torch.arange(EXAMPLES * 3).remainder(7)
# Layer without bias, its input, and its slices in front of a normalisation of each channel
LAYERS = {
    "linear": (lambda: nn.Linear(INPUTS, OUTPUTS, bias=False), inputs(EXAMPLES, INPUTS), "rows"),
    "conv1d": (lambda: nn.Conv1d(INPUTS, OUTPUTS, 3, bias=False), inputs(EXAMPLES, INPUTS, 8), "rows"),
    "conv2d": (lambda: nn.Conv2d(INPUTS, OUTPUTS, 3, bias=False), inputs(EXAMPLES, INPUTS, 5, 5), "rows"),
    "conv3d": (lambda: nn.Conv3d(INPUTS, OUTPUTS, 2, bias=False), inputs(EXAMPLES, INPUTS, 3, 3, 3), "rows"),
    "conv2d in groups": (
        lambda: nn.Conv2d(INPUTS, OUTPUTS, 3, bias=False, groups=2),
        inputs(EXAMPLES, INPUTS, 5, 5),
        "rows",
    ),
    "depthwise": (
        lambda: nn.Conv2d(OUTPUTS, OUTPUTS, 3, bias=False, groups=OUTPUTS),
        inputs(EXAMPLES, OUTPUTS, 5, 5),
        "rows",
    ),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(INPUTS, OUTPUTS, 3, bias=False),
        inputs(EXAMPLES, INPUTS, 5),
        "columns",
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(INPUTS, OUTPUTS, 3, bias=False),
        inputs(EXAMPLES, INPUTS, 4, 4),
        "columns",
    ),
    "transposed in groups": (
        lambda: nn.ConvTranspose2d(INPUTS, OUTPUTS, 3, bias=False, groups=2),
        inputs(EXAMPLES, INPUTS, 4, 4),
        ("columns", 2),
    ),
    "transposed depthwise": (
        lambda: nn.ConvTranspose2d(OUTPUTS, OUTPUTS, 3, bias=False, groups=OUTPUTS),
        inputs(EXAMPLES, OUTPUTS, 4, 4),
        "rows",
    ),
    "embedding": (lambda: nn.Embedding(7, OUTPUTS), tokens, "columns"),
}
NORMS = {
    "batch norm": lambda ndim: {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[ndim](
        OUTPUTS
    ),
    "layer norm": lambda ndim: ByChannel(nn.LayerNorm(OUTPUTS)),
    "group norm": lambda ndim: nn.GroupNorm(2, OUTPUTS),
    "instance norm": lambda ndim: {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[ndim](OUTPUTS),
    "rms norm": lambda ndim: ByChannel(nn.RMSNorm(OUTPUTS)),
    "l2 normalisation": lambda ndim: Normalise(),
}
OF_EACH_CHANNEL = ("batch norm", "instance norm")
CASES = [
    (layer, norm)
    for layer in LAYERS
    for norm in NORMS
    if norm != "instance norm" or layer not in ("linear", "embedding")
]


def expected_mark(layer: str, norm: str) -> object:
    if norm in OF_EACH_CHANNEL:
        return LAYERS[layer][2]
    return "rows" if layer == "embedding" else "tensor"  # each vector of an embedding is normalised alone


def check_slices(model: nn.Module, x: Tensor, name: str, mark: object) -> None:
    """Assert that the outputs stay the same when each slice of a weight is multiplied by a factor of its own."""
    model, x = model.double(), x.double() if x.is_floating_point() else x
    before, weight = model(x), dict(model.named_parameters())[name]
    factors = torch.linspace(2, 3, num_slices(weight.shape, mark), dtype=torch.float64)
    with torch.no_grad():
        weight.mul_(spread(factors, weight.shape, mark)).mul_(1e6)  # beyond the reach of any epsilon
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("layer", "norm"), CASES)
def test_the_search_finds_the_finest_slices_that_may_be_rescaled(layer, norm):
    torch.manual_seed(0)
    make, x, _ = LAYERS[layer]
    with torch.no_grad():
        ndim = make()(x).ndim
    model = Normalised(make(), NORMS[norm](ndim))
    marks = scale_invariant_parameters(model, x)
    assert marks == {"layer.weight": expected_mark(layer, norm)}
    check_slices(model, x, "layer.weight", marks["layer.weight"])


@pytest.mark.parametrize(("dim", "mark"), [(0, "rows"), (1, "columns"), (None, "tensor")])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed"])
def test_weight_norm_makes_slices_of_its_dimension_invariant(kind, dim, mark):
    torch.manual_seed(0)
    make, x, _ = LAYERS[kind]
    model = Normalised(parametrizations.weight_norm(make(), dim=dim), nn.Identity())
    assert scale_invariant_parameters(model, x) == {"layer.parametrizations.weight.original1": mark}


def documented_optimizer(model: nn.Module, example_batch: Tensor) -> AdamP:
    """Return the optimizer of the documentation's recipe, which is run as it is printed."""
    page = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
    recipe = re.search(r"```python\n(from adamp import mark_groups.*?)```", page, re.DOTALL)
    names = {"AdamP": AdamP, "model": model, "example_batch": example_batch}
    exec(recipe.group(1), names)
    return names["optimizer"]


@pytest.mark.parametrize(
    ("make", "x", "steps", "norm"),
    [
        (lambda: nn.Linear(8, 6, bias=False), inputs(64, 8), 600, lambda: nn.LayerNorm(6)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, bias=False), inputs(16, 4, 5, 5), 300, lambda: nn.BatchNorm2d(6)),
    ],
    ids=["linear before layer norm", "transposed convolution before batch norm"],
)
def test_the_documented_recipe_learns_what_an_unmarked_network_does(make, x, steps, norm):
    for recipe in ("marked", "unmarked"):
        torch.manual_seed(0)
        teacher, student = (nn.Sequential(make(), norm()) for _ in range(2))
        target = teacher(x).detach()
        unmarked = AdamP(student.parameters(), scale_invariant=False)
        optimizer = documented_optimizer(student, x) if recipe == "marked" else unmarked
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (student(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert min(losses) < 1e-6, recipe
