"""Compilation of the CPU kernel, once per machine, and loading of its library.

It is stored in `$ADAMP_KERNEL_CACHE`, else in `$XDG_CACHE_HOME/adamp`, else in `~/.cache/adamp`, under a name that
depends on the source, the flags and the processor. `$CXX` names the compiler, else the first of c++, g++ and clang++ is
used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "step.h", "simd.h"))  # the first is compiled
# No -ffast-math: NaN must stay NaN. The processor's own instructions: the file's name holds the processor.
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
FLAGS = ("-std=c++17", "-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")


class BuildError(RuntimeError):
    """The kernel could not be compiled; the text says why and what to do."""


@functools.cache
def _processor() -> str:
    """Return the first processor's model and features, which decide on the instructions that may be used."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.startswith(("model", "flags", "Features", "CPU "))]
        return "\n".join(lines)
    return platform.processor()


def _cache_folder() -> Path:
    if folder := os.environ.get("ADAMP_KERNEL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adamp"


@functools.cache
def _name() -> str:
    identity = "\n".join(
        [*(path.read_text() for path in SOURCES), *FLAGS, platform.system(), platform.machine(), _processor()]
    )
    return f"cpu-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"


def _target() -> Path:
    """Return the path of the library for this source, these flags and this processor."""
    return _cache_folder() / _name()


def _check_system() -> None:
    if os.name != "posix":
        raise BuildError(f"the kernel is not built on {platform.system()}")


def _compiler() -> list[str]:
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]) is None:
            raise BuildError(f"the C++ compiler {command[0]} was not found: correct CXX")
        return command
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler was found: install g++ or clang++, or name one in CXX")


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold a lock between processes: of several that start together one compiles, the others wait."""
    import fcntl

    with lock.open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks: then all compile, see build
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(*, force: bool = False) -> Path:
    """Compile the kernel unless it already is, and return the library's path.

    The compiler writes to a temporary file that is then renamed: other processes see a complete library or none.

    Args:
        force: Compile in any case.

    Raises:
        BuildError: No compiler, the compiler failed, or the cache cannot be written.
    """
    _check_system()
    target = _target()
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(target.with_suffix(".lock")):
            if force or not target.is_file():
                _compile(target)
    except OSError as error:
        raise BuildError(f"{target.parent} cannot be written ({error}): set ADAMP_KERNEL_CACHE to a folder") from error
    return target


def _compile(target: Path) -> None:
    compiler = _compiler()
    log.info("compiling the CPU kernel of AdamP and SGDP, once for this machine, into %s", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        command = [*compiler, *FLAGS, "-o", str(output), str(SOURCES[0])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"the C++ compiler {compiler[0]} cannot be started: {error}") from error
        if done.returncode:
            raise BuildError(f"`{shlex.join(command)}` failed:\n{done.stderr[-2000:]}")
        output.replace(target)


class _Loaded:
    """The library in this process, or the reason why it could not be built."""

    library: ctypes.CDLL | None = None
    failure: str | None = None


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        for name in ("adamp_step", "sgdp_step"):
            getattr(library, name).restype = None
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded ({error}): remove it, it will be compiled again") from error
    return library


def load() -> ctypes.CDLL:
    """Return the library, after compiling and loading it if necessary.

    Raises:
        BuildError: See `build`; after a failure there is no second attempt in this process.
    """
    if _Loaded.library is None:
        if _Loaded.failure is not None:
            raise BuildError(_Loaded.failure)
        try:
            _Loaded.library = _open(build())
        except BuildError as error:
            _Loaded.failure = str(error)  # do not start the compiler at every step
            raise
    return _Loaded.library


def is_compiled() -> bool:
    """Return whether the kernel is compiled for this machine and can be loaded; starts no compiler."""
    if _Loaded.library is None and _Loaded.failure is None and _target().is_file():
        with contextlib.suppress(BuildError):
            load()
    return _Loaded.library is not None


def unavailable_reason() -> str | None:
    """Return why the kernel cannot be used on this machine, None if it can; starts no compiler."""
    if is_compiled() or _Loaded.failure is not None:
        return _Loaded.failure
    try:
        _check_system()
        _compiler()
    except BuildError as error:
        return str(error)
    return None
