"""Write one of the synthetic sound sets into a folder, in the layout of the official set it stands for.

Usage:
    python -m scripts.prepare.speech_commands_tts out=FOLDER                      spoken words, Speech Commands' layout
    python -m scripts.prepare.speech_commands_tts set=synthetic_instruments ...   music, MagnaTagATune's layout
    python -m scripts.prepare.speech_commands_tts set=synthetic_events ...        17 events, DCASE 2017 task 4's layout
    options: words=35 speakers=104, or clips=480 seconds=6 seed=0

Training makes what it needs by itself; this is for listening to it, or for reading it as an official set.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from scripts.options import command, parse
from tasks.audio.sets import SYNTHETIC
from tasks.base import InputError

OPTIONS = {"out": "", "set": "speech_commands_tts", "words": "", "speakers": "", "clips": "", "seconds": "", "seed": ""}


def main(argv: Sequence[str]) -> int:
    values = parse(argv, options=OPTIONS)
    name = values["set"]
    if name not in SYNTHETIC:
        raise ReadError(f"set={name}: choose one of {', '.join(SYNTHETIC)}")
    out = Path(values["out"])
    if not values["out"] or (out.exists() and any(out.iterdir())):
        raise ReadError(f"out={values['out']}: give a folder that is new or empty")
    given: dict[str, float] = {}
    for key in ("words", "speakers", "clips", "seconds", "seed"):
        try:
            if values[key]:
                given[key] = float(values[key]) if key == "seconds" else int(values[key])
        except ValueError:
            raise ReadError(f"{key}={values[key]}: must be a number") from None
    out.mkdir(parents=True, exist_ok=True)
    try:
        importlib.import_module(f"tasks.audio.synthesis.{SYNTHETIC[name][0]}").write(out, **given)
    except TypeError:
        raise ReadError(f"set={name} does not take {', '.join(given)} together") from None
    except InputError as error:
        raise ReadError(str(error)) from None
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__))
