"""Damaged files for every reader: each refused by name, counted, or without effect.

usage: python tests/reliability/corpus.py [only=WORD] [--all]

Options: only=WORD takes the layouts whose name holds the word, and --all prints every case instead of the bad ones.
Exit code 1 if a case ends in a traceback, or in another result without a word. Needs the tests beside the scripts.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts import options


def main(argv: Sequence[str]) -> int:
    """Run the corpus, print a line a layout, and return the exit code."""
    values = options.parse(argv, options={"only": ""}, flags=("all",))
    from tests.reliability import bad_inputs, sets  # loads every reader

    chosen = [name for name in sets.LAYOUTS if values["only"] in name]
    if not chosen:
        raise options.ReadError(f"only={values['only']} is in none of: {', '.join(sets.LAYOUTS)}")
    total: Counter[str] = Counter()
    for name in chosen:
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
            for outcome in bad_inputs.outcomes(name, Path(folder)):
                counts[outcome.kind] += 1
                if outcome.bad or values["all"]:
                    print(f"{outcome.kind:10} {outcome.case}  {outcome.said}")
        print(f"{name:20} " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())), flush=True)
        total += counts
    print(f"{'all':20} " + ", ".join(f"{count} {kind}" for kind, count in sorted(total.items())))
    return int(any(total[kind] for kind in (bad_inputs.CRASHED, bad_inputs.SILENT)))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
