"""Table E.2 and Figure 4 from made-up runs of adversarial training."""

import csv
import json

import pytest

from evidence.runs.run import ReadError
from scripts import sweep
from tests.run_folders import record

CURVES = {  # opt -> attacked accuracy after each of four epochs; clean is 10 more
    "adam": [30.0, 40.0, 50.0, 48.0],
    "adamp": [45.0, 52.0, 60.0, 58.0],
    "sgd": [20.0, 30.0, 35.0, 40.0],
}


def write_run(root, opt, *, experiment="cifar10-pgd-linf", seed=0, lr=0.01, shift=0.0, status="finished"):
    made = record(opt, weight_decay=2e-4, lr=lr, seed=seed, scale="mini", data="fashion_mnist_10k", epochs=4)
    lines = [
        {"step": 10 * e, "epoch": float(e), "val/clean_accuracy": a + 10 + shift, "val/attacked_accuracy": a + shift}
        for e, a in enumerate(CURVES[opt], 1)
    ]
    best = max(lines, key=lambda line: line["val/attacked_accuracy"])
    made |= {
        "experiment": experiment, "status": status,
        "best": {"score": best["val/attacked_accuracy"], "epoch": int(best["epoch"])},
        "scores": {key: value for key, value in lines[-1].items() if "/" in key},
    }  # fmt: skip
    made["config"]["experiment_name"] = experiment
    folder = root / experiment / made["name"]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(made))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for experiment in ("cifar10-pgd-linf", "cifar10-pgd-l2"):
        for opt in ("adam", "adamp"):
            for seed in (0, 1):
                write_run(root, opt, experiment=experiment, seed=seed, shift=2.0 * seed)
    write_run(root, "sgd", lr=0.1)
    write_run(root, "sgd", lr=0.2, status="failed")
    return root


def rows(out):
    with (out / "tables" / "table-e2.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_puts_last_and_best_epoch_beside_the_paper(runs, tmp_path, capsys):
    assert sweep.main(["table-e2", f"runs={runs}", f"out={tmp_path}"]) == 0
    found = {(row["attack"], row["optimizer"]): row for row in rows(tmp_path)}
    assert len(found) == len(rows(tmp_path)) == 5
    adam = found["Linf 4/255", "adam"]
    assert adam["paper, CIFAR-10: clean / attacked"] == "80.12 / 56.58"
    assert adam["ours, last epoch: clean / attacked"] == "59.00 ± 1.41 / 49.00 ± 1.41"
    assert adam["ours, best epoch: clean / attacked"] == "61.00 ± 1.41 / 51.00 ± 1.41"
    assert (adam["n"], adam["data, scale"]) == ("2", "fashion_mnist_10k, mini")
    assert found["L2 80/255, sign steps", "adamp"]["paper, CIFAR-10: clean / attacked"] == "93.46 / 83.59"
    sgd = found["Linf 4/255", "sgd"]
    assert sgd["paper, CIFAR-10: clean / attacked"] == "–"
    assert sgd["ours, last epoch: clean / attacked"] == "50.00 / 40.00"
    assert (tmp_path / "tables" / "table-e2.md").read_text() in capsys.readouterr().out


def test_another_rate_has_no_published_number_beside_it(tmp_path):
    write_run(tmp_path / "runs", "adamp", lr=0.02)
    sweep.main(["table-e2", f"runs={tmp_path / 'runs'}", f"out={tmp_path}"])
    assert rows(tmp_path)[0]["paper, CIFAR-10: clean / attacked"] == "–"


def test_the_figure_has_a_row_a_ball_and_says_when_adamp_passes_adams_last_level(runs, tmp_path, capsys):
    assert sweep.main(["figure-4", f"runs={runs}", f"out={tmp_path}"]) == 0
    stem = tmp_path / "figures" / "figure-4-fashion_mnist_10k-mini"
    assert all(stem.with_suffix(end).exists() for end in (".svg", ".png", ".csv"))
    said = capsys.readouterr().out
    assert said.count("AdamP passes Adam's last 49.00 in epoch 2 of 4") == 2
    assert said.count("AdamP passes Adam's last 59.00 in epoch 2 of 4") == 2
    with stem.with_suffix(".csv").open() as file:
        numbers = list(csv.DictReader(file))
    assert len(numbers) == 9 * 2 * 4
    assert {row["metric"] for row in numbers} == {
        f"cifar10-pgd-{ball}/val/{score}_accuracy" for ball in ("linf", "l2") for score in ("clean", "attacked")
    }


def test_a_level_that_is_never_passed_is_said_so(tmp_path, capsys):
    write_run(tmp_path / "runs", "adam", shift=50.0)
    write_run(tmp_path / "runs", "adamp")
    sweep.main(["figure-4", f"runs={tmp_path / 'runs'}", f"out={tmp_path}"])
    assert capsys.readouterr().out.count("00 never\n") == 2


@pytest.mark.parametrize("name", ["table-e2", "figure-4"])
def test_no_runs_are_an_error_that_names_the_command(tmp_path, name):
    with pytest.raises(ReadError, match=f"make {name}"):
        sweep.main([name, f"runs={tmp_path}", f"out={tmp_path}"])
    write_run(tmp_path, "adam", status="failed")
    with pytest.raises(ReadError, match="no finished run"):
        sweep.main([name, f"runs={tmp_path}", f"out={tmp_path}"])
