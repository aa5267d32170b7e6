"""Numbers beside the published ones, or beside a tolerance: as a table on the screen, in Markdown and in CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.csv_files import write_csv

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Number:
    """One number that we obtain and somebody published.

    Attributes:
        subject: What it is of, e.g. "momentum 0.9".
        quantity: What it is, e.g. "norm after 499 steps".
        published: As printed; "–" where nothing was.
        obtained: Ours, as text.
        rule: When the two agree; "" for a number that is information only.
        holds: Whether they do; None for information.
    """

    subject: str
    quantity: str
    published: str
    obtained: str
    rule: str = ""
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or nothing for information."""
        return "" if self.holds is None else "PASS" if self.holds else "FAIL"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are as wide as their widest cell."""
    widths = [max(3, *(len(row[k]) for row in [heads, *rows])) for k in range(len(heads))]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in [heads, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(numbers: Sequence[Number]) -> str:
    """Return the numbers as a Markdown table."""
    heads = ("run", "quantity", "published", "obtained", "agrees when", "")
    return markdown(heads, [(n.subject, n.quantity, n.published, n.obtained, n.rule, n.verdict) for n in numbers])


def provenance(command: str) -> str:
    """Return the provenance of the numbers, as a Markdown list."""
    from tasks.engine.provenance import git_state, hardware, versions  # torch

    git, packages = git_state(ROOT), versions()
    commit = str(git["commit"] or "unknown")[:10] + ("+" if git["dirty"] else "")
    return "\n".join([
        f"- command: `{command}`",
        f"- commit (+: with uncommitted changes): {commit}",
        f"- machine: {hardware(1)['machine']}; float64 on one CPU thread",
        f"- versions: Python {packages['python']}, torch {packages['torch']}",
    ])  # fmt: skip


def write(numbers: Sequence[Number], folder: Path, stem: str, *, title: str, notes: str, command: str) -> str:
    """Write `<stem>.md` and `<stem>-numbers.csv` into a folder and return the Markdown."""
    text = f"# {title}\n\n{table(numbers)}\n\n{notes.strip()}\n\n{provenance(command)}\n"
    rows = [(n.subject, n.quantity, n.published, n.obtained, n.rule, n.verdict) for n in numbers]
    heads = ("run", "quantity", "published", "obtained", "agrees_when", "verdict")
    write_csv(folder / f"{stem}-numbers.csv", heads, rows)
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    return text


def write_page(
    folder: Path, stem: str, *, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: str
) -> None:
    """Write a table as `<stem>.csv` and, under its title and above its notes, as `<stem>.md`, and print it."""
    text = f"# {title}\n\n{markdown(heads, rows)}\n{notes}"
    write_csv(folder / f"{stem}.csv", heads, rows)
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {folder / f'{stem}.md'} and .csv")


def outcome(numbers: Sequence[Number], where: Path) -> int:
    """Print how many numbers agree and return the exit code: 0 if all that are checked do, else 1."""
    checked = [number for number in numbers if number.holds is not None]
    agreeing = sum(bool(number.holds) for number in checked)
    print(f"{'PASS' if agreeing == len(checked) else 'FAIL'}: {agreeing} of {len(checked)} agree; written to {where}")
    return 0 if agreeing == len(checked) else 1
