"""Two steps of every ImageNet experiment at full size, on noise: does it build, fit and run?

make dry-run [experiment=all|NAME,NAME] [batch=16|real] [micro=8] [steps=2] [memory=20] [more="key=value ..."]
             [out=results/reports]

The networks, picture sizes, optimizers and schedules are the paper's (scale=full), the data is noise of ImageNet's
sizes. `batch` pictures make a step, `real` those of the experiment's own batch (hours on a CPU); they go through in
micro-batches of at most `micro`, by accumulation, which decides the memory. A run above `memory` GiB fails. The table
is dry-run.md in `out`, written after every run; `make plan` says what a whole training costs.
Exit code: 0 all passed, 1 one did not, 2 wrong options.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from evidence.csv_files import write_csv
from evidence.runs.run import ReadError
from evidence.tables.render import markdown
from launch.dry_run import CONFIGS, HEADS, attempt, experiments
from scripts.options import command, parse, results

OPTIONS = {
    "experiment": "all", "batch": "16", "micro": "8", "steps": "2", "memory": "20", "more": "",
    "out": results("reports"),
}  # fmt: skip


def _chosen(given: str) -> list[str]:
    known = experiments()
    names = known if given == "all" else given.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ReadError(f"experiment={unknown[0]}: is none on ImageNet; choose all, or of {', '.join(known)}")
    return names


def main(argv: Sequence[str]) -> int:
    """Run them all, write the table, and say whether all passed."""
    given = parse(argv, options=OPTIONS)
    names, values = _chosen(given["experiment"]), dict[str, int]()
    for key in ("micro", "steps", "memory"):
        if not given[key].isdecimal() or int(given[key]) < 1:
            raise ReadError(f"{key}={given[key]}: must be a whole number, at least 1")
        values[key] = int(given[key])
    if given["batch"] != "real" and not (given["batch"].isdecimal() and int(given["batch"]) >= 2):
        raise ReadError(f"batch={given['batch']}: must be real, or a whole number, at least 2")
    rows: list[list[str]] = []
    out = Path(given["out"])
    out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(names, unit="experiment", disable=None):
        real = int(OmegaConf.load(CONFIGS / f"{name}.yaml").train.batch_size)
        batch = real if given["batch"] == "real" else int(given["batch"])
        rows.append(attempt(name, values, batch=batch, more=shlex.split(given["more"])))
        write_csv(out / "dry-run.csv", HEADS, rows)
        text = f"# Full-size dry runs: {values['steps']} steps on noise\n\n{markdown(HEADS, rows)}\n"
        (out / "dry-run.md").write_text(text, encoding="utf-8")
    print(f"{markdown(HEADS, rows)}\nwritten to {out / 'dry-run.md'} and .csv")
    return int(any(row[-1] != "passed" for row in rows))


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
