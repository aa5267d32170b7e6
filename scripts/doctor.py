"""What this machine has for the suite, what is missing, and what to do about it.

usage: python scripts/doctor.py [data_root=FOLDER|FILE] [results=FOLDER] [processes=N]

Options: data_root=FOLDER looks at a data set too, or data_root=FILE at all places that the file names,
results=FOLDER at another folder of results, and processes=N tries that many processes (0: none). Exit code 0 when
everything needed is there, 1 when something is not.

Needs Python alone: a broken or missing torch is a finding, not an error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence

from evidence.runs.run import ReadError
from launch.doctor import BAD, examine
from scripts import options


def main(argv: Sequence[str], *, say: Callable[[str], None] = print) -> int:
    """Print a line a finding, with what to do under it, and return the exit code."""
    defaults = {"data_root": "", "results": os.environ.get("ADAMP_RESULTS", "results"), "processes": "2"}
    values = options.parse(argv, options=defaults, flags=("json",))
    if not values["processes"].isdigit():
        raise ReadError(f"processes is {values['processes']!r}; it must be a whole number")
    findings = []
    for finding in examine(values):
        findings.append(finding)
        if not values["json"]:
            say(f"{finding.level:<5}{finding.what:<15}{finding.fact}")
            if finding.advice:
                say(f"{'':20}-> {finding.advice}")
    if values["json"]:
        say(json.dumps([vars(finding) for finding in findings], indent=2))
    return int(any(finding.level == BAD for finding in findings))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
