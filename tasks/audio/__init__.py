"""Audio: the Harmonic CNN on MagnaTagATune, Speech Commands and DCASE 2017 task 4 (AdamP paper, Tables 1 and 3)."""

from tasks.audio.clips import ClipSet, Listing
from tasks.audio.harmonic import HarmonicSpectrogram
from tasks.audio.networks import HarmonicCnn
from tasks.audio.sets import official_set, synthetic_set
from tasks.audio.task import AudioClassifier

__all__ = [
    "AudioClassifier",
    "ClipSet",
    "HarmonicCnn",
    "HarmonicSpectrogram",
    "Listing",
    "official_set",
    "synthetic_set",
]
