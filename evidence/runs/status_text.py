"""The text of `make status`: counts per experiment, and the runs that are not finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evidence.runs.progress import STATUSES, RunProgress


def summary(states: Sequence[RunProgress]) -> list[str]:
    """Return a line per experiment, and one for all."""
    counts: dict[str, Counter[str]] = {}
    for each in states:
        counts.setdefault(each.experiment, Counter())[each.status] += 1
    width = max([len(name) for name in counts] + [5])
    lines = [f"{'':{width}}  " + "  ".join(f"{status:>11}" for status in STATUSES)]
    for name, counted in sorted(counts.items()):
        lines.append(f"{name:{width}}  " + "  ".join(f"{counted[status]:>11}" for status in STATUSES))
    total = Counter(each.status for each in states)
    lines.append(f"{'all':{width}}  " + "  ".join(f"{total[status]:>11}" for status in STATUSES))
    return lines


def describe(run: RunProgress) -> list[str]:
    """Return the lines on one run that is not finished."""
    facts = []
    if run.step is not None:
        facts.append(f"step {run.step}" + (f" of {run.steps}" if run.steps else ""))
    if run.loss is not None:
        facts.append(f"loss {run.loss:.4g}")
    if run.status == "running":
        facts += [f"{run.rate:.4g} examples/s"] if run.rate is not None else []
        facts += [f"{clock(run.left_s)} left"] if run.left_s is not None else []
    lines = [f"  {run.title}"]
    if facts or run.reason:
        lines.append("      " + "; ".join([*([run.reason] if run.reason else []), *facts]))
    if run.status in ("failed", "broken") and run.log:
        lines.append(f"      log {run.log}")
    return lines


def clock(seconds: float) -> str:
    """Return a duration as it stands on a clock.

    Examples:
        >>> clock(3723)
        '1:02:03'
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def report(states: Sequence[RunProgress], rows: int) -> list[str]:
    """Return the whole text."""
    lines = summary(states)
    for status in STATUSES[1:]:
        chosen = [each for each in states if each.status == status]
        if not chosen:
            continue
        lines += ["", status]
        for each in chosen[:rows]:
            lines += describe(each)
        if len(chosen) > rows:
            lines.append(f"  and {len(chosen) - rows} more: rows={len(chosen)} shows them")
    again = sum(each.retriable for each in states)
    if again:
        lines += ["", f"make retry starts {again} of them again"]
    return lines
