"""`scripts/rerun.py`: a recorded cell is trained again and compared within its tolerance."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from evidence.records.row import ResultRow
from evidence.records.store import add, read_rows, rows_of_runs
from evidence.runs.run import ReadError, load_runs
from scripts import rerun
from tasks.engine.provenance import numerics_platform
from tests.commands import finish, options, start

ROW = ResultRow(
    experiment="e", name="sgd,wd=0,lr=0.1,mini,seed=1,schedule=step", opt_name="sgd", lr=0.1, weight_decay=0.0, seed=1,
    scale="mini", data="fashion_mnist_10k", setting_key="a", off_recipe=("weight_decay",), torch="2.11.0",
    scores={"val/top1": 74.6, "val/loss": 0.7}, platform={"processor": "a", "threads": 1},
)  # fmt: skip


@pytest.mark.slow
def test_a_tiny_cell_repeats_bit_for_bit_where_it_was_made(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    more = ["train.epochs=2", "train.probe_every=0"]
    words = options(tmp_path, *more)
    assert finish(start([*words, "opt=sgd", "train.seed=3"], dict(os.environ))).code == 0
    records = tmp_path / "records.csv"
    (row,) = add(rows_of_runs(load_runs(tmp_path / "runs")), records)
    assert row.platform["threads"] == 1 and row.examples == {"val": 40}
    cell = f"cell={'/'.join(row.key)}"
    assert rerun.main([cell, f"records={records}", "at=here"]) == 0
    out = capsys.readouterr().out
    assert "tolerance 0\n" in out and "PASS" in out
    (entry,) = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert entry["platform"]["processor"] and read_rows(records)[0].platform == row.platform


def test_the_words_of_a_cell_are_those_that_its_record_keeps():
    assert rerun.words_of(ROW) == [
        "experiment=e", "opt=sgd", "scale=mini", "train.seed=1", "opt.weight_decay=0", "schedule=step",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("again", "tolerance", "wrong"),
    [
        ({}, None, []),
        ({"scores": {"val/top1": 74.3, "val/loss": 0.7}}, None, ["val/top1"]),  # the same processor: bitwise
        ({"scores": {"val/top1": 74.3, "val/loss": 0.7}, "platform": {"processor": "b"}}, None, []),  # 3 errors are 5.8
        ({"scores": {"val/top1": 68.0, "val/loss": 0.7}, "platform": {"processor": "b"}}, None, ["val/top1"]),
        ({"scores": {"val/top1": 74.3, "val/loss": 0.7}}, 0.5, []),
        ({"scores": {"val/loss": 0.7}}, 0.5, ["val/top1"]),
    ],
)
def test_scores_are_compared_bitwise_on_the_recorded_platform_and_else_within_the_tolerance(again, tolerance, wrong):
    assert rerun.compare(ROW, replace(ROW, **again), [ROW], tolerance=tolerance) == wrong


@pytest.mark.parametrize("words", [["cell=e"], ["cell=nothing"], ["cell=e/x", "tolerance=-1"], ["cell=e", "at=there"]])
def test_a_cell_that_is_not_one_and_wrong_options_are_refused(tmp_path, words):
    rows = [replace(ROW, seed=seed, name=f"x{seed}") for seed in (1, 2)]
    add(rows, tmp_path / "records.csv")
    with pytest.raises(ReadError):
        rerun.main([*words, f"records={tmp_path}/records.csv"])


def test_the_platform_names_variables_of_the_list_alone(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    facts = numerics_platform()
    assert facts["environment"]["ONEDNN_MAX_CPU_ISA"] == "AVX2" and "secret" not in json.dumps(facts)
    assert facts["processor"] and facts["capability"] and facts["threads"] >= 1
