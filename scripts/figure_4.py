"""The AdamP paper's Figure 4 from our runs: clean and attacked accuracy over the epochs of adversarial training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/figure_4.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes  # noqa: E402

from evidence.figures.curves import counted, over_seeds, styles  # noqa: E402
from evidence.figures.style import Drawn, canvas, save  # noqa: E402
from evidence.records.settings import Group, group_by_setting  # noqa: E402
from evidence.runs.run import Run  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402
from scripts.table_e2 import BALLS, SCORES, adversarial_runs  # noqa: E402

USAGE = """
usage: python scripts/figure_4.py [runs=FOLDER] [out=FOLDER]

Draws figure-4-<data set>-<scale> as .svg, .png and .csv from the finished runs of adversarial training (make figure-4,
make table-e2), a row a ball, and says when AdamP passes Adam's last level: in the paper in fewer than half of the
epochs.

  runs=FOLDER      default results/runs
  out=FOLDER       default results/figures
"""

CAPTION = "Line: mean over finished seeds; band: smallest to largest seed. Dotted: Adam's last level."


def passing(group: Group, level: float, key: str) -> float | None:
    """Return the first epoch whose mean over seeds exceeds a level, None if none does."""
    epochs, values = over_seeds(group.finished, key)
    return next((epoch for epoch, mean in zip(epochs, values.mean(axis=0), strict=True) if mean > level), None)


def draw_panel(axis: Axes, groups: Sequence[Group], key: str) -> None:
    """Draw one score of all optimizers."""
    for group, style in zip(groups, styles(groups), strict=True):
        epochs, values = over_seeds(group.finished, key)
        if not epochs:
            continue
        line: dict[str, Any] = {**style, "marker": style["marker"] or ("o" if len(epochs) < 10 else "")}
        axis.plot(epochs, values.mean(axis=0), label=counted(group), markersize=3, **line)
        if len(values) > 1:
            axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, lw=0)
        if group.first.opt_name == "adam":
            axis.axhline(values[:, -1].mean(), color=style["color"], linestyle=":", linewidth=0.9)
    axis.set_xlabel("epoch")


def draw(by_ball: dict[str, list[Group]], folder: Path, *, data: str, scale: str) -> Drawn:
    """Draw a data set at a scale: a row a ball, a column a score."""
    title = f"Adversarial training · {data} · scale {scale}"
    size = (10.0, 0.6 + 2.9 * len(by_ball))
    with canvas(title, rows=len(by_ball), columns=2, size=size) as (figure, axes):
        for row, (name, groups) in enumerate(by_ball.items()):
            for column, key in enumerate(SCORES):
                axis = axes[2 * row + column]
                draw_panel(axis, groups, key)
                axis.set_title(f"{BALLS[name][0]}: {key.partition('/')[2].replace('_', ' ')} (%)")
        axes[0].legend()
        rows = [
            [group.label, run.name, run.seed, f"{name}/{key}", step, epoch, value]
            for name, groups in by_ball.items()
            for group in groups
            for run in group.finished
            for key in SCORES
            for step, epoch, value in zip(*run.series(key), strict=True)
        ]
        return save(figure, folder / f"figure-4-{data}-{scale}.svg", title, caption=CAPTION, rows=rows)


def crossings(by_ball: dict[str, list[Group]]) -> list[str]:
    """Return a sentence a ball and score on when AdamP passes Adam's final level, where both have runs."""
    lines = []
    for name, groups in by_ball.items():
        chosen = {group.first.opt_name: group for group in groups if group.finished}
        if not {"adam", "adamp"} <= chosen.keys():
            continue
        for key in SCORES:
            epochs, values = over_seeds(chosen["adam"].finished, key)
            if not epochs or not over_seeds(chosen["adamp"].finished, key)[0]:
                continue
            at = passing(chosen["adamp"], values[:, -1].mean(), key)
            when = "never" if at is None else f"in epoch {at:g} of {epochs[-1]:g}"
            lines.append(f"{BALLS[name][0]}, {key}: AdamP passes Adam's last {values[:, -1].mean():.2f} {when}")
    return lines


def main(words: Sequence[str]) -> int:
    """Draw every data set and scale that has finished runs."""
    values = parse(words, options={"runs": results("runs"), "out": results("figures")})
    runs: list[Run] = [run for run in adversarial_runs(Path(values["runs"])) if run.finished]
    for (data, scale), _ in group_by_setting(runs).items():
        here = [run for run in runs if (run.data, run.scale) == (data, scale)]
        by_ball: dict[str, list[Group]] = {}
        for name in BALLS:
            for groups in group_by_setting([run for run in here if run.experiment == name]).values():
                by_ball[name] = groups
        print(draw(by_ball, Path(values["out"]), data=data, scale=scale).svg)
        print(*crossings(by_ball), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
