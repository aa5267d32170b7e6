"""The Harmonic CNN: seven convolutional stages on the harmonic front end. B clips, N samples, C channels, K classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from tasks.audio.harmonic import HarmonicSpectrogram
from tasks.base import InputError
from tasks.checks import check_fractions

CHANNELS = 128  # of the published network's first four stages


def _convolution(fan_in: int, fan_out: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out)]


class PlainStage(nn.Sequential):
    """Convolution, BatchNorm, ReLU, max pooling."""

    def __init__(self, fan_in: int, fan_out: int, pool: tuple[int, int]) -> None:
        super().__init__(*_convolution(fan_in, fan_out), nn.ReLU(), nn.MaxPool2d(pool))


class ResidualStage(nn.Module):
    """Two convolutions whose result is added to their input, then ReLU and max pooling."""

    def __init__(self, channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))
        self.out = nn.Sequential(nn.ReLU(), nn.MaxPool2d(pool))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x + self.body(x))
        return out


class HarmonicCnn(nn.Module):
    """Logits of clips.

    Every stage halves the frequency axis, 128 levels to 1; what is left of the time axis is reduced to its maximum. The
    convolutions keep the biases of the published network, though BatchNorm takes their effect away.

    Args:
        num_classes: K.
        width: Factor on every channel count: C is 128 times this in the first four stages, twice as many in the others.
        time_pools: By what each of the seven stages divides the time axis.
        dropout: Before the last layer.
        sample_rate: Of the clips, in Hz.
        n_fft: Samples of a frame of the front end.
        num_harmonics: Channels that the front end hands over.
        semitone_scale: Its levels per semitone.
        learn_q: Whether the width of its bands is learned.

    Raises:
        InputError: A size is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 1.0,
        time_pools: Sequence[int] = (2, 2, 2, 2, 2, 2, 2),
        dropout: float = 0.5,
        sample_rate: int = 16_000,
        n_fft: int = 512,
        num_harmonics: int = 6,
        semitone_scale: int = 2,
        learn_q: bool = True,
    ) -> None:
        super().__init__()
        if not (width > 0 and math.isfinite(width)):
            raise InputError(f"model.width={width}: must be positive and finite")
        check_fractions({"model.dropout": dropout})
        if len(time_pools) != 7 or not all(pool >= 1 for pool in time_pools):
            raise InputError(f"model.time_pools={list(time_pools)}: must be seven numbers of at least 1")
        self.front = HarmonicSpectrogram(
            sample_rate=sample_rate, n_fft=n_fft, num_harmonics=num_harmonics, semitone_scale=semitone_scale,
            learn_q=learn_q,
        )  # fmt: skip
        if self.front.num_levels // 2**7 != 1:
            raise InputError(
                f"model: the front end has {self.front.num_levels} levels, which seven stages do not halve to one; "
                "change model.semitone_scale or model.num_harmonics"
            )
        self.normalise = nn.BatchNorm2d(num_harmonics)
        channels = max(1, round(CHANNELS * width))
        wide, pools = 2 * channels, [(2, pool) for pool in time_pools]
        self.stages = nn.Sequential(
            PlainStage(num_harmonics, channels, pools[0]),
            *(ResidualStage(channels, pool) for pool in pools[1:4]),
            PlainStage(channels, wide, pools[4]),
            *(ResidualStage(wide, pool) for pool in pools[5:]),
        )
        self.head = nn.Sequential(
            nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, num_classes)
        )
        # T frames need T // prod(time_pools) >= 1, and T = 1 + N // hop.
        self.min_samples = (math.prod(time_pools) - 1) * self.front.hop

    def forward(self, waves: Tensor) -> Tensor:
        """Return logits (B, K) of waveforms (B, N)."""
        x = self.stages(self.normalise(self.front(waves)))  # (B, 2C, 1, T')
        logits: Tensor = self.head(x.squeeze(2).amax(2))
        return logits
