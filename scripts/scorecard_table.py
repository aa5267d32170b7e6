"""The league of scorecards: one row per optimizer, from their JSON alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from evidence.scorecard.battery import read_battery
from evidence.scorecard.card import read_cards
from evidence.scorecard.league import league
from evidence.scorecard.page import text
from launch.checkout import ROOT
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/scorecard_table.py [opts=a,b,c] [KEY=VALUE ...]

Prints the table of the cards FOLDER/NAME.json. Without opts= it takes all, and writes OUT/league.md and each card's
page as text, OUT/NAME.md. Cards of other budgets or rules are refused.

  opts=a,b,c       names of cards
  cards=FOLDER     default results/scorecards
  out=FOLDER       default the same
  battery=FILE     their workloads and budgets; default configs/scorecard.yaml

example: python scripts/scorecard_table.py opts=adamp,adamw,lion
"""
DEFAULTS = {"opts": "", "cards": results("scorecards"), "out": "", "battery": "configs/scorecard.yaml"}


def main(words: Sequence[str]) -> int:
    """Print the table, and write it where it is of all cards."""
    options = parse(words, options=DEFAULTS)
    folder = Path(options["cards"])
    battery = read_battery(ROOT / options["battery"])
    names = [name for name in options["opts"].split(",") if name] or sorted(p.stem for p in folder.glob("*.json"))
    if not names:
        raise ReadError(f"{folder} holds no cards; make scorecard opt=NAME writes one")
    cards = read_cards(folder, names)
    baselines = read_cards(folder, [name for name in battery.data["baselines"] if (folder / f"{name}.json").exists()])
    table = league(cards, baselines, battery)
    print(table)
    if not options["opts"]:
        out = Path(options["out"] or folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / "league.md").write_text(table, encoding="utf-8")
        for card in cards:
            (out / f"{card.name}.md").write_text(text(card, baselines, battery), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
