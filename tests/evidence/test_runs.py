import json
import logging
import math
from pathlib import Path

import pytest

from evidence.records import settings as groups
from evidence.runs import run as runs
from scripts.options import parse


def test_a_finished_run_is_read_with_its_facts(tmp_path, write_run):
    write_run(tmp_path, "sgdp", weight_decay=1e-5, lr=0.1, seed=2)
    (run,) = runs.load_runs(tmp_path)
    assert (run.opt_name, run.lr, run.weight_decay, run.seed) == ("sgdp", 0.1, 1e-5, 2)
    assert (run.experiment, run.data, run.scale, run.status, run.epochs) == (
        "imagenet-resnet18", "digits", "mini", "finished", 4.0,
    )  # fmt: skip
    assert run.scores["val/top1"] > 90
    assert run.throughput() == 410.0


def test_series_gives_steps_epochs_and_values_in_order(tmp_path, write_run):
    write_run(tmp_path)
    (run,) = runs.load_runs(tmp_path)
    steps, epochs, values = run.series("val/top1")
    assert (steps, epochs) == ([20, 40, 60, 80], [1.0, 2.0, 3.0, 4.0])
    assert len(values) == 4
    assert run.series("nothing") == ([], [], [])


def test_a_half_written_last_line_is_left_out_without_a_word(tmp_path, write_run, caplog):
    path = write_run(tmp_path) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 85, "epo')
    (run,) = runs.load_runs(tmp_path)
    assert run.metrics[-1]["step"] == 80
    assert not caplog.records


def test_a_broken_line_in_the_middle_is_reported_and_skipped(tmp_path, write_run, caplog):
    path = write_run(tmp_path) / "metrics.jsonl"
    path.write_text("not json\n[1]\n\n" + '{"step": "x", "epoch": 1}\n{"epoch": 1}\n' + path.read_text())
    (run,) = runs.load_runs(tmp_path)
    assert run.series("train/loss")[0][0] == 5
    assert [record.args[0] for record in caplog.records] == [1, 2]


def test_missing_and_empty_metrics_are_an_empty_series(tmp_path, write_run):
    (write_run(tmp_path, seed=0) / "metrics.jsonl").unlink()
    (write_run(tmp_path, seed=1) / "metrics.jsonl").write_text("")
    for run in runs.load_runs(tmp_path):
        assert run.series("train/loss") == ([], [], [])
        assert (run.growth, run.first_and_last("norm/mean")) == (None, (None, None))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe"])
def test_a_broken_run_json_is_named_and_skipped(tmp_path, write_run, caplog, text):
    write_run(tmp_path, seed=0)
    path = write_run(tmp_path, seed=1) / "run.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = runs.load_runs(tmp_path)
    assert [run.seed for run in found] == [0]
    assert path.parent.name in caplog.text


def test_a_folder_without_run_json_is_named_and_skipped(tmp_path, write_run, caplog):
    write_run(tmp_path)
    (tmp_path / "imagenet-resnet18" / "just-made").mkdir()
    assert len(runs.load_runs(tmp_path)) == 1
    assert "just-made" in caplog.text


def test_a_record_of_wrong_types_is_still_readable(tmp_path, write_run):
    write_run(tmp_path, folder="odd", change={"opt_name": "sgd"})
    path = tmp_path / "imagenet-resnet18" / "odd"
    odd = {"config": [], "git": "?", "data": 3, "scores": [1], "seed": "x", "status": None, "hardware": None}
    (path / "run.json").write_text(json.dumps(odd))
    (run,) = runs.load_runs(tmp_path)
    assert (run.name, run.status, run.opt_name, run.lr, run.seed) == ("odd", "unknown", "unknown", None, None)
    assert (run.scores, run.commit, run.data) == ({}, "unknown", "unknown data")
    assert groups.group_by_setting([run])


def test_every_status_is_kept(tmp_path, write_run):
    for seed, status in enumerate(["finished", "running", "failed", "interrupted"]):
        write_run(tmp_path, seed=seed, change={"status": status})
    assert {run.status for run in runs.load_runs(tmp_path)} == {"finished", "running", "failed", "interrupted"}


def test_steps_written_twice_count_once_with_the_last_value(tmp_path):
    lines = ({"step": 10, "epoch": 1, "a": 1}, {"step": 20, "epoch": 2, "a": 2}, {"step": 10, "epoch": 1, "a": 3})
    run = runs.Run(tmp_path, {}, lines)
    assert run.series("a") == ([10, 20], [1, 2], [3.0, 2.0])


def test_null_and_nan_values_are_nan_and_texts_are_skipped(tmp_path):
    values = [None, math.nan, "word", True, "1e-4"]
    run = runs.Run(tmp_path, {}, [{"step": i, "epoch": i, "a": value} for i, value in enumerate(values)])
    steps, _, found = run.series("a")
    assert steps == [0, 1, 4]
    assert math.isnan(found[0]) and math.isnan(found[1]) and found[2] == 1e-4


def test_growth_is_the_difference_of_squared_norms(tmp_path):
    lines = [{"step": 0, "epoch": 0, "norm/mean": 1.2}, {"step": 9, "epoch": 1, "norm/mean": 2.0}]
    assert runs.Run(tmp_path, {}, lines).growth == pytest.approx(4 - 1.44)


def test_layers_are_told_from_statistics(tmp_path, write_run):
    write_run(tmp_path, layers=("b.weight", "a.weight"))
    (run,) = runs.load_runs(tmp_path)
    assert run.layers("norm") == ["b.weight", "a.weight"]
    assert run.layers("cosine") == []


def test_no_runs_name_the_folder_and_the_command_that_makes_one(tmp_path):
    with pytest.raises(runs.ReadError, match=r"no runs found in .*none.*make imagenet-resnet18"):
        runs.load_runs(tmp_path / "none")


def test_an_unknown_experiment_lists_the_known_ones(tmp_path, write_run):
    write_run(tmp_path)
    with pytest.raises(runs.ReadError, match=r"experiment=typo .* runs of: imagenet-resnet18"):
        runs.load_runs(tmp_path, "typo")


def test_groups_hold_runs_that_differ_in_the_seed_alone(tmp_path, write_run):
    for seed in (1, 0):
        write_run(tmp_path, "sgdp", seed=seed)
    write_run(tmp_path, "sgdp", weight_decay=1e-4)
    write_run(tmp_path, "sgd")
    ((place, found),) = groups.group_by_setting(runs.load_runs(tmp_path)).items()
    assert place == ("digits", "mini")
    assert [(group.label, len(group.runs)) for group in found] == [
        ("sgd, wd=0", 1), ("sgdp, wd=0", 2), ("sgdp, wd=0.0001", 1),
    ]  # fmt: skip
    assert [run.seed for run in found[1].runs] == [0, 1]


def test_data_sets_and_scales_are_never_grouped_together(tmp_path, write_run):
    write_run(tmp_path, folder="a")
    write_run(tmp_path, folder="b", scale="full")
    write_run(tmp_path, folder="c", data="imagenet")
    found = groups.group_by_setting(runs.load_runs(tmp_path))
    assert sorted(found) == [("digits", "full"), ("digits", "mini"), ("imagenet", "mini")]


def test_other_differing_options_separate_groups_and_show_in_labels(tmp_path, write_run):
    write_run(tmp_path, folder="a", epochs=2)
    write_run(tmp_path, folder="b", epochs=4)
    write_run(tmp_path, folder="c", epochs=4, lr=0.2)
    (found,) = groups.group_by_setting(runs.load_runs(tmp_path)).values()
    assert [group.label for group in found] == [
        "sgdp, wd=0, lr=0.1, epochs=2", "sgdp, wd=0, lr=0.1, epochs=4", "sgdp, wd=0, lr=0.2, epochs=4",
    ]  # fmt: skip


def test_places_logging_and_number_forms_do_not_separate_groups(tmp_path, write_run):
    write_run(tmp_path, seed=0, change={"config": {"data": {"root": "here"}, "opt": {"weight_decay": 0}}})
    write_run(tmp_path, seed=1, change={"config": {"train": {"log_every": 5}, "opt": {"weight_decay": "0.0"}}})
    (found,) = groups.group_by_setting(runs.load_runs(tmp_path)).values()
    assert len(found) == 1


def test_labels_stay_unique_when_too_much_differs(tmp_path, write_run):
    for count in range(2):
        changed = dict.fromkeys(("a", "b", "c"), count)
        write_run(tmp_path, folder=f"r{count}", change={"config": {"x": changed | {"d": 1}}})
    write_run(tmp_path, folder="r2", change={"config": {"x": {"a": 0, "b": 0, "c": 0, "d": 2}}})
    (found,) = groups.group_by_setting(runs.load_runs(tmp_path)).values()
    assert len({group.label for group in found}) == 3


def test_the_command_line_refuses_what_it_does_not_know():
    assert parse(["runs=x=y", "--check"], options={"runs": ""}, flags=["check"]) == {"runs": "x=y", "check": "true"}
    for word in ("run=x", "--readme", "word"):
        with pytest.raises(runs.ReadError, match=r"known: runs=\.\.\., --check"):
            parse([word], options={"runs": ""}, flags=["check"])


def test_the_primary_score_is_top1_where_there_is_one(tmp_path):
    def run(**scores: float) -> runs.Run:
        return runs.Run(tmp_path, {"scores": {key.replace("_", "/"): value for key, value in scores.items()}})

    assert runs.primary_score([run(val_loss=1, val_top1=2, val_a=3)]) == "val/top1"
    assert runs.primary_score([run(val_loss=1, val_ap=2, train_x=3)]) == "val/ap"
    assert runs.primary_score([run()]) is None


@pytest.fixture(autouse=True)
def _warnings_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="evidence.runs.run")


def test_runs_lie_at_depth_two(tmp_path: Path, write_run):
    write_run(tmp_path / "deeper")
    with pytest.raises(runs.ReadError):
        runs.load_runs(tmp_path)


def test_of_several_networks_the_first_stands_for_the_run_and_each_can_be_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "biased-mnist" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished", "monitor": "-val/loss", "scores": {}}))
    lines = [
        {"step": n, "epoch": n, "f/norm/mean": 1.0 + n, "g/norm/mean": 5.0, "train/f_loss": 0.5, "val/loss": 2.0}
        for n in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = runs.load_run(folder)
    assert run is not None and run.roles == ["f", "g"]
    assert run.first_and_last("norm/mean") == (1.0, 3.0) and run.first_and_last("train/loss") == (0.5, 0.5)
    assert run.of_role("g").first_and_last("norm/mean") == (5.0, 5.0)
    assert runs.primary_score([run]) == "val/loss"
