"""The checkout that is running: its folder, and that no process of it imports another checkout's code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from evidence.runs.run import ReadError

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("scripts", "benchmarks", "tests")  # whose files are started
TRAIN = ROOT / "scripts" / "train.py"


def python_path() -> str:
    """Return PYTHONPATH with this checkout first: nodes import it, from wherever a sweep was started."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT)]
    return os.pathsep.join([str(ROOT), *others])


def enter() -> None:
    """Check that the command's file and the imported code are of one checkout, and hold the child processes to it.

    `python scripts/NAME.py` finds the code through the environment's editable install, which may be of another clone.

    Raises:
        ReadError: The command's file lies in another checkout.
    """
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or ROOT).resolve()
    other = next((folder for folder in main.parents if (folder / "launch" / "checkout.py").is_file()), ROOT)
    if other != ROOT and main.relative_to(other).parts[0] in ROOMS:
        raise ReadError(
            f"{main} is started, but this Python imports the code of {ROOT}\n"
            f"run `make setup` in {other} and use its .venv, or set PYTHONPATH={other}"
        )
    os.environ["PYTHONPATH"] = python_path()
