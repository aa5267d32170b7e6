"""The CPU kernel's library: when it is compiled, and what happens where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adamp import SGDP
from adamp.kernels import cpu, cpu_build

ROOT = Path(__file__).resolve().parents[2]
reason = cpu.unavailable_reason()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def run(code, tmp_path, **environment):
    given = {**os.environ, "ADAMP_KERNEL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **environment}
    command = code if isinstance(code, list) else [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=300)


STEP = """
import torch
from adamp import AdamP
from adamp.kernels import cpu
weight = torch.nn.Parameter(torch.ones(4, 3))
weight.grad = torch.arange(12.0).reshape(4, 3)
AdamP([weight]).step()
print(cpu.is_compiled(), bool((weight != 1).any()), cpu.unavailable_reason())
try:
    AdamP([weight], fused=True)
except RuntimeError as error:
    print(error)
"""


def test_without_a_compiler_the_default_works_and_fused_says_why_not(tmp_path):
    done = run(STEP, tmp_path, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    assert "False True no C++ compiler was found" in done.stdout
    assert "fused=True` requires a kernel: no C++ compiler was found: install g++ or clang++" in done.stdout
    done = run([sys.executable, "-m", "adamp.kernels.cpu"], tmp_path, PATH=str(tmp_path), CXX="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("not built: no C++ compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has not built or loaded anything, with an empty cache."""
    monkeypatch.setenv("ADAMP_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_build._Loaded, "library", None)
    monkeypatch.setattr(cpu_build._Loaded, "failure", None)
    return monkeypatch


def step():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    SGDP([weight], lr=0.1, fused=True).step()


def compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_fails_is_quoted_and_not_started_again(fresh, tmp_path):
    fresh.setenv("CXX", compiler(tmp_path / "c++", f"echo x >> {tmp_path}/calls; echo no such flag >&2; exit 1"))
    assert cpu.unavailable_reason() is None and not cpu.is_compiled()
    assert not (tmp_path / "calls").exists()  # neither of the two compiles
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such flag"):
            step()
    assert (tmp_path / "calls").read_text() == "x\n"
    assert "no such flag" in cpu.unavailable_reason()
    assert not cpu.is_compiled()
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock"]


def test_a_compiler_that_is_not_there_and_a_cache_that_cannot_be_made_are_named(fresh, tmp_path):
    fresh.setenv("CXX", "no-such-compiler -O1")
    assert cpu.unavailable_reason() == "the C++ compiler no-such-compiler was not found: correct CXX"
    (tmp_path / "file").write_text("")
    fresh.setenv("ADAMP_KERNEL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(cpu.BuildError, match="set ADAMP_KERNEL_CACHE to a folder"):
        cpu.build()


@pytest.fixture(scope="module")
def built():
    """The bytes of a whole stored library."""
    return cpu_build.build(force=cpu_build.PACKAGED.is_dir()).read_bytes()


def store(content, mode=0o755, uid=None):
    target = cpu_build._target()
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    target.chmod(mode)
    if uid is not None:
        os.chown(target, uid, -1)
    return target


def changed(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


SPOILED = {
    "no library": lambda whole: (b"not a library", 0o755, None),
    "cut": lambda whole: (whole[: len(whole) // 2], 0o755, None),
    "cut in the digest": lambda whole: (whole[:-1], 0o755, None),
    "one bit": lambda whole: (changed(whole, len(whole) // 3), 0o755, None),
    "empty": lambda whole: (b"", 0o755, None),
    "writable by others": lambda whole: (whole, 0o777, None),
    "another user's": lambda whole: (whole, 0o755, 12345),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_library_that_is_damaged_or_not_ones_own_is_refused_in_words_and_compiled_again(
    fault, fresh, built, tmp_path
):
    if fault == "another user's" and os.geteuid():
        pytest.skip("needs root")
    target = store(*SPOILED[fault](built))
    with fresh.context() as without:
        without.setenv("CXX", "")
        without.setenv("PATH", "")
        without.setattr(cpu_build, "_target", lambda: target)
        assert not cpu.is_compiled()
        assert "cannot be loaded: it" in cpu.unavailable_reason() or "other users can write" in cpu.unavailable_reason()
        with pytest.raises(cpu_build.BuildError):
            cpu_build._open(target)
    (tmp_path / "whole").write_bytes(built)
    fresh.setattr(cpu_build, "_target", lambda: target)
    copies = f'while [ "$1" != -o ]; do shift; done; cp {tmp_path}/whole "$2"'
    fresh.setenv("CXX", compiler(tmp_path / "c++", copies))
    assert cpu_build._fault(cpu.build()) is None and cpu.is_compiled()
    assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (os.geteuid(), 0o755)
    step()


def test_a_cache_that_can_be_read_and_not_written_serves(fresh, built, tmp_path):
    target = store(built)
    fresh.setattr(cpu_build, "_only_one", lambda lock: pytest.fail("it asks for a lock"))
    assert cpu.build() == target and cpu.is_compiled()


def test_a_folder_from_which_no_programs_run_is_named(fresh, built, monkeypatch):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    target = store(built)
    monkeypatch.setattr(cpu_build.ctypes, "CDLL", refuse)
    with pytest.raises(cpu.BuildError, match=r"noexec.*set ADAMP_KERNEL_CACHE to one from which they do"):
        cpu_build._open(target)


def test_without_a_home_the_cache_is_a_folder_of_this_user(fresh):
    fresh.delenv("ADAMP_KERNEL_CACHE")
    fresh.delenv("XDG_CACHE_HOME", raising=False)
    fresh.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cpu_build._cache_folder().name == f"adamp-{os.geteuid()}"


@pytest.mark.slow
def test_an_image_gets_libraries_for_every_processor_of_its_kind(fresh, tmp_path):
    fresh.setattr(cpu_build, "PACKAGED", tmp_path / "libraries")
    cpu_build.compile_packaged(tmp_path / "libraries")
    assert cpu_build.packaged_library() and cpu.is_compiled()
    step()


def test_libraries_of_two_compilers_have_two_names_and_without_one_the_last_serves(fresh, tmp_path):
    names = set()
    for given in (compiler(tmp_path / "c++", "true"), f"{tmp_path}/c++ -O0", compiler(tmp_path / "other", "true")):
        fresh.setenv("CXX", given)
        names.add(cpu_build._target())
    compiler(tmp_path / "other", "true # upgraded")
    names.add(cpu_build._target())
    assert len(names) == 4
    cpu_build._target().parent.mkdir()
    cpu_build._target().touch()
    kept = cpu_build._target()
    fresh.setenv("CXX", "")
    fresh.setenv("PATH", "")
    assert cpu_build._target() == kept


@pytest.mark.parametrize("part", ["FLAGS", "SOURCES", "processor", "libc"])
def test_the_name_depends_on_all_that_decides_on_the_code(fresh, tmp_path, part):
    def digest():
        cpu_build._source_digest.cache_clear()
        return cpu_build._source_digest()

    before = digest()
    if part == "FLAGS":
        fresh.setattr(cpu_build, "FLAGS", (*cpu_build.FLAGS, "-O1"))
    elif part == "SOURCES":
        (tmp_path / "cpu.cpp").write_text("// other")
        fresh.setattr(cpu_build, "SOURCES", (tmp_path / "cpu.cpp",))
    elif part == "processor":
        fresh.setattr(cpu_build, "_processor", lambda: "flags : sse2")
    else:
        fresh.setattr(os, "confstr", lambda name: "glibc 2.28")
    changed = digest()
    fresh.undo()
    assert changed != before == digest()


PROCESSORS = {
    "flags : avx avx2 abm bmi1 bmi2 f16c fma movbe xsave sse2 avx512f": "x86-64-v3",
    "flags : avx avx2 abm bmi1 bmi2 f16c movbe xsave sse2": "x86-64",
    "model name : a processor whose model is called fma\nflags : sse2": "x86-64",
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_wheels_library_is_chosen_by_the_processors_features(fresh, tmp_path, processor):
    fresh.setattr(cpu_build, "PACKAGED", tmp_path)
    fresh.setattr(cpu_build, "_processor", lambda: processor)
    fresh.setattr("platform.machine", lambda: "x86_64")
    assert cpu_build.packaged_library() is None
    for level in cpu_build.PACKAGED_LEVELS["x86_64"]:
        (tmp_path / f"cpu-{level}.so").touch()
    assert cpu_build.packaged_library() == cpu_build.build() == tmp_path / f"cpu-{PROCESSORS[processor]}.so"


def test_a_wheels_library_makes_the_step_without_a_compiler(fresh, tmp_path):
    library = cpu.build()
    level = next(iter(cpu_build.PACKAGED_LEVELS.get(os.uname().machine, {"none": ()})))
    fresh.setattr(cpu_build, "PACKAGED", tmp_path)
    fresh.setattr(
        cpu_build, "_processor", lambda: "flags : " + " ".join(cpu_build.PACKAGED_LEVELS["x86_64"]["x86-64-v3"])
    )
    (tmp_path / f"cpu-{level}.so").write_bytes(library.read_bytes())
    fresh.setenv("PATH", "")
    fresh.setenv("CXX", "")
    fresh.setenv("ADAMP_KERNEL_CACHE", str(tmp_path / "empty"))
    assert cpu.is_compiled() and cpu.unavailable_reason() is None
    step()
    assert not (tmp_path / "empty").exists()


def test_two_processes_that_start_together_compile_once(tmp_path):
    # The compiler here counts its calls and hands out the library that this process uses.
    target = cpu.build()
    script = compiler(
        tmp_path / "c++",
        f'echo x >> {tmp_path}/calls; sleep 0.5; while [ "$1" != -o ]; do shift; done; cp {target} "$2"',
    )
    given = {**os.environ, "ADAMP_KERNEL_CACHE": str(tmp_path / "cache"), "CXX": script, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adamp.kernels.cpu"]
    both = [subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(str(tmp_path / "cache") in line for line in said)
    assert (tmp_path / "calls").read_text() == "x\n"


@pytest.mark.slow
def test_the_kernel_compiles_without_a_warning_and_the_command_says_where(tmp_path):
    flags = "-Wall -Wextra -Werror"
    done = run([sys.executable, "-m", "adamp.kernels.cpu"], tmp_path, CXX=f"{os.environ.get('CXX', 'c++')} {flags}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("built: ")
    done = run([sys.executable, "-m", "adamp.kernels.cpu"], tmp_path, PATH="")  # needs no compiler now
    assert done.stdout.startswith("already built: ")
