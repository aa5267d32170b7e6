"""Any optimizer against SGD, SGDP, AdamW and AdamP on small real workloads: a page of verdicts."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evidence.runs.run import ReadError
from evidence.scorecard.battery import Battery, read_battery
from evidence.scorecard.card import Card, read_card, read_cards
from evidence.tuning import ends
from launch.checkout import ROOT
from scripts.options import command, results, separated, whole

USAGE = """
usage: python scripts/scorecard.py opt=SPEC [opt.KEY=VALUE ...] [KEY=VALUE ...]

Tunes an optimizer on each workload of configs/scorecard.yaml (rate x decay, chosen on held-out pictures), scores the
choice on the test pictures with fresh seeds, and compares it with the committed baselines. Writes OUT/NAME.json and, in
OUT/pages, NAME.html with its pictures, again after each workload. Running it again goes on.

  opt=SPEC          a name of configs/opt (adamp), or a class: timm:lion, pytorch_optimizer:SOAP,
                    schedulefree:AdamWScheduleFree, my_package.my_module:MyOpt, ./signsgd.py:SignSGD
  opt.KEY=VALUE     an option of its constructor (my.KEY=VALUE is the same)
  space.lr=LOW..HIGH, space.weight_decay=LOW..HIGH
                    the ranges searched; default: by the optimizer's family, see configs/scorecard.yaml
  only=mlp,conv     workloads; default all
  baselines=rerun   make the baselines' cards here too, instead of reading the committed ones
  cost=false        leave out the time and memory of a step
  jobs=2            processes at a time; default: the cores
  out=FOLDER        default results/scorecards; the runs lie in results/tuning/scorecards
  name=NAME         of the card; default from the spec
  battery=FILE      other workloads and budgets; default configs/scorecard.yaml

example: python scripts/scorecard.py opt=timm:lion
"""
DEFAULTS = {
    "opt": "", "only": "", "baselines": "", "jobs": "", "out": "", "runs": "", "name": "", "cost": "true",
    "space.lr": "", "space.weight_decay": "", "battery": "configs/scorecard.yaml",
}  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Score, and write the card and its page."""
    options, typed = separated(words, DEFAULTS)
    if not options["opt"]:
        raise ReadError("opt= is missing: the optimizer, such as opt=adamp or opt=timm:lion")
    for key, allowed in (("baselines", ("", "rerun")), ("cost", ("true", "false"))):
        if options[key] not in allowed:
            raise ReadError(f"{key}={options[key]} is not known; choose among {', '.join(filter(None, allowed))}")
    arguments: dict[str, Any] = {}
    for key, value in typed.items():
        prefix, _, name = key.partition(".")
        if prefix not in ("opt", "my") or not name:
            raise ReadError(f"{key}={value} is no option of make scorecard; an option of the optimizer is opt.{key}")
        arguments[name] = yaml.safe_load(value)
    battery = read_battery(ROOT / options["battery"])
    only = [key for key in options["only"].split(",") if key] or list(battery.workloads)
    if unknown := [key for key in only if key not in battery.workloads]:
        raise ReadError(f"only={unknown[0]} is no workload; choose among {', '.join(battery.workloads)}")
    out = Path(options["out"] or results("scorecards"))
    baselines = {} if options["baselines"] else _committed(out, battery)
    if options["baselines"] == "rerun":
        for name in battery.data["baselines"]:
            if name != options["opt"] or arguments:
                baselines[name] = _score(name, {}, {**options, "name": ""}, battery, only, out, baselines)
    card = _score(options["opt"], arguments, options, battery, only, out, baselines)
    from evidence.scorecard.page import text

    print(text(card, list(baselines.values()), battery))
    print(f"card {out / card.name}.json\npage {out / 'pages' / card.name}.html")
    return 0


def _committed(out: Path, battery: Battery) -> dict[str, Card]:
    """Return the baselines' cards, from the folder of the cards or else of the checkout."""
    for folder in (out, ROOT / "results" / "scorecards"):
        names = [name for name in battery.data["baselines"] if (folder / f"{name}.json").exists()]
        if names:
            cards = read_cards(folder, names)
            for card in cards:
                card.check_comparable(battery)
            if missing := [name for name in battery.data["baselines"] if name not in names]:
                print(f"no cards of {', '.join(missing)}: baselines=rerun makes them here", flush=True)
            return {card.name: card for card in cards}
    print("no baselines: baselines=rerun makes them here", flush=True)
    return {}


def _score(
    spec: str, arguments: Mapping[str, Any], options: Mapping[str, str], battery: Battery, only: Sequence[str],
    out: Path, baselines: Mapping[str, Card],
) -> Card:  # fmt: skip
    """Run one optimizer's card, and write card and page as it fills up."""
    from dataclasses import replace

    from launch.scorecard.candidate import check, resolve
    from launch.scorecard.cost import measured
    from launch.scorecard.running import Scoring
    from tasks.engine.provenance import command_line, git_state, hardware, now, usable_cores, versions

    candidate = resolve(spec, arguments)
    candidate = replace(candidate, name=options["name"] or candidate.name)
    family, space = battery.family(candidate.target, candidate.spec)
    for key in space:
        if given := ends(options[f"space.{key}"], f"space.{key}"):
            space, family = {**space, key: given}, f"{family}, with a given range of {key}"
    print(f"{candidate.name}: {candidate.target} of {candidate.package}, searched as {family}:")
    print("  " + ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in space.items()), flush=True)
    path, begun = out / f"{candidate.name}.json", time.monotonic()
    before = read_card(path) if path.exists() else None
    state = git_state(ROOT)
    provenance = {
        "command": command_line(), "commit": state["commit"], "dirty": state["dirty"],
        "machine": hardware(1)["machine"], "versions": dict(versions()), "started": now(),
    }  # fmt: skip

    def on_change(card: Card) -> None:
        card.write(path)
        _page(card, [each for each in baselines.values() if each.name != card.name], battery, out)
        print(f"  {time.monotonic() - begun:.0f} s: {path}", flush=True)

    scoring = Scoring(
        candidate, battery, only, space, family, runs=Path(options["runs"] or results("tuning", "scorecards")),
        jobs=whole(options, "jobs")[0] if options["jobs"] else usable_cores(), provenance=provenance,
        on_change=on_change, cpu_before=before.data["provenance"]["cpu_seconds"] if before else 0.0,
    )  # fmt: skip
    if before is not None and before.data["optimizer"] == scoring.card().data["optimizer"]:
        scoring.workloads = before.kept(battery, without=only)
        scoring.cost = before.data["cost"]
    opt = scoring.example()
    check(candidate, opt)
    scoring.run()
    if options["cost"] == "true" and not scoring.cost:
        scoring.cost = measured(candidate, opt)
        on_change(scoring.card())
    return scoring.card()


def _page(card: Card, baselines: Sequence[Card], battery: Battery, out: Path) -> None:
    from evidence.scorecard.page import write_page  # matplotlib

    write_page(card, baselines, battery, out / "pages")


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
