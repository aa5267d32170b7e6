"""The harmonic front end beside torchaudio's mel spectrogram of equal size, and decoding.

`python benchmarks/audio.py [clips=16] [samples=80000] [rounds=5] [threads=1] [device=cpu] [files=64]
[out=results/benchmarks]`.
Both see the same clips in turn, forward and backward: the harmonic front end's gradient reaches q, the mel
spectrogram's the waveform. Both hand over 768 rows a frame. The product of spectrogram and filters is also timed as one
matrix product and as one product a clip.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.audio import HarmonicSpectrogram
from tasks.audio.cache import decode_all
from tasks.engine.provenance import provenance

DEFAULTS = {
    "clips": "16", "samples": "80000", "rounds": "5", "threads": "1", "device": "cpu", "files": "64",
}  # fmt: skip


def paths(waves: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return name -> what is timed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
    front = HarmonicSpectrogram().to(waves.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 768 mel bands over 257 bins most are empty: the size is what counts
        mel = torch.nn.Sequential(MelSpectrogram(16_000, n_fft=512, n_mels=768, mel_scale="htk"), AmplitudeToDB()).to(
            waves.device
        )
    needing = waves.clone().requires_grad_()
    with torch.no_grad():
        power = torch.stft(waves, 512, 256, window=front.window, return_complex=True).abs().square()
        bank = front.filterbank()

    def harmonic() -> torch.Tensor:
        return front(waves)

    def training(compute: Callable[[], torch.Tensor], leaf: torch.Tensor) -> None:
        leaf.grad = None
        compute().mean().backward()

    return {
        "harmonic, forward": lambda: no_grad(harmonic),
        "mel + dB, forward": lambda: no_grad(lambda: mel(waves)),
        "harmonic, forward and backward": lambda: training(harmonic, front.q),
        "mel + dB, forward and backward": lambda: training(lambda: mel(needing), needing),
        "768 filters, one product": lambda: power.transpose(1, 2) @ bank,
        "768 filters, a product a clip": lambda: torch.bmm(bank.T.expand(len(power), -1, -1), power),
    }


@torch.no_grad()
def no_grad(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    return compute()


def time_all(calls: dict[str, Callable[[], Any]], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each call, all of them in turn in every round; CPU time on the CPU."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()  # of all threads: other work on the machine does not count

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = clock()
            call()
            if number:  # the first round warms up
                seconds[name].append(clock() - begun)
    return {name: statistics.median(found) for name, found in seconds.items()}


def decoding(files: int) -> dict[str, float]:
    """Return clips a second into the cache, of 10 s of noise at 44.1 kHz in three formats, and of reading it back."""
    found = {}
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("wav", "flac", "mp3"):
            root = Path(folder) / ending
            root.mkdir()
            clips = [root / f"{i}.{ending}" for i in range(files)]
            for clip in clips:
                soundfile.write(clip, 0.1 * generator.standard_normal(441_000), 44_100)
            for what in (f"{ending}, decoded and resampled", f"{ending}, looked up in the cache"):
                begun = time.perf_counter()
                decode_all(clips, root, sample_rate=16_000, cache=Path(folder) / "cache")
                found[what] = files / (time.perf_counter() - begun)
    return found


def main(argv: Sequence[str]) -> int:
    options = parse(argv, options={**DEFAULTS, "out": results("benchmarks")})
    try:
        clips, samples, rounds, threads, files = (
            int(options[key]) for key in ("clips", "samples", "rounds", "threads", "files")
        )
        device = torch.device(options["device"])
    except (ValueError, RuntimeError) as error:
        raise ReadError(str(error).splitlines()[0]) from None
    torch.set_num_threads(threads)
    waves = torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = time_all(paths(waves), rounds=rounds, device=device)
    speed = decoding(files)
    ratios = {
        kind: seconds[f"harmonic, {kind}"] / seconds[f"mel + dB, {kind}"]
        for kind in ("forward", "forward and backward")
    }
    lines = [f"# Audio front end, {clips} clips of {samples} samples, {threads} threads, {device.type}\n"]
    unit = "CPU ms" if device.type == "cpu" else "ms"
    lines += [f"| computation | {unit} |", "| --- | --- |"]
    lines += [f"| {name} | {1000 * value:.1f} |" for name, value in seconds.items()]
    lines += [f"\nHarmonic over mel + dB, {kind}: {ratio:.2f} x." for kind, ratio in ratios.items()]
    lines += ["\n| clips of 10 s, 44.1 kHz | clips/s |", "| --- | --- |"]
    lines += [f"| {name} | {value:.0f} |" for name, value in speed.items()]
    facts = provenance(ROOT)
    lines.append(f"\n{facts}; median of {rounds} rounds in turn. CPU time is that of all threads.\n")
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "audio.md").write_text("\n".join(lines), encoding="utf-8")
    found = {"options": options, "seconds": seconds, "ratios": ratios, "clips_per_second": speed, "facts": facts}
    (out / "audio.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__))
