"""The library of the CPU kernel: the one that a wheel holds for this processor, else compiled once per machine.

A compiled library is stored in `$ADAMP_KERNEL_CACHE`, else in `$XDG_CACHE_HOME/adamp`, else in `~/.cache/adamp`. All
environments of a user share it, so its name depends on all that decides on its code: source, flags, processor, C
library and compiler. It does not depend on torch's version: the kernel is given addresses and uses none of torch's
headers. `$CXX` names the compiler, else the first of c++, g++ and clang++ is used. Without a compiler the newest
library of this source and processor serves.

A stored library ends with a digest of its bytes. It is loaded only if they agree, and if it belongs to this user or
to root and nobody else can write it: a damaged file would kill the process, another user's would run as this one.
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
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "step.h", "simd.h"))  # the first is compiled
# No -ffast-math: NaN must stay NaN. The processor's own instructions: the file's name holds the processor.
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
PORTABLE_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
FLAGS = (*PORTABLE_FLAGS, NATIVE)

# Machine -> -march of each library in a wheel and the features of /proc/cpuinfo that it needs, the best first. Vectors
# have one width in all of them; x86-64-v3 adds fused multiply-add, so that its numbers are those of -march=native.
PACKAGED_LEVELS: dict[str, dict[str, set[str]]] = {
    "x86_64": {
        "x86-64-v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
        "x86-64": set(),
    },
    "aarch64": {"armv8-a": set()},
}
PACKAGED = Path(__file__).with_name("libraries")  # wheels alone have this folder


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


def packaged_library() -> Path | None:
    """Return the library in this installation that fits the processor best, None without any."""
    if not PACKAGED.is_dir():
        return None
    lines = [line.partition(":") for line in _processor().splitlines()]
    features = {word for name, _, words in lines if name.strip() in ("flags", "Features") for word in words.split()}
    for level, needed in PACKAGED_LEVELS.get(platform.machine(), {}).items():
        path = PACKAGED / f"cpu-{level}.so"
        if needed <= features and path.is_file():
            return path
    return None


def _cache_folder() -> Path:
    if folder := os.environ.get("ADAMP_KERNEL_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adamp"
    except RuntimeError:  # no HOME, and a user without a name
        return Path(tempfile.gettempdir()) / f"adamp-{os.geteuid()}"


@functools.cache
def _source_digest() -> str:
    """Return a digest of all but the compiler: source, flags, system, processor and C library."""
    libc = ""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not glibc
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    identity = [path.read_text() for path in SOURCES]
    identity += [*FLAGS, platform.system(), platform.machine(), _processor(), libc]
    return _digest("\n".join(identity))


def _compiler_digest() -> str:
    """Return a digest of the compiler's command and file, which an upgrade replaces; the compiler is not started."""
    command = find_compiler()
    file = Path(shutil.which(command[0]) or command[0]).resolve()
    status = file.stat()
    return _digest(f"{shlex.join(command)}\n{file}\n{status.st_size}\n{status.st_mtime_ns}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _target() -> Path:
    """Return the path of the library for this source, processor and compiler; without a compiler, of any compiler's."""
    folder, source = _cache_folder(), _source_digest()
    try:
        return folder / f"cpu-{source}-{_compiler_digest()}.so"
    except (BuildError, OSError):
        of_any = sorted(folder.glob(f"cpu-{source}-*.so"), key=lambda path: path.stat().st_mtime)
        return of_any[-1] if of_any else folder / f"cpu-{source}.so"


def _check_system() -> None:
    if os.name != "posix":
        raise BuildError(f"the kernel is not built on {platform.system()}")


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: that of CXX, else the first of c++, g++ and clang++.

    Raises:
        BuildError: There is none.
    """
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
    """Compile the kernel unless it already is or came with the wheel, and return the library's path.

    The compiler writes to a temporary file that is then renamed: other processes see a complete library or none.

    Args:
        force: Compile in any case.

    Raises:
        BuildError: No compiler, the compiler failed, or the cache cannot be written.
    """
    _check_system()
    if not force and (packaged := packaged_library()):
        return packaged
    target = _target()
    # Read before locking: a cache that another user has filled need not be writable
    if not force and _fault(target) is None:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with _only_one(target.with_suffix(".lock")):
            if force or _fault(target) is not None:
                compiler = find_compiler()
                log.info("compiling the CPU kernel of AdamP and SGDP, once for this machine, into %s", target)
                compile_library(target, [*compiler, *FLAGS], seal=True)
    except OSError as error:
        fault = f"; {_fault(target)}" if target.exists() else ""
        raise BuildError(
            f"{target.parent} cannot be written ({error}){fault}: set ADAMP_KERNEL_CACHE to a folder of your own"
        ) from error
    return target


SEAL = b"adamp-sha256:"  # before the digest at the end of a stored library, which a loader never reads


def _fault(path: Path) -> str | None:
    """Return why a stored library must not be loaded, None for one that may."""
    try:
        with path.open("rb") as file:
            return _fault_of(path, file)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def _fault_of(path: Path, file: BinaryIO) -> str | None:
    status = os.fstat(file.fileno())
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} cannot be loaded: it belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} cannot be loaded: other users can write it"
    content, seal, digest = file.read().rpartition(SEAL)
    if not seal or hashlib.sha256(content).digest() != digest:
        return f"{path} cannot be loaded: it is damaged"
    return None


def compile_packaged(folder: Path = PACKAGED) -> None:
    """Compile the kernel into an installation, for each level of this machine's architecture.

    For a wheel, or an image that runs on other processors and has no compiler.

    Raises:
        BuildError: No compiler, the compiler failed, or the folder cannot be written.
    """
    flag = "-march=" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=generic -march="
    try:
        folder.mkdir(exist_ok=True)
        for level in PACKAGED_LEVELS.get(platform.machine(), {}):
            words = [*find_compiler(), *PORTABLE_FLAGS, *f"{flag}{level}".split(), "-s"]
            compile_library(folder / f"cpu-{level}.so", words)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written ({error})") from error


def compile_library(target: Path, command: Sequence[str], *, seal: bool = False) -> None:
    """Compile the kernel into a file, which appears complete or not at all.

    Args:
        target: The file.
        command: The compiler and its flags.
        seal: Whether the file ends with a digest of its bytes, as `load` wants it of the cache's.

    Raises:
        BuildError: The compiler cannot be started or has failed.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        full = [*command, "-o", str(output), str(SOURCES[0])]
        try:
            done = subprocess.run(full, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"the C++ compiler {command[0]} cannot be started: {error}") from error
        if done.returncode:
            raise BuildError(f"`{shlex.join(full)}` failed:\n{done.stderr[-2000:]}")
        output.chmod(0o755)
        with output.open("r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            if seal:
                file.write(SEAL + digest)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the bytes
        output.replace(target)


class _Loaded:
    """The library in this process, or the reason why it could not be built."""

    library: ctypes.CDLL | None = None
    failure: str | None = None


def _open(path: Path) -> ctypes.CDLL:
    try:
        with path.open("rb") as file:
            if path.parent != PACKAGED and (fault := _fault_of(path, file)):
                raise BuildError(fault)
            # The very file that was checked: its name may mean another one by now
            checked = Path(f"/proc/self/fd/{file.fileno()}")
            library = ctypes.CDLL(str(checked if checked.exists() else path))
        for name in ("adamp_step", "sgdp_step"):
            getattr(library, name).restype = None
    except (OSError, AttributeError) as error:
        way_out = "remove it, it will be compiled again"
        if "failed to map segment" in str(error):
            way_out = "no programs run from its folder (noexec): set ADAMP_KERNEL_CACHE to one from which they do"
        raise BuildError(f"{path} cannot be loaded ({error}): {way_out}") from error
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
    """Return whether a library for this machine is at hand and can be loaded; starts no compiler."""
    if _Loaded.library is None and _Loaded.failure is None and (packaged_library() or _fault(_target()) is None):
        with contextlib.suppress(BuildError):
            load()
    return _Loaded.library is not None


def unavailable_reason() -> str | None:
    """Return why the kernel cannot be used on this machine, None if it can; starts no compiler."""
    if is_compiled() or _Loaded.failure is not None:
        return _Loaded.failure
    try:
        _check_system()
        find_compiler()
    except BuildError as error:
        target = _target()
        return f"{_fault(target)}; {error}" if target.exists() else str(error)
    return None
