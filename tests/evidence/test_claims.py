"""The ledger: rules by hand-made records, and that results/claims.yaml names what there is."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evidence.claims import verdicts
from evidence.claims.ledger import read_claims
from evidence.claims.select import Records, load, matches, select
from evidence.claims.verdicts import judge, judge_claim, published_difference
from evidence.csv_files import read_csv
from evidence.paper import read_paper
from evidence.records import store
from evidence.records.row import from_csv
from evidence.runs import run as runs
from evidence.stats import Difference
from scripts import claims

ROOT = Path(__file__).resolve().parents[2]
LEDGER = list(read_claims(ROOT / "results" / "claims.yaml"))
PAPER = read_paper(ROOT / "results" / "paper.csv")
EMPTY = Records([], PAPER, ROOT / "nowhere")


@pytest.fixture
def records(tmp_path, write_run):
    """Return a maker of records: settings (opt, weight decay, scale, name) with a top-1 for each seed."""

    def make(*settings: dict[str, Any]) -> Records:
        for given in settings:
            for seed, top in enumerate(given["tops"]):
                words = {"opt": "sgd", "weight_decay": 0.0, "scale": "mini", **given}
                change: dict[str, Any] = {"scores": {"val/top1": top}, "experiment": given.get("experiment", "e")}
                if top is None:
                    change |= {"status": "failed", "diverged_at": 3, "scores": None}
                recipe = {words["opt"]: {"lr": 0.1, "weight_decay": given.get("recipe", 0.0)}}
                change["config"] = {"recipe": recipe}
                kept = {k: words[k] for k in ("weight_decay", "scale")}
                name = f"{words['opt']},wd={words['weight_decay']:g},lr=0.1,{words['scale']},seed={seed}"
                change["name"] = name + given.get("more", "")
                write_run(tmp_path / "runs", words["opt"], seed=seed, change=change, folder=change["name"], **kept)
        found = runs.load_runs(tmp_path / "runs")
        store.add(store.rows_of_runs(found), tmp_path / "records.csv")
        return load(tmp_path / "records.csv", ROOT / "results" / "paper.csv")

    return make


def claim(**rule: Any) -> dict[str, Any]:
    return {"id": "x", "paper": "AdamP", "rule": {"kind": "difference", "expect": "higher", **rule}}


PAIR = {"of": {"experiment": "e", "opt": "sgdp"}, "to": {"experiment": "e", "opt": "sgd"}}
LOW, HIGH = (70.0, 71.0, 72.1), (75.0, 76.1, 77.0)


@pytest.mark.parametrize(
    ("scale", "ours", "theirs", "verdict"),
    [
        ("mini", HIGH, LOW, "direction only"),
        ("full", HIGH, LOW, "reproduced"),
        ("full", LOW, HIGH, "contradicted"),
        ("mini", LOW, HIGH, "contradicted"),
        ("mini", (70.0, 72.0, 71.0), LOW, "not at this scale"),
        ("full", (70.0, 74.0, 71.0), LOW, "direction only"),
        ("mini", HIGH[:1], LOW[:1], "not at this scale"),
        ("mini", (75.0, None, 77.0), LOW, "not at this scale"),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_scale(records, scale, ours, theirs, verdict):
    found = records({"opt": "sgdp", "scale": scale, "tops": ours}, {"opt": "sgd", "scale": scale, "tops": theirs})
    finding = judge_claim(found, claim(**PAIR))
    assert (finding.verdict, finding.scale) == (verdict, scale)


def test_full_runs_decide_where_there_are_any_and_nothing_is_not_run(records):
    found = records(
        {"opt": "sgdp", "tops": LOW}, {"opt": "sgd", "tops": HIGH},
        {"opt": "sgdp", "scale": "full", "tops": HIGH}, {"opt": "sgd", "scale": "full", "tops": LOW},
    )  # fmt: skip
    assert judge_claim(found, claim(**PAIR)).verdict == "reproduced"
    assert judge_claim(EMPTY, claim(**PAIR)).verdict == "not run"


def test_a_claim_about_a_mechanism_is_reproduced_by_small_runs_too(records):
    found = records({"opt": "sgdp", "tops": HIGH}, {"opt": "sgd", "tops": LOW})
    assert judge_claim(found, claim(**PAIR, holds="at any scale")).verdict == "reproduced"


def test_runs_are_named_by_the_words_of_their_command_and_no_others(records):
    found = records(
        {"opt": "sgd", "tops": (1.0,)}, {"opt": "sgd", "weight_decay": 0.1, "tops": (2.0,)},
        {"opt": "sgd", "tops": (3.0,), "more": ",schedule=step"},
    )  # fmt: skip

    def tops(**words: Any) -> list[float]:
        named = {"experiment": "e", "opt": "sgd", **{key.replace("__", "."): value for key, value in words.items()}}
        return [run.scores["val/top1"] for run in select(found, named)]

    assert tops() == [1.0]  # the recipe's decay is 0
    assert tops(opt__weight_decay="0.1") == [2.0]
    assert tops(opt__weight_decay=0) == [1.0]
    assert tops(schedule="step") == [3.0]
    assert tops(opt__lr=0.5) == tops(schedule="cosine") == tops(scale="full") == []


def test_a_row_of_another_rate_than_the_recipe_is_not_taken_for_the_recipe():
    cells = {"experiment": "e", "opt": "sgd", "scale": "mini", "lr": "0.2", "weight_decay": "0", "recipe": "lr",
           "name": "sgd,wd=0,lr=0.2,mini,seed=0"}  # fmt: skip
    row = from_csv(cells)
    assert not matches(row, {"experiment": "e", "opt": "sgd"})
    assert matches(row, {"experiment": "e", "opt": "sgd", "opt.lr": 0.2})


def test_failing_ratios_levels_and_times(records):
    found = records(
        {"opt": "adam", "tops": (None, None)},
        {"opt": "sgdp", "tops": (99.5, 99.9)},
        {"opt": "sgd", "tops": (50.0, 1.0)},
    )
    word = {"experiment": "e"}
    fails = {"rule": {"kind": "fails", "of": {**word, "opt": "adam"}}, "paper": "AWS", "id": "x"}
    assert judge_claim(found, fails).verdict == "direction only"
    fails["rule"]["of"]["opt"] = "sgd"
    assert judge_claim(found, fails).verdict == "not at this scale"
    level = claim(kind="level", score="val/top1", of={**word, "opt": "sgdp"}, at_least=99, holds="at any scale")
    assert judge_claim(found, level).verdict == "reproduced"
    level["rule"]["of"] = {**word, "opt": "sgd"}
    assert judge_claim(found, level).verdict == "contradicted"
    ratio = claim(kind="ratio", score="growth", **PAIR, at_least=3)  # growths of the synthetic curves: 1 and 6
    assert judge_claim(found, ratio).verdict == "reproduced"
    ratio["rule"]["at_least"] = 10
    assert judge_claim(found, ratio).verdict == "direction only"
    times = claim(kind="sooner", score="val/top1", **PAIR, at_most=0.5)  # curves to 94, last scores 50 and 1
    assert judge_claim(found, times).verdict == "direction only"


def test_settings_on_a_par_lie_within_the_margin_with_their_interval():
    def verdict(mean: float, half: float | None, *, decisive: bool = True) -> str:
        ends = (None, None) if half is None else (mean - half, mean + half)
        return judge(Difference(mean, *ends, 3), "equal", margin=0.3, decisive=decisive)

    assert verdict(0.1, 0.1) == "reproduced"
    assert verdict(0.1, 0.1, decisive=False) == "direction only"
    assert verdict(0.1, 0.9) == "direction only"
    assert verdict(0.1, 0.9, decisive=False) == "not at this scale"
    assert verdict(1.0, 0.2) == "contradicted"
    assert verdict(1.0, None) == "not at this scale"


def test_of_a_grid_the_best_value_of_each_side_counts(records):
    found = records(
        {"opt": "sgdp", "tops": HIGH}, {"opt": "sgd", "tops": LOW}, {"opt": "sgd", "weight_decay": 0.1, "tops": HIGH}
    )
    finding = judge_claim(found, claim(**PAIR, best_over="opt.weight_decay"))
    assert finding.ours.startswith("+0.00")


def test_checks_of_formulas_and_toys_are_read_from_what_their_commands_wrote(tmp_path):
    (tmp_path / "toy").mkdir()
    heads = ["name", "paper", "claim", "formula", "deviation", "is", "tolerance", "verdict"]
    for control, verdict in (("PASS", "reproduced"), ("FAIL", "contradicted")):
        rows = [["a", "AdamP", "c", "f", "0", "", "1", "PASS"], ["a", "", "control", "", "2", "", "1", control]]
        with (tmp_path / "toy" / "theory-claims.csv").open("w", newline="") as file:
            csv.writer(file).writerows([heads, *rows])
        found = judge_claim(Records([], [], tmp_path), {"paper": "AdamP", "rule": {"checks": "a"}})
        assert (found.verdict, found.scale) == (verdict, "exact")
    toy = {"paper": "AdamP", "rule": {"numbers": "toy/toy2d-numbers.csv", "runs": "gd"}}
    assert judge_claim(Records([], [], tmp_path), toy).verdict == "not run"
    for obtained, agrees, verdict in (
        ("2.931", "PASS", "reproduced"), ("2.95", "PASS", "direction only"), ("2.95", "FAIL", "contradicted"),
    ):  # fmt: skip
        lines = f"run,quantity,published,obtained,agrees_when,verdict\ngd,norm,2.93,{obtained},x,{agrees}\n"
        (tmp_path / "toy" / "toy2d-numbers.csv").write_text(lines)
        assert judge_claim(Records([], [], tmp_path), toy).verdict == verdict


# The ledger itself ---------------------------------------------------------------------------------------------------


def test_every_closed_form_claim_and_every_published_table_is_in_the_ledger():
    from scripts.theory import CLAIMS

    assert {c["rule"]["checks"] for c in LEDGER if "checks" in c["rule"]} == {c.key for c in CLAIMS}
    tables = {(number.paper, number.table) for number in PAPER if number.paper in ("adamp", "aws", "adarem")}
    where = {(c["paper"].lower(), c["where"]) for c in LEDGER}
    for paper, table in tables:
        word = table.replace("Fig.", "Figure ") if "Fig" in table else f"Section {table}" if table == "3.1" else table
        assert any(p == paper and re.search(rf"\b{re.escape(word)}\b", place) for p, place in where), (paper, table)


@pytest.mark.parametrize("entry", [c for c in LEDGER if c["rule"].get("kind")], ids=lambda c: c["id"])
def test_published_numbers_exist_and_have_the_sign_that_the_rule_expects(entry):
    rule = entry["rule"]
    values = verdicts.published(EMPTY, rule, entry["paper"])
    gap = published_difference(values)
    if rule["kind"] == "difference" and gap is not None:
        margin = rule.get("margin", 0)
        sign = {"higher": gap > 0, "lower": gap < 0, "equal": abs(gap) <= margin + 1e-9}
        assert sign[rule["expect"]], (values, rule["expect"])
    for side in ("of", "to"):
        if side in rule:
            name = rule[side].get("experiment") or rule["mini"]["experiment"]
            assert (ROOT / "configs" / "experiment" / f"{name}.yaml").exists()
            assert (ROOT / "configs" / "opt" / f"{rule[side]['opt']}.yaml").exists()


def test_every_command_is_a_make_target():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"^  (\S+) ", listed.stdout, re.MULTILINE))
    for entry in LEDGER:
        make, target, *_ = entry["command"].split()
        assert make == "make" and target in known, entry["command"]


def test_no_verdict_is_typed():
    text = (ROOT / "results" / "claims.yaml").read_text()
    assert not any(re.search(rf"\b{verdict}\b", text) for verdict in verdicts.VERDICTS if verdict != "not run")


def test_the_ledger_is_written_as_page_and_table_whatever_the_records_hold(tmp_path, capsys):
    assert claims.main([f"records={tmp_path}/none.csv", f"out={tmp_path}", f"claims={ROOT}/results/claims.yaml"]) == 0
    rows = read_csv(tmp_path / "claims.csv")
    assert len(rows) == len(LEDGER) and {row["verdict"] for row in rows} == {"not run"}
    assert f"{len(LEDGER)} claims: 0 reproduced" in capsys.readouterr().out
    assert "## AdaRem" in (tmp_path / "claims.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {id: a, paper: p}", "has no where, claim, command, rule"),
        ("- &a {id: a, paper: p, where: w, claim: c, command: m, rule: {}}\n- *a", "two claims have the id a"),
        ("- {id: 'a-{x}', for: [{y: 1}]}", "needs a word"),
        ("- {", "cannot read"),
    ],
)
def test_a_broken_ledger_is_refused_in_words(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(runs.ReadError, match=words):
        list(read_claims(tmp_path / "c.yaml"))
