import pytest
import torch
from torchaudio.transforms import AmplitudeToDB, Spectrogram

from adamp.scale_invariance import scale_invariant_parameters
from tasks.audio import HarmonicCnn, HarmonicSpectrogram
from tasks.base import InputError

POOLS = {"mtat": (2, 2, 2, 2, 2, 3, 3), "dcase": (2, 2, 2, 2, 2, 2, 2), "keyword": (2, 2, 2, 2, 2, 2, 1)}


def small(kind, classes=5):
    torch.manual_seed(0)
    return HarmonicCnn(classes, width=1 / 16, time_pools=POOLS[kind])


@pytest.mark.parametrize(
    ("kind", "classes", "count"), [("mtat", 50, 3_631_551), ("dcase", 17, 3_623_070), ("keyword", 35, 3_627_696)]
)
def test_the_network_has_the_published_number_of_parameters(kind, classes, count):
    with torch.device("meta"):
        network = HarmonicCnn(classes, time_pools=POOLS[kind])
    parameters = dict(network.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == count
    assert len(parameters) == 57
    assert parameters["front.q"].shape == (1,)
    convolutions = [p for p in parameters.values() if p.ndim == 4]
    assert (len(convolutions), sum(p.numel() for p in convolutions)) == (12, 3_545_856)


def test_a_narrow_keyword_network_has_the_expected_number_of_parameters():
    with torch.device("meta"):
        network = HarmonicCnn(35, width=0.125, time_pools=POOLS["keyword"])
    assert sum(p.numel() for p in network.parameters()) == 59_264


@pytest.mark.parametrize(
    ("kind", "samples", "times"),
    [
        ("mtat", 80_000, [313, 156, 78, 39, 19, 9, 3, 1]),
        ("dcase", 48_000, [188, 94, 47, 23, 11, 5, 2, 1]),
        ("dcase", 80_000, [313, 156, 78, 39, 19, 9, 4, 2]),
        ("dcase", 160_000, [626, 313, 156, 78, 39, 19, 9, 4]),
        ("keyword", 16_128, [64, 32, 16, 8, 4, 2, 1, 1]),
        ("keyword", 16_384, [65, 32, 16, 8, 4, 2, 1, 1]),
    ],
)
@torch.no_grad()
def test_every_stage_has_the_published_shape(kind, samples, times):
    network = small(kind).eval()
    x = network.normalise(network.front(torch.randn(1, samples)))
    shapes = [tuple(x.shape[1:])]
    for stage in network.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    widths, heights = [6, 8, 8, 8, 8, 16, 16, 16], [128, 64, 32, 16, 8, 4, 2, 1]
    assert shapes == list(zip(widths, heights, times, strict=True))
    assert samples >= network.min_samples


@pytest.mark.parametrize(("kind", "samples"), [("mtat", 73_472), ("dcase", 32_512), ("keyword", 16_128)])
@torch.no_grad()
def test_the_shortest_input_is_that_which_passes(kind, samples):
    network = small(kind).eval()
    assert network.min_samples == samples
    assert network(torch.randn(1, samples)).shape == (1, 5)
    with pytest.raises(RuntimeError):
        network(torch.randn(1, samples - 256))


def test_the_filterbank_is_the_published_one():
    front = HarmonicSpectrogram()
    bank = front.filterbank().detach()
    assert bank.shape == (257, 768)
    assert float(bank.max()) == pytest.approx(0.9993, abs=5e-5)
    assert int((bank.amax(0) == 0).sum()) == 1  # between two bins
    assert int((bank.amax(0) == 0).nonzero()) < 128
    centres = front.centres[[0, 127, 767]].tolist()
    assert centres == pytest.approx([32.7032, 1280.975, 7685.85], rel=1e-6)
    assert front.centres[128:256].tolist() == pytest.approx((2 * front.centres[:128]).tolist())
    assert list(front.state_dict()) == ["q"]  # all else follows from the arguments
    assert "q" not in dict(HarmonicSpectrogram(learn_q=False).named_parameters())


def test_decibels_are_those_of_torchaudio_through_the_same_bands():
    front, waves = HarmonicSpectrogram(), torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    power = Spectrogram(n_fft=512)(waves)  # Hann window, hop of half a frame, centred, power 2
    expected = AmplitudeToDB()(torch.einsum("bft,fk->bkt", power, front.filterbank())).reshape(2, 6, 128, -1)
    torch.testing.assert_close(front(waves), expected, rtol=1e-4, atol=1e-3)


def test_silence_is_the_floor_and_every_parameter_gets_a_finite_gradient():
    assert torch.equal(HarmonicSpectrogram()(torch.zeros(1, 512)), torch.full((1, 6, 128, 3), -100.0))
    network = small("keyword")
    waves = torch.randn(3, 16_384) * torch.tensor([[1.0], [1e-3], [0.0]])
    network(waves).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert float(network.front.q.grad.abs()) > 0


def test_the_front_end_stays_in_float32_under_autocast():
    network = small("keyword").eval()
    waves = torch.randn(2, 16_384)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.front(waves), HarmonicSpectrogram()(waves))
        assert network(waves).dtype == torch.bfloat16


def test_twelve_convolutions_and_the_first_linear_layer_are_scale_invariant():
    waves = torch.randn(6, 32_768, generator=torch.Generator().manual_seed(0))
    network = small("keyword")
    found = scale_invariant_parameters(network, waves)
    weights = {name for name, p in network.named_parameters() if p.ndim == 4} | {"head.0.weight"}
    assert found == dict.fromkeys(found, "rows")
    assert found.keys() == weights
    assert len(found) == 13


def test_of_the_full_network_994_thousandths_are_scale_invariant():
    with torch.device("meta"):
        parameters = dict(HarmonicCnn(50, time_pools=POOLS["mtat"]).named_parameters())
    invariant = sum(p.numel() for name, p in parameters.items() if p.ndim == 4 or name == "head.0.weight")
    assert invariant == 3_611_392
    assert invariant / sum(p.numel() for p in parameters.values()) == pytest.approx(0.994, abs=5e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "model.width=0"),
        ({"width": float("nan")}, "model.width=nan"),
        ({"dropout": float("nan")}, "model.dropout=nan"),
        ({"time_pools": (2, 2)}, "model.time_pools=[2, 2]"),
        ({"n_fft": 2}, "model.n_fft=2"),
        ({"semitone_scale": 1}, "64 levels"),
        ({"num_harmonics": 0}, "model.num_harmonics=0"),
        ({"sample_rate": 300}, "model.sample_rate=300"),
    ],
)
def test_a_wrong_size_is_refused_with_its_option(options, said):
    with pytest.raises(InputError, match="model") as error:
        HarmonicCnn(3, **options)
    assert said in str(error.value)
