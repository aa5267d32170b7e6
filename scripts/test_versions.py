"""The package's own tests on the oldest torch that it allows and on the newest, each in a new environment.

make test-versions [torch=2.6.0,newest] [tests=tests/adamp] [jobs=2] [more="pytest's options"]

The source distribution is built and unpacked; the tests in it run there, with its extra `test`. The oldest version is
the lower bound in pyproject.toml, `newest` what the package index offers. An environment is some 6 GB, nearly all of it
links into uv's cache, and is kept in `build/versions` for the next time.
Exit code: 0 all passed, 1 a test failed, 2 wrong options.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from launch.checkout import ROOT
from scripts.options import command, parse, whole
from scripts.wheel import UV, build, call, stage

WARNINGS = "-W ignore::DeprecationWarning -W ignore::FutureWarning"  # another torch's own


def oldest() -> str:
    """Return the oldest version of torch that pyproject.toml allows."""
    (bound,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = re.fullmatch(r"torch>=(\d+\.\d+)", bound)
    assert found, bound
    return f"{found[1]}.0"


def environment(torch: str, folder: Path, work: Path) -> Path:
    """Return the Python of an environment with this version of torch and what the tests need."""
    python = folder / "bin" / "python"
    if not python.exists():
        call([*UV, "venv", "-q", "--python", sys.executable, str(folder)])
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    others = ["setuptools", "numpy", "pytest-xdist>=3.6,<4"]  # torch's compiler needs the first and may not say so
    call([*UV, "pip", "install", "-q", "--upgrade", "--python", str(python), wanted, *others, f"{work}[test]"])
    call([*UV, "pip", "uninstall", "-q", "--python", str(python), "adamp-optimizers"])  # the unpacked one is tested
    return python


def main(argv: Sequence[str]) -> int:
    """Run the tests on each version of torch and print a line for each."""
    options = parse(argv, options={"torch": f"{oldest()},newest", "tests": "tests/adamp", "jobs": "2", "more": ""})
    whole(options, "jobs")
    work = ROOT / "build" / "versions"
    shutil.rmtree(work / "stage", ignore_errors=True)
    (work / "stage").mkdir(parents=True)
    stage(work / "stage")
    with tarfile.open(build("sdist", work / "stage", work)) as archive:
        (source,) = {name.split("/")[0] for name in archive.getnames()}
        shutil.rmtree(work / source, ignore_errors=True)
        archive.extractall(work, filter="data")
    codes = {}
    for torch in options["torch"].split(","):
        python = environment(torch, work / f"torch-{torch}", work / source)
        print(f"torch {call([str(python), '-c', 'import torch; print(torch.__version__)']).strip()}", flush=True)
        words = [str(python), "-m", "pytest", "-q", "-n", options["jobs"], *WARNINGS.split()]
        words += [*shlex.split(options["tests"]), *shlex.split(options["more"])]
        codes[torch] = subprocess.run(words, cwd=work / source).returncode
    for torch, code in codes.items():
        print(f"torch {torch}: {'passed' if code == 0 else f'failed, exit code {code}'}")
    return int(any(codes.values()))


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__))
