"""The harmonic front end: a spectrogram seen through bands at a note's harmonics, whose width is learned.

Won et al., "Data-driven harmonic filters for audio representation learning", ICASSP 2020; the audio network of the
AdamP paper (appendix E.5). B clips, N samples, T frames, F frequency bins, H harmonics, L levels (notes).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tasks.base import InputError
from tasks.checks import check_at_least

SLOPE, OFFSET = 0.1079, 24.7  # Hz per Hz and Hz: the equivalent rectangular bandwidth of hearing, Won et al. eq. 3
LOWEST_NOTE = 24  # MIDI number of C1
FLOOR = 1e-10  # of power, -100 dB


def centre_frequencies(sample_rate: int, *, num_harmonics: int, semitone_scale: int) -> Tensor:
    """Return the centres of the bands in Hz, (H * L,) float64, harmonic by harmonic.

    The first harmonics are spaced equally in notes from C1 up to, and without, the note nearest to the highest
    frequency whose last harmonic still lies below half of the sample rate; harmonic h is h times as high.

    Args:
        sample_rate: In Hz.
        num_harmonics: H.
        semitone_scale: Levels per semitone.
    """
    highest = round(69 + 12 * math.log2(sample_rate / (2 * num_harmonics) / 440))
    levels = (highest - LOWEST_NOTE) * semitone_scale
    if not levels >= 1:
        raise InputError(
            f"model.sample_rate={sample_rate} with model.num_harmonics={num_harmonics}: no note from C1 on has all its "
            "harmonics below half of the sample rate"
        )
    notes = torch.linspace(LOWEST_NOTE, highest, levels + 1, dtype=torch.float64)[:-1]
    base = 440 * 2 ** ((notes - 69) / 12)  # (L,)
    return torch.cat([h * base for h in range(1, num_harmonics + 1)])


class HarmonicSpectrogram(nn.Module):
    """Waveforms to decibels in H * L triangular bands, as H channels of L levels.

    A band around f0 is max(0, 1 - 2 |f - f0| / w) of width w = (0.1079 f0 + 24.7) / q Hz; q is one number for all
    bands, learned from 1. At q = 1 one band lies between two bins: its value is the floor, without a gradient.

    Everything is computed in float32 under autocast too: powers span more than half precision holds.

    Args:
        sample_rate: In Hz.
        n_fft: Samples of a frame; frames are half of it apart, and centred: T = 1 + N // (n_fft // 2).
        num_harmonics: H.
        semitone_scale: Levels per semitone; 2 gives L = 128 at 16 kHz.
        learn_q: Whether q is a parameter; else the constant 1.
    """

    window: Tensor
    centres: Tensor
    bins: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        n_fft: int = 512,
        num_harmonics: int = 6,
        semitone_scale: int = 2,
        learn_q: bool = True,
    ) -> None:
        super().__init__()
        if not n_fft >= 4:
            raise InputError(f"model.n_fft={n_fft}: must be at least 4 samples")
        check_at_least(1, {"model.num_harmonics": num_harmonics, "model.semitone_scale": semitone_scale})
        centres = centre_frequencies(sample_rate, num_harmonics=num_harmonics, semitone_scale=semitone_scale)
        self.num_harmonics, self.num_levels = num_harmonics, len(centres) // num_harmonics
        self.n_fft, self.hop = n_fft, n_fft // 2
        # Not part of checkpoints: they follow from the arguments.
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("centres", centres.float(), persistent=False)
        self.register_buffer("bins", torch.linspace(0, sample_rate / 2, n_fft // 2 + 1), persistent=False)
        if learn_q:
            self.q = nn.Parameter(torch.ones(1))
        else:
            self.register_buffer("q", torch.ones(1), persistent=False)

    def filterbank(self) -> Tensor:
        """Return the weight of each bin in each band, (F, H * L)."""
        widths = (SLOPE * self.centres + OFFSET) / self.q
        return (1 - 2 * (self.bins.unsqueeze(1) - self.centres).abs() / widths).clamp(min=0)

    def forward(self, waves: Tensor) -> Tensor:
        """Return decibels (B, H, L, T) of waveforms (B, N)."""
        with torch.autocast(waves.device.type, enabled=False):
            frames = torch.stft(
                waves.to(self.window.dtype), self.n_fft, hop_length=self.hop, window=self.window, return_complex=True
            )  # (B, F, T), in memory (B, T, F)
            power = frames.real.square() + frames.imag.square()
            bands = power.transpose(1, 2) @ self.filterbank()  # one product of (B * T, F) and (F, H * L)
            decibels = 10 * bands.clamp(min=FLOOR).log10()
            return decibels.transpose(1, 2).unflatten(1, (self.num_harmonics, self.num_levels))
