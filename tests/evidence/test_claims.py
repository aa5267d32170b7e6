"""The ledger: rules by hand-made records, and that results/claims.yaml names what there is."""

from __future__ import annotations

import csv
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence.claims import verdicts
from evidence.claims.ledger import read_claims
from evidence.claims.select import Records, load, matches, select, value_of
from evidence.claims.verdicts import Finding, judge, judge_claim, published_difference
from evidence.csv_files import read_csv
from evidence.paper import read_paper
from evidence.records import store
from evidence.records.examples import examples_of
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
                change["data"] = {"val_examples": None}  # a score is then no share of known examples
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
        ("mini", HIGH, LOW, "same sign at this scale"),
        ("full", HIGH, LOW, "reproduced"),
        ("full", LOW, HIGH, "contradicted"),
        ("mini", LOW, HIGH, "opposite sign at this scale"),
        ("mini", (70.0, 72.0, 71.0), LOW, "not at this scale"),
        ("full", (70.0, 74.0, 71.0), LOW, "within the noise"),
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


@pytest.mark.parametrize(
    ("tops", "verdict", "size"),
    [
        ((70.5, 71.6, 72.5), "reproduced", "same sign, 1.1 times larger"),  # +0.5; Table 2's MobileNetV2 has +0.45
        (HIGH, "same sign at this scale", "same sign, 11 times larger"),
        ((60.0, 61.1, 62.0), "opposite sign at this scale", "opposite sign, 22 times larger"),
    ],
)
def test_small_runs_reproduce_a_mechanism_within_an_order_of_magnitude_of_the_printed_size(
    records, tops, verdict, size
):
    found = records({"opt": "sgdp", "tops": tops}, {"opt": "sgd", "tops": LOW})
    printed = {"table": 2, "model": "mobilenetv2", "metric": "top1", "of": "adamp", "to": "adamw"}
    finding = judge_claim(found, claim(**PAIR, holds="at any scale", published=printed))
    assert (finding.verdict, finding.size) == (verdict, size)
    # Without a printed size there is no order of magnitude to be met
    unsized = judge_claim(found, claim(**PAIR, holds="at any scale")).verdict
    assert unsized == ("same sign at this scale" if verdict == "reproduced" else verdict)


@pytest.mark.parametrize(
    ("tops", "bound"),
    [((70.0, 72.0, 71.0), "could have shown 2.61"), (LOW[:1], "1 pair without spread: no bound"),
     ((70.0, None, 72.1), "1 of 6 runs diverged")],
)  # fmt: skip
def test_runs_that_cannot_tell_say_what_they_could_have_shown(records, tops, bound):
    found = records({"opt": "sgdp", "tops": tops}, {"opt": "sgd", "tops": LOW})
    finding = judge_claim(found, claim(**PAIR))
    assert finding.verdict == "not at this scale" and bound in finding.size


def test_the_examples_that_a_score_is_counted_on_widen_its_interval(records):
    sides = {"opt": "sgdp", "tops": (70.2, 71.1, 72.3)}, {"opt": "sgd", "tops": LOW}  # 2, 1 and 2 of 1,000 pictures
    found = records(*sides)
    assert judge_claim(found, claim(**PAIR)).verdict == "same sign at this scale"
    counted = Records([replace(row, examples={"val": 1000}) for row in found.rows], PAPER, found.folder)
    finding = judge_claim(counted, claim(**PAIR))
    assert finding.verdict == "not at this scale"
    assert finding.size == "same sign, could have shown 3.98"  # 1.96 sqrt(2 x 0.71 x 0.29 / 1,000), and the seeds' 0.14


def test_verdicts_that_need_more_than_the_false_discovery_rate_are_taken_back():
    def finding(p: float | None) -> Finding:
        return Finding(
            "same sign at this scale", size="same", p=p, weak="not at this scale", bound="could have shown 1"
        )

    judged = verdicts.correct([finding(0.03), *[finding(0.5)] * 8, finding(0.001), finding(None)])
    assert [found.verdict for found in judged[-2:]] == ["same sign at this scale"] * 2
    assert (judged[0].verdict, judged[0].size) == ("not at this scale", "could have shown 1")
    assert judged[0].alone == "same sign at this scale" and judged[0].q == pytest.approx(0.03 * 10 / 2)
    assert judged[-1].q is None


def test_a_curve_counts_by_its_last_value(records):
    found = records({"opt": "sgdp", "tops": HIGH}, {"opt": "sgd", "tops": LOW})
    row = found.rows[0]
    _, _, values = row.series("train/loss")
    assert value_of(row, "train/loss") == values[-1]
    assert value_of(row, "lr/std/conv1.weight") is None


def test_recorded_scores_are_whole_numbers_of_the_examples_that_are_taken_for_them():
    rows = [row for row in store.read_rows(ROOT / "results" / "records.csv") if row.finished]
    checked = set()
    for row in rows:
        for key, score in row.scores.items():
            if count := examples_of(row, key):
                checked.add((row.data, key.partition("/")[0]))
                assert score * count / 100 == pytest.approx(round(score * count / 100), abs=1e-4), (row.name, key)
    assert {
        ("fashion_mnist_10k", "val"),
        ("biased_small_digits", "unbiased"),
        ("speech_commands_tts", "test"),
    } <= checked


def test_every_committed_verdict_that_tells_nothing_carries_a_bound():
    judged = verdicts.judge_all(load(ROOT / "results" / "records.csv", ROOT / "results" / "paper.csv"), LEDGER)
    for entry, finding in zip(LEDGER, judged, strict=True):
        if finding.verdict in (verdicts.UNDECIDED, verdicts.NOISE):
            assert re.search(r"\d", finding.size), entry["id"]
        if verdicts.kind_of(entry["rule"]) == "effect" and finding.scale == "mini":
            assert finding.verdict not in (verdicts.REPRODUCED, verdicts.CONTRADICTED), entry["id"]


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
    assert judge_claim(found, fails).verdict == "same sign at this scale"
    fails["rule"]["of"]["opt"] = "sgd"
    assert judge_claim(found, fails).verdict == "not at this scale"
    assert judge_claim(found, fails).size.startswith("share that fails: 0 to 84 %")
    level = claim(kind="level", score="val/top1", of={**word, "opt": "sgdp"}, at_least=99, holds="at any scale")
    assert judge_claim(found, level).verdict == "reproduced"
    level["rule"]["of"] = {**word, "opt": "sgd"}
    assert judge_claim(found, level).verdict == "opposite sign at this scale"
    ratio = claim(kind="ratio", score="growth", **PAIR, at_least=3)  # growths of the synthetic curves: 1 and 6
    assert judge_claim(found, ratio).verdict == "same sign at this scale"
    ratio["rule"]["printed"] = "6"
    assert judge_claim(found, ratio).verdict == "reproduced"
    ratio["rule"]["at_least"] = 10
    assert judge_claim(found, ratio).verdict == "same sign at this scale"
    times = claim(kind="sooner", score="val/top1", **PAIR, at_most=0.5)  # curves to 94, last scores 50 and 1
    assert judge_claim(found, times).verdict == "same sign at this scale"


def test_settings_on_a_par_lie_within_the_margin_with_their_interval():
    def verdict(mean: float, half: float | None, *, scale: str = "full") -> str:
        ends = (None, None) if half is None else (mean - half, mean + half)
        return judge(Difference(mean, *ends, 3), "equal", margin=0.3, scale=scale)

    assert verdict(0.1, 0.1) == "reproduced"
    assert verdict(0.1, 0.1, scale="mini") == "same sign at this scale"
    assert verdict(0.1, 0.9) == "within the noise"
    assert verdict(0.1, 0.9, scale="mini") == "not at this scale"
    assert verdict(1.0, 0.2) == "contradicted"
    assert verdict(1.0, None) == "within the noise"


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
        ("2.931", "PASS", "reproduced"), ("2.95", "PASS", "near the printed number"), ("2.95", "FAIL", "contradicted"),
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


def test_every_published_figure_of_curves_and_every_column_has_a_claim():
    places = {(entry["paper"], entry["where"]) for entry in LEDGER}
    wanted = {("AWS", f"Figure {k}") for k in (1, 2, 4, 5, 6)} | {("AdamP", f"Figure F.{k}") for k in (1, 2, 3, 4)}
    assert wanted | {("AdaRem", "Figure 2")} <= places
    metrics = {e["rule"]["published"]["metric"] for e in LEDGER if e["where"] == "Table D.2"}
    assert metrics == {number.metric for number in PAPER if number.paper == "adamp" and number.table == "D.2"}


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
