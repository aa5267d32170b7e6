"""Records of runs, and run folders made of them again."""

import math
from dataclasses import replace

from evidence.records import store
from evidence.records.row import ResultRow, off_recipe, result_row, thinned, to_csv
from evidence.runs import run as runs


def test_a_run_comes_back_from_the_records_as_the_tables_see_it(tmp_path, write_run):
    change = {
        "config": {"recipe": {"sgdp": {"lr": 0.1, "weight_decay": 0.0}}, "marks": {}, "odd": {"a": [1, {"b": 2}]}}
    }
    folder = write_run(tmp_path / "runs", change={**change, "monitor": "-val/loss", "steps": 80})
    run = runs.load_run(folder)
    store.add([result_row(run)], tmp_path / "records.csv")
    (back,) = store.recorded_runs(tmp_path / "records.csv")
    assert to_csv(result_row(back)) == to_csv(result_row(run))
    assert back.setting == run.setting and back.setting_key == run.setting_key
    assert runs.flatten(back.opt).items() >= {"lr": 0.1, "_target_": "adamp.sgdp"}.items()
    for key in ("val/top1", "norm/mean", "train/loss"):
        steps, epochs, values = run.series(key)
        assert back.series(key) == (steps, epochs, [float(f"{v:.10g}") for v in values])
    assert (back.lower_is_better, back.monitor, back.commit) == (True, "val/loss", run.commit)
    count = store.restore(tmp_path / "records.csv", tmp_path / "again")
    again = runs.load_run(tmp_path / "again" / run.experiment / run.name)
    assert count == 1 and to_csv(result_row(again)) == to_csv(result_row(run))


def test_records_made_of_restored_runs_are_the_same_bytes(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path / "runs", seed=seed, epochs=80, change={"monitor": "val/top1"})
    write_run(tmp_path / "runs", seed=2, change={"status": "failed", "diverged_at": 7, "scores": None})
    store.add(store.rows_of_runs(runs.load_runs(tmp_path / "runs")), tmp_path / "records.csv")
    store.restore(tmp_path / "records.csv", tmp_path / "again")
    (tmp_path / "two").mkdir()
    store.add(store.rows_of_runs(runs.load_runs(tmp_path / "again")), tmp_path / "two" / "records.csv")
    for name in ("records.csv", "settings.jsonl", "curves.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert len((tmp_path / "settings.jsonl").read_text().splitlines()) == 2  # epochs differ, seeds do not


def test_thinning_keeps_the_ends_and_the_first_epoch_and_twice_is_once():
    steps = list(range(1, 1001))
    epochs = [step / 300 for step in steps]
    once = thinned(steps, epochs, [1 / step for step in steps], points=48)
    assert len(once[0]) <= 51 and {1, 300, 1000} <= set(once[0])
    assert thinned(*once, points=48) == once
    assert thinned([1], [0.5], [math.nan], points=48) == ([1], [0.5], [None])


def test_a_run_at_the_recipes_rate_and_decay_is_told_from_others(tmp_path, write_run):
    recipe = {"config": {"recipe": {"sgdp": {"lr": "1e-1", "weight_decay": 0.0}}}}
    tuned = runs.load_run(write_run(tmp_path, change=recipe))
    other = runs.load_run(write_run(tmp_path, weight_decay=1e-4, change=recipe))
    none = runs.load_run(write_run(tmp_path, "sgd"))
    assert [off_recipe(run) for run in (tuned, other, none)] == [(), ("weight_decay",), None]


def test_a_row_read_from_the_records_is_the_row_of_its_run(tmp_path, write_run):
    words = ["experiment=e", "opt=sgdp", "train.seed=0", "+task.x=1", "gpus=2", "schedule=cosine"]
    change = {"monitor": "val/top1", "argv": words, "config": {"recipe": {"sgdp": {"lr": 0.2, "weight_decay": 0.0}}}}
    row = result_row(runs.load_run(write_run(tmp_path / "runs", change=change)))
    store.add([row], tmp_path / "records.csv")
    (back,) = store.read_rows(tmp_path / "records.csv")
    curves = {key: tuple(points) for key, points in back.curves.items()}
    assert replace(back, curves=curves) == row
    assert (back.overrides, back.off_recipe, back.dirty) == ({"task.x": "1", "schedule": "cosine"}, ("lr",), False)
    store.restore(tmp_path / "records.csv", tmp_path / "again")
    assert store.rows_of_runs(runs.load_runs(tmp_path / "again")) == [row]


def test_a_recorded_command_names_no_folder_of_one_machine(tmp_path, write_run):
    command = "scripts/train.py opt=sgd paths.runs=a 'paths.results=my b' data_root=c train.seed=0"
    run = runs.load_run(write_run(tmp_path, change={"command": command}))
    assert result_row(run).command == "scripts/train.py opt=sgd train.seed=0"


def test_records_without_overrides_take_them_from_the_name():
    row = ResultRow(name="sgd,wd=0,lr=0.1,mini,seed=0,schedule=step,train.epochs=2")
    assert row.words == {"schedule": "step", "train.epochs": "2"}
    assert replace(row, overrides={}).words == {}
