"""Grids made of blocks, and the table and figure of a sweep."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence import sweeps as grids
from evidence.figures import sweep as sweep_figure
from evidence.paper import PaperNumber, read_paper
from evidence.records.row import ResultRow, result_row
from evidence.runs.run import ReadError, Run
from evidence.tables.cells import Cell, compared, means_over, published, tabulate
from scripts import sweep
from tests import commands
from tests.configurations import check_arguments, composed

TABLES = ("table-1", "table-2", "table-b1", "table-d3", "table-d4", "aws-table-1", "aws-table-2", "aws-table-3",
          "adarem-table-1", "adarem-table-2", "adarem-table-3", "table-4", "table-5", "table-d2")  # fmt: skip


def run(top1: float | None, *, seed: int = 0, data: str = "imagenet", scale: str = "full", **more: Any) -> ResultRow:
    record = {
        "name": f"run{seed}", "status": "finished" if top1 is not None else "failed", "scale": scale,
        "scores": {} if top1 is None else {"val/top1": top1}, "data": {"name": data},
        "git": {"commit": "a" * 40, "dirty": False}, "hardware": {"machine": "a machine"},
        "diverged_at": 7 if top1 is None else None,
    }  # fmt: skip
    return result_row(Run(Path("somewhere"), record, more.get("metrics", ())), figures=more.get("figures", ()))


def cell(*tops: float | None, block: dict[str, Any] | None = None, **overrides: str) -> Cell:
    words = {key.replace("__", "."): value for key, value in overrides.items()}
    keys = {seed: ("e", f"run{seed}") for seed in range(max(3, len(tops)))}
    return Cell(words, block or {}, keys, {seed: run(top, seed=seed) for seed, top in enumerate(tops)})


def single(words: dict[str, str], row: ResultRow, *, seed: int = 0) -> Cell:
    return Cell(words, {}, {seed: row.key}, {seed: row})


# Grids ------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_one_command_a_block_and_what_is_typed_wins() -> None:
    lines = grids.runs(["sweep=table-1", "gpus=1"])
    assert len(lines) == 3
    assert all(line[:2] == ["sweep=table-1", "gpus=1"] for line in lines)
    assert "opt.weight_decay=0,0.0001,0.001,0.01" in lines[0]
    assert not any("printed" in word for line in lines for word in line)
    assert all(
        sum(word.startswith("opt=") for word in line) == 1 for line in grids.runs(["sweep=table-1", "opt=adamp"])
    )


@pytest.mark.parametrize(
    ("name", "typed", "settings"),
    [
        ("table-1", {"opt": "adamp"}, {("adamp", "0")}),  # not AdamP at SGD's decays too
        ("table-1", {"opt": "sgdp,adamw"}, {("sgdp", "0"), ("sgdp", "0.001"), ("sgdp", "0.01"), ("adamw", "0")}),
        ("table-1", {"opt": "lion", "opt.weight_decay": "1"}, {("lion", "1")}),  # of no block: instead of all
        ("table-2", {"opt": "sgd", "experiment": "imagenet-resnet50"}, {("sgd", "")}),
    ],
)
def test_a_typed_optimizer_chooses_its_own_cells(
    name: str, typed: dict[str, str], settings: set[tuple[str, str]]
) -> None:
    cells = [overrides for _, overrides in grids.cells(name, "mini", typed)]
    assert {(each["opt"], each.get("opt.weight_decay", "")) for each in cells} == settings
    lines = grids.runs([f"sweep={name}", "--info", *(f"{key}={value}" for key, value in typed.items())])
    words = [word for line in lines for word in line if word.startswith("opt=")]
    assert len(words) == len(lines) and all("--info" in line for line in lines)
    assert {opt for word in words for opt in word[4:].split(",")} == {opt for opt, _ in settings}


def test_a_scale_has_blocks_of_its_own() -> None:
    assert grids.runs(["sweep=table-1", "scale=full"]) != grids.runs(["sweep=table-1"])


@pytest.mark.parametrize("words", [["experiment=imagenet-resnet18"], ["sweep=claims-norms"], ["sweep=no-such-one"]])
def test_without_blocks_a_command_stays_as_it_is(words: list[str]) -> None:
    assert grids.runs(words) == [words]


def test_cells_are_the_product_of_parameters_and_block() -> None:
    cells = [overrides for _, overrides in grids.cells("table-1", "mini")]
    assert len(cells) == (4 + 3 + 2) * 3
    assert len({json.dumps(each, sort_keys=True) for each in cells}) == len(cells)
    assert {each["train.seed"] for each in cells} == {"0", "1", "2"}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_published_table_has_a_cell_at_full_size(name: str) -> None:
    spec = grids.read(name)["sweep"]["table"]
    paper = [r for r in read_paper(Path("results/paper.csv")) if r.model in spec["model"].values()]
    wanted = {
        (r.dataset, r.model, r.optimizer, r.setting, r.metric): r.value
        for r in paper
        if (r.paper, r.table) == (spec["paper"], str(spec["table"])) and r.optimizer != "published"
    }
    cells = [Cell(overrides, block) for block, overrides in grids.cells(name, "full", {"train.seed": "0"})]
    cells += means_over(spec["mean_over"], cells) if "mean_over" in spec else []
    found = [published(each, spec, paper) for each in cells]
    assert sum(len(each) for each in found) >= len(wanted)
    assert wanted
    for (*_, metric), value in wanted.items():
        assert any(each.get(metric) == value for each in found), (metric, value)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["mini", "full"])
@pytest.mark.parametrize("name", [*TABLES, *(f"figure-f{k}" for k in (1, 2, 3, 4))])
def test_the_first_and_last_cell_of_a_sweep_compose(name: str, scale: str) -> None:
    cells = [overrides for _, overrides in grids.cells(name, scale, {"train.seed": "0"})]
    for overrides in (cells[0], cells[-1]):
        check_arguments(composed(f"sweep={name}", f"scale={scale}", *(f"{k}={v}" for k, v in overrides.items())))


def test_a_list_in_a_grid_is_one_value() -> None:
    betas = [words["opt.betas"] for _, words in grids.cells("adarem-table-3", "full") if "opt.betas" in words]
    assert set(betas) == {"[0.99,0.999]"}


@pytest.mark.parametrize("name", sorted(path.stem for path in grids.SWEEPS.glob("*.yaml")))
def test_a_sweep_ends_in_a_table_or_a_figure(name: str) -> None:
    spec = grids.read(name).get("sweep") or {}
    by_script = Path("scripts", f"{name.replace('-', '_')}.py").exists()  # what make runs in place of scripts/sweep.py
    assert by_script or spec.keys() & {"table", "figure"}


def test_a_sweep_without_table_and_figure_is_refused() -> None:
    with pytest.raises(ReadError, match=r"claims-norms\.yaml asks for neither a table nor a figure"):
        sweep.main(["claims-norms"])


# The table --------------------------------------------------------------------------------------------------------


def test_a_printed_decay_is_found_in_the_units_of_the_block() -> None:
    spec = grids.read("table-1")["sweep"]["table"]
    paper = read_paper(Path("results/paper.csv"))
    words = {"experiment": "imagenet-resnet18-norms", "opt": "sgdp", "opt__weight_decay": "1e-4"}
    assert published(cell(block={"printed": 0.1}, **words), spec, paper)["top1"] == "70.57"
    assert "top1" not in published(cell(block={}, **words), spec, paper)


def test_differences_are_to_the_same_cell_with_the_other_optimizer() -> None:
    spec = {"paper": "p", "table": 1, "model": {"a": "m", "b": "m2"}, "reference": {"opt": "sgd"}}
    cells = [
        cell(70.0, 70.2, 70.4, experiment="a", opt="sgd"),
        cell(72.0, 72.1, 72.4, experiment="a", opt="sgdp"),
        cell(60.0, 62.0, 64.0, experiment="b", opt="sgd"),
        cell(61.0, 62.0, 64.5, experiment="b", opt="sgdp"),
    ]
    paper = [
        PaperNumber(paper="p", table="1", model=m, optimizer=o, metric="top1", value=v)
        for m, o, v in [("m", "sgd", "71.5"), ("m", "sgdp", "72.0")]
    ]
    heads, *rows = tabulate(cells, spec, paper)
    at = heads.index("top1, difference: paper")
    assert [row[at : at + 3] for row in rows] == [
        ["reference", "–", "–"],
        ["+0.50", "+1.97 [+1.82, +2.11]", "yes"],
        ["reference", "–", "–"],
        ["–", "+0.50 [-0.74, +1.74]", "no"],
    ]
    assert rows[1][heads.index("ours: top1")] == "72.17 ± 0.21"
    assert rows[1][heads.index("ours - paper")] == "+0.17"


def test_a_printed_mean_has_a_row_of_the_seeds_that_all_its_cells_finished() -> None:
    one, other = cell(60.0, 70.0, 80.0, opt="adam", rho="0.9"), cell(80.0, 90.0, opt="adam", rho="0.99")
    (mean,) = means_over("rho", [one, other, cell(10.0, opt="adam")])
    assert mean.by_seed("top1") == {0: 70.0, 1: 80.0}
    assert mean.overrides == {"opt": "adam", "rho": "mean"}


def test_the_papers_number_stands_beside_the_best_of_a_searched_grid_and_bests_compare() -> None:
    spec = {"paper": "p", "table": 1, "model": {"a": "m"}, "reference": {"opt": "sgd"},
            "best_over": ["opt.lr", "opt.beta"], "best_by": "top1"}  # fmt: skip
    cells = [
        cell(60.0, 61.0, experiment="a", opt="sgd", opt__lr="1"),
        cell(70.0, 71.0, experiment="a", opt="sgd", opt__lr="3"),
        cell(72.0, 73.1, experiment="a", opt="adam", opt__lr="1"),
        cell(65.0, 66.0, experiment="a", opt="adam", opt__lr="1", opt__beta="0.99"),
    ]
    paper = [
        PaperNumber(paper="p", table="1", model="m", optimizer=o, metric="top1", value=v)
        for o, v in [("sgd", "71.5"), ("adam", "72.0")]
    ]
    heads, *rows = tabulate(cells, spec, paper)
    assert [row[heads.index("paper: top1")] for row in rows] == ["–", "71.5", "72.0", "–"]
    at = heads.index("ours [95 %]")
    assert [row[at][:5] for row in rows] == ["–", "–", "+2.05", "–"]


def test_numbers_of_another_data_set_are_not_subtracted_from_the_papers() -> None:
    spec = {"paper": "p", "table": 1, "model": {"a": "m"}}
    paper = [PaperNumber(paper="p", table="1", model="m", optimizer="sgd", metric="top1", value="71")]
    small = single({"experiment": "a", "opt": "sgd"}, run(80.0, data="fashion_mnist_10k", scale="mini"))
    heads, row = tabulate([small], spec, paper)
    assert row[heads.index("ours - paper")] == "–"
    assert row[heads.index("data, scale")] == "fashion_mnist_10k, mini"


def test_a_diverged_run_is_shown_as_failed_and_a_missing_one_as_missing() -> None:
    heads, failed, missing = tabulate([cell(70.0, None, opt="sgd"), cell(opt="adam")], {"paper": "p", "table": 1}, [])
    assert failed[heads.index("ours: top1")] == "failed"
    assert failed[heads.index("seeds")] == "0, 1 failed (2 of 3)"
    assert (missing[heads.index("ours: top1")], missing[heads.index("seeds")]) == ("–", "– (0 of 3)")


def test_runs_without_their_whole_schedule_are_marked_and_score_nothing() -> None:
    short = run(99.0)
    short = replace(short, epochs_done=0.1, config={"train.epochs": 4})
    mixed = cell(70.0, 71.0, opt="sgd")
    mixed.unrecorded = {2: "interrupted"}
    heads, cut, rest = tabulate([single({"opt": "adam"}, short), mixed], {"paper": "p", "table": 1}, [])
    ours, seeds = heads.index("ours: top1"), heads.index("seeds")
    assert (cut[ours], cut[seeds]) == ("cut short", "0 cut short")
    assert (rest[ours], rest[seeds]) == ("70.50 ± 0.71", "0, 1, 2 interrupted (2 of 3)")


def test_a_failed_or_unpaired_cell_has_no_difference() -> None:
    whole, failed, alone = cell(70.0, 71.0), cell(70.0, None), cell(75.0)
    assert compared(failed, whole, "top1") == ["–", "–"]
    assert compared(alone, whole, "top1") == ["+5.00", "–"]  # one pair has no interval
    other = single({}, run(70.0), seed=7)
    assert compared(other, whole, "top1") == ["–", "–"]


def test_the_second_score_is_the_epochs_until_the_references_last_score() -> None:
    def curve(*tops: float) -> list[dict[str, Any]]:
        return [{"step": 10 * k, "epoch": k, "val/top1": top} for k, top in enumerate(tops, start=1)]

    slow = single({"opt": "sgd"}, run(60.0, metrics=curve(40, 50, 60)))
    fast = single({"opt": "sgdp"}, run(70.0, metrics=curve(55, 65, 70)))
    weak = single({"opt": "adam"}, run(50.0, metrics=curve(30, 40, 50)))
    heads, *rows = tabulate([slow, fast, weak], {"paper": "p", "table": 1, "reference": {"opt": "sgd"}}, [])
    at = heads.index("target top1")
    assert [row[at : at + 2] for row in rows] == [["60.00", "3.00"], ["60.00", "2.00"], ["60.00", "never (0 of 1)"]]


def test_detection_is_counted_over_the_whole_run_and_norms_at_the_first_epochs_end() -> None:
    lines = [
        {"step": s, "epoch": s / 2, "norm/mean": 1.0 + s, "projected/share": p, "variant/projected/share": v}
        for s, p, v in [(1, 1.0, 0.5), (2, 0.9, 0.0), (4, 0.8, 0.1)]
    ]
    found = run(70.0, metrics=lines)
    assert found.value("scale_invariant_detection") == pytest.approx(90.0)
    assert found.value("scale_variant_detection") == pytest.approx(80.0)
    assert found.value("weight_norm_first_epoch") == 3.0
    assert found.value("weight_norm_last_epoch") == 5.0
    assert found.value("top5") is None


# The figure -------------------------------------------------------------------------------------------------------


def test_the_records_keep_the_course_of_an_effective_rate_in_the_first_epoch() -> None:
    lines = [{"step": s, "epoch": s / 1000, "lr/std/conv1.weight": 1.0 * s} for s in range(10, 90_001, 10)]
    kept = run(70.0, metrics=lines, figures=("lr/std/conv1.weight",))
    _, epochs, _ = kept.series("lr/std/conv1.weight")
    assert sum(epoch <= 1 for epoch in epochs) >= 20
    assert sum(epoch > 1 for epoch in epochs) >= 20
    assert len(epochs) <= 110
    again = run(70.0, metrics=[{"step": s, "epoch": e, "lr/std/conv1.weight": v} for s, e, v in zip(
        *kept.series("lr/std/conv1.weight"), strict=True)], figures=("lr/std/conv1.weight",))  # fmt: skip
    assert again.series("lr/std/conv1.weight") == kept.series("lr/std/conv1.weight")


def test_a_figure_has_a_row_a_metric_and_its_numbers_beside_it(tmp_path: Path) -> None:
    cells = []
    for opt in ("sgd", "sgdp"):
        lines = [{"step": s, "epoch": s / 2, "norm/mean": 1.0 + s, "val/top1": 10.0 * s} for s in (1, 2, 3)]
        cells.append(single({"opt": opt, "opt.weight_decay": "0"}, run(70.0, metrics=lines)))
    cells.append(Cell({"opt": "adam"}))
    spec = {"rows": ["norm/mean", "val/top1", "effective_step/mean"], "columns": "opt"}
    drawn = sweep_figure.draw(cells, spec, tmp_path / "figure.svg", title="A figure")
    assert drawn.svg.exists()
    assert drawn.svg.with_suffix(".png").stat().st_size > 1000
    rows = list(csv.DictReader(drawn.svg.with_suffix(".csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3
    assert {row["metric"] for row in rows} == {"norm/mean", "val/top1"}


# The whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_with_a_diverging_cell_runs_to_its_end_and_its_table_says_failed(tmp_path: Path) -> None:
    small = [word for word in commands.TINY if not word.startswith(("experiment", "train.epochs", "model.width"))]
    words = ["sweep=aws-table-1", "hydra.mode=MULTIRUN", "opt.lr=1e30,0.1", "opt.weight_decay=1e-2", "train.seed=0",
             "train.epochs=1", "experiment=plain-resnet50", "opt=sgd", "normalise_eps=1e-5", *small]  # fmt: skip
    places = [f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports"]
    first, again = commands.call(*words, *places), commands.call(*words, *places)
    assert (first.code, again.code) == (0, 0), first.err
    assert "the loss is not finite" in first.err
    assert "diverges again" in again.err
    assert "was finished before" in again.out
    statuses = {json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/*/run.json")}
    assert statuses == {"finished", "failed"}
    typed = [word for word in words[2:] if not word.startswith("pictures")]
    code = sweep.main(["aws-table-1", f"runs={tmp_path}/runs", f"out={tmp_path}", *typed])
    text = (tmp_path / "tables" / "aws-table-1.md").read_text()
    assert code == 0
    assert "failed" in text
