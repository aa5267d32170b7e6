"""What this machine has for the suite, what is missing, and what to do about it.

It needs Python alone: a broken or missing torch is a finding, not an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.checkout import ROOT
from launch.data_places import read_places

GOOD, ODD, BAD = "ok", "note", "BAD"
GIB = 2**30
OLDEST = (3, 11)  # Python, as in pyproject.toml
NEEDED = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pillow", "timm", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        level: GOOD, ODD (works, but worth knowing) or BAD (something of the suite will not work).
        fact: What was found.
        advice: What to do about it; empty when nothing is to be done.
    """

    what: str
    level: str
    fact: str
    advice: str = ""


def python() -> Finding:
    """Look at the interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST:
        return Finding("python", BAD, found, "Python 3.11 or newer is needed: make setup PYTHON=python3.12")
    return Finding("python", GOOD, found)


def pinned() -> dict[str, str]:
    """Return the versions in requirements.lock; where markers make several of one name, none of it."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for name, version in re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.M
        ):
            found.setdefault(name.lower(), []).append(version)
    return {name: versions[0] for name, versions in found.items() if len(versions) == 1}


def packages() -> Iterator[Finding]:
    """Compare the packages that decide numbers with the lock."""
    wanted, missing, other = pinned(), [], []
    for name in NEEDED:
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name in wanted and have.split("+")[0] != wanted[name].split("+")[0]:
            other.append(f"{name} {have} (locked: {wanted[name]})")
    if missing:
        yield Finding("packages", BAD, f"missing: {', '.join(missing)}", "make setup installs the locked versions")
    elif other:
        yield Finding("packages", ODD, "; ".join(other), "make setup installs what the results were made with")
    else:
        yield Finding("packages", GOOD, f"{len(NEEDED)} looked at, as locked")


def torch_build() -> Iterator[Finding]:
    """Load torch and look at its build, its devices and its collectives."""
    try:
        import torch
        import torch.distributed as dist
    except Exception as error:  # a broken library fails in many ways
        yield Finding("torch", BAD, f"cannot be loaded: {str(error).splitlines()[0]}", "make clean setup")
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch", GOOD, f"{torch.__version__}, built for {built}, {torch.get_num_threads()} threads")
    yield gpu(torch)
    have = [name for name in ("gloo", "nccl") if getattr(dist, f"is_{name}_available")()] if dist.is_available() else []
    lacking = [name for name in ("gloo", *(["nccl"] if torch.cuda.is_available() else [])) if name not in have]
    if lacking:
        yield Finding("collectives", BAD, f"no {', '.join(lacking)}", "GPUS=2 and more need a torch built with it")
    else:
        yield Finding("collectives", GOOD, ", ".join(have))


def gpu(torch: object) -> Finding:
    """Say which GPUs there are; none is no fault, a GPU that torch cannot use is."""
    cuda = torch.cuda  # type: ignore[attr-defined]
    if cuda.is_available():
        names = [cuda.get_device_name(i) for i in range(cuda.device_count())]
        kind = ".".join(map(str, cuda.get_device_capability(0)))
        if f"sm_{kind.replace('.', '')}" not in cuda.get_arch_list() and float(kind) < 5:
            return Finding("gpu", BAD, f"{names[0]}, capability {kind}", "torch has no code for it: train.device=cpu")
        free = min(cuda.mem_get_info(i)[0] for i in range(len(names))) / GIB
        level, advice = (GOOD, "") if free >= 4 else (ODD, "another program holds its memory: see nvidia-smi")
        return Finding("gpu", level, f"{len(names)} x {names[0]}, capability {kind}, {free:.0f} GiB free", advice)
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
            if listed.returncode == 0 and "GPU" in listed.stdout:
                advice = "the driver sees a GPU and torch does not: update the driver, or install torch for its CUDA"
                return Finding("gpu", BAD, listed.stdout.splitlines()[0], advice)
    return Finding("gpu", ODD, "none", "runs use the CPU: enough for scale=mini, not for scale=full")


def kernel() -> Finding:
    """Look whether the fused CPU step is built."""
    try:
        from adamp.kernels import cpu

        trouble = None if cpu.is_compiled() else cpu.unavailable_reason() or "not built yet"
    except Exception as error:
        trouble = str(error).splitlines()[0]
    if trouble is None:
        return Finding("cpu kernel", GOOD, "built")
    advice = "steps of AdamP and SGDP are slower without it; python -m adamp.kernels.cpu builds it, with a C++ compiler"
    return Finding("cpu kernel", ODD, trouble, advice)


def together(processes: int) -> Finding:
    """Let processes of this machine add up a number, as GPUS=N does."""
    what = f"{processes} processes"
    try:
        importlib.import_module("tasks.engine.distributed")  # the processes import it, and torch with it
        from tasks.engine.processes import spawn
    except Exception as error:
        return Finding(what, BAD, str(error).splitlines()[0], "make setup")
    code = (
        "import torch; from tasks.engine.distributed import process_group\n"
        "with process_group('cpu', timeout_minutes=1) as world: "
        "ok = float(world.all_reduce_mean(torch.tensor([float(world.rank)]).double())) * 2 == world.size - 1\n"
        "raise SystemExit(0 if ok else 1)"
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        done = spawn([sys.executable, "-c", code], processes)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    if done:
        advice = "they meet on 127.0.0.1: allow it in the firewall, and set GLOO_SOCKET_IFNAME=lo if it lies elsewhere"
        return Finding(what, BAD, f"ended with code {done}", advice)
    return Finding(what, GOOD, "met and agreed over gloo")


def folder(what: str, path: Path, *, gib: float, option: str) -> Finding:
    """Look whether a folder can be made, written and locked, and how much is free there."""
    probe = None
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        trouble = "cannot be locked" if probe is not None and not probe.closed else "cannot be written"
        return Finding(what, BAD, f"{path} {trouble}: {error.strerror}", f"give another place with {option}")
    finally:
        for made in (path, *path.absolute().parents):  # a look leaves nothing behind
            if made == existing or not existing.exists():
                break
            with contextlib.suppress(OSError):
                made.rmdir()
    usage = shutil.disk_usage(existing)
    fact = f"{path}: {usage.free / GIB:.1f} GiB free"
    if usage.free < gib * GIB:
        return Finding(what, BAD if usage.free < 0.2 * gib * GIB else ODD, fact, f"free some, or set {option}")
    return Finding(what, GOOD, fact)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Look at the shared memory through which data workers hand over batches."""
    if not path.is_dir():
        return Finding("shared memory", ODD, f"no {path}", "if workers fail: train.num_workers=0")
    usage = shutil.disk_usage(path)
    fact = f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
    if usage.free < 0.25 * GIB:
        advice = "data workers will fail: docker run --shm-size=8g (or --ipc=host), or train.num_workers=0"
        return Finding("shared memory", BAD, fact, advice)
    return Finding("shared memory", GOOD if usage.free >= GIB else ODD, fact, "" if usage.free >= GIB else "little")


def open_files(limit: int | None = None) -> Finding:
    """Look at how many files a process may open; workers pass batches as open files."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = soft if limit is None else limit
    if 0 <= soft < 1024:
        return Finding("open files", BAD, str(soft), f"ulimit -n {min(4096, hard) if hard > 0 else 4096}")
    return Finding("open files", GOOD, str(soft))


def memory() -> Finding:
    """Say how many cores and how much memory a run may use, by the container's limit where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    fact = f"{cores} cores, {total / GIB:.0f} GiB"
    if total < 4 * GIB:
        return Finding("machine", ODD, fact, "4 GiB are little: lower train.batch_size if a run is killed")
    return Finding("machine", GOOD, fact)


def data(root: str) -> Iterator[Finding]:
    """Look at the cache of prepared sets, and at the given data root."""
    cache = Path(os.environ.get("ADAMP_DATA") or "~/.cache/adamp/data").expanduser()
    yield folder("data cache", cache, gib=2, option="ADAMP_DATA=FOLDER")
    if not root:
        yield Finding(
            "data root", ODD, "none given", "scale=mini needs none; for scale=full: make doctor data_root=..."
        )
        return
    path = Path(root).expanduser()
    if not path.is_file():
        yield _data_folder("data root", path, advice="give the folder that holds the set: data_root=...")
        return
    try:
        places = read_places(path)
    except ValueError as error:
        yield Finding("data root", BAD, str(error), "the names and the form are in docs/data.md")
        return
    for name, place in places.items():
        if place.is_file():
            yield Finding(name, GOOD, str(place))
        else:
            yield _data_folder(name, place, advice=f"correct its line in {path}")


def _data_folder(what: str, path: Path, *, advice: str) -> Finding:
    """Look whether a folder of data is there and what it holds."""
    try:
        names = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        return Finding(what, BAD, f"{path}: {error.strerror}", advice)
    level, advice = (GOOD, "") if names else (BAD, "it is empty: the layout of each set is in docs/data.md")
    shown = ", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")
    return Finding(what, level, f"{path}: {shown or 'nothing'}", advice)


def wandb(environment: Mapping[str, str] = os.environ) -> Finding:
    """Say what logger=wandb would do. Whether there is a key is said, the key never."""
    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Finding("wandb", GOOD, "not installed", "only logger=wandb needs it: pip install '.[wandb]'")
    key = bool(environment.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, UnicodeDecodeError):
        key = key or "api.wandb.ai" in Path("~/.netrc").expanduser().read_text()
    mode = environment.get("WANDB_MODE") or ("online" if key else "offline")
    fact = f"{version}, mode {mode}, {'a key is set' if key else 'no key'}"
    if mode == "online" and not key:
        return Finding("wandb", BAD, fact, "wandb login, or WANDB_MODE=offline")
    if mode not in ("online", "offline", "disabled", "shared"):
        return Finding("wandb", BAD, fact, "WANDB_MODE is online, offline or disabled")
    return Finding("wandb", GOOD, fact, "upload later with: wandb sync" if mode == "offline" else "")


def examine(values: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, the quick things first."""
    yield python()
    yield from packages()
    yield memory()
    yield folder("results", Path(values["results"]), gib=5, option="ADAMP_RESULTS=FOLDER")
    yield folder("temporary", Path(tempfile.gettempdir()), gib=1, option="TMPDIR=FOLDER")
    yield shared_memory()
    yield open_files()
    yield from data(values["data_root"])
    yield wandb()
    yield from torch_build()
    yield kernel()
    if int(values["processes"]) > 1:
        yield together(int(values["processes"]))
