"""Every published number has one command, every claim and every sweep of a paper a row, and the page is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from evidence import papers, sweeps
from evidence.csv_files import read_csv
from evidence.paper import PAPER_NAMES
from scripts import papers as command

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
ITEMS = papers.read_items(RESULTS / "papers.yaml")
NUMBERS = papers.published_numbers(RESULTS)


@pytest.fixture(scope="module")
def commands():
    return papers.commands(ITEMS, NUMBERS)


def test_every_published_number_is_filled_by_exactly_one_command(commands):
    assert len(commands) == 262
    assert not {number: targets for number, targets in commands.items() if len(targets) != 1}


def test_no_run_fills_what_the_paper_copied_from_another_alone(commands):
    copied = [number for number, targets in commands.items() if targets == ["none"]]
    assert [(number.model, number.optimizer) for number in copied] == [
        (f"efficientnet_b{size}", "published") for size in range(4)
    ]


def test_a_sweep_without_a_row_fills_a_part_of_one_that_has_a_row(commands):
    rows = {item.run for item in ITEMS}
    others = [path.stem for path in sweeps.SWEEPS.glob("*.yaml") if path.stem not in rows]
    parts = {name: numbers for name in others if (numbers := papers.numbers_of_sweep(name, NUMBERS))}
    assert {name: {target for number in numbers for target in commands[number]} for name, numbers in parts.items()} == {
        "table2-resnet18": {"table-2"}
    }


def test_a_number_whose_cell_is_taken_from_a_grid_has_no_command(monkeypatch):
    blocks = sweeps.blocks
    monkeypatch.setattr(
        sweeps, "blocks", lambda name, scale: [block for block in blocks(name, scale) if block.get("opt") != "sgdp"]
    )
    lost = {number.optimizer for number in NUMBERS if number.table == "1" and number.paper == "adamp"}
    kept = {number.optimizer for number in papers.numbers_of_sweep("table-1", NUMBERS)}
    assert lost - kept == {"sgdp"}


def test_every_sweep_of_a_paper_has_a_row():
    titles = {path.stem: path.read_text().splitlines()[1] for path in sweeps.SWEEPS.glob("*.yaml")}
    printed = {
        name
        for name, title in titles.items()
        if re.search(r": (Table|Figure|Appendix) [\w.]+(, | \(lower half\), )", title)
    }
    assert len(printed) > 25 and printed <= {item.run for item in ITEMS}


def test_every_claim_is_counted_in_a_row():
    claims = read_csv(RESULTS / "tables" / "claims.csv")
    counted = papers.verdicts(ITEMS, claims)
    assert sum(count for counter in counted.values() for count in counter.values()) == len(claims)
    assert counted.keys() <= {(item.paper, item.name) for item in ITEMS}
    assert {item.paper for item in ITEMS} == set(PAPER_NAMES.values())


def test_a_longer_name_takes_the_claim():
    claims = [
        {"paper": "AdamP", "where": where, "verdict": "v"} for where in ("Table 1, lower half", "Table 1", "Eq. 5")
    ]
    names = [name for _, name in papers.verdicts(ITEMS, claims)]
    assert names == ["Table 1, lower half", "Table 1", papers.REST]


def test_verdicts_are_told_by_the_kind_of_claim(tmp_path):
    (tmp_path / "tables").mkdir()
    lines = ["effect,not run", "mechanism,reproduced", "mechanism,reproduced", "mechanism,not run"]
    text = "".join(f"AdamP,Table 1,{line}\n" for line in lines)
    (tmp_path / "tables" / "claims.csv").write_text(f"paper,where,kind,verdict\n{text}")
    page = papers.page(ITEMS[3:4], tmp_path)
    assert ITEMS[3].name == "Table 1" and "[effect: 1 not run; mechanism: 1 not run, 2 reproduced](" in page


def test_every_setting_of_ours_has_its_reason():
    missing = [
        item.name
        for item in ITEMS
        if "ours" in item.entry and "why" not in item.entry and not item.entry["ours"].startswith("as ")
    ]
    assert not missing


def test_the_committed_page_is_what_its_sources_say(capsys):
    assert command.main(["check=true", f"results={RESULTS}", f"out={ROOT}/docs/papers.md"]) == 0, (
        capsys.readouterr().err
    )
    rows = [line for line in (ROOT / "docs" / "papers.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) <= 60


def test_check_tells_a_stale_page_and_writes_nothing(tmp_path, capsys):
    page = tmp_path / "papers.md"
    page.write_text("old")
    assert command.main(["check=true", f"results={RESULTS}", f"out={page}"]) == 1
    assert "run: make papers" in capsys.readouterr().err and page.read_text() == "old"
    assert command.main([f"results={RESULTS}", f"out={page}"]) == 0 and page.read_text() != "old"


def test_the_page_needs_neither_torch_nor_hydra():
    code = "import sys, evidence.papers; sys.exit(bool({'torch', 'hydra'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
