import pytest
import torch

from evidence.csv_files import read_csv
from evidence.figures import rosenbrock3d as rosenbrock3d_figures
from evidence.figures import rosenbrock3d_numbers
from evidence.runs.run import ReadError
from scripts import rosenbrock3d
from tasks.toy import rosenbrock3d as toy

DEFAULTS = {"sweep.lr": "0.001,0.1", "sweep.count": "5", "sweep.spacing": "log"}


@pytest.fixture(scope="module")
def paths():
    return {run.method: path for run, path in zip(toy.RUNS, toy.trace(toy.RUNS), strict=True)}


@pytest.fixture(scope="module")
def near():
    return {run.method: toy.neighbours(run, count=2) for run in toy.RUNS}


def test_path_peak_and_norms_agree_with_the_published_ones(paths, near):
    numbers = rosenbrock3d_numbers.compare(paths, near)
    checked = [number for number in numbers if number.holds is not None]
    assert len(checked) == 7 and all(number.holds for number in checked)
    (peak,) = [number for number in numbers if number.quantity.startswith("peak")]
    assert peak.obtained == "2.5274 at 43"


def test_exchanged_paths_do_not_agree(paths, near):
    wrong = {**paths, "momentum": paths["decay"], "decay": paths["momentum"]}
    numbers = [number for number in rosenbrock3d_numbers.compare(wrong, near) if number.holds is not None]
    assert [number.verdict for number in numbers].count("FAIL") == 5


def test_the_grid_is_logarithmic_or_linear():
    rates = rosenbrock3d.learning_rates(DEFAULTS)
    assert rates.tolist() == pytest.approx([10**-3, 10**-2.5, 10**-2, 10**-1.5, 10**-1])
    rates = rosenbrock3d.learning_rates({**DEFAULTS, "sweep.spacing": "linear"})
    assert rates.tolist() == pytest.approx([0.001, 0.02575, 0.0505, 0.07525, 0.1])


@pytest.mark.parametrize(
    "word",
    ["sweep.lr=0.1", "sweep.lr=0.1,0.01", "sweep.lr=0,1", "sweep.lr=a,b", "sweep.lr=nan,1", "sweep.count=1",
     "sweep.count=2.5", "sweep.spacing=cubic"],
)  # fmt: skip
def test_bad_grids_are_refused_with_the_value(word):
    with pytest.raises(ReadError, match=word):
        rosenbrock3d.main([word])


def test_the_command_searches_writes_and_draws(monkeypatch, tmp_path, capsys, near):
    monkeypatch.setattr(toy, "neighbours", lambda run: near.get(run.method, near["in place"]))
    surfaces = []
    monkeypatch.setattr(rosenbrock3d_figures, "draw_surface", lambda *args: surfaces.append(args))
    rosenbrock3d.main([f"out={tmp_path}", "sweep.lr=0.02,0.05", "sweep.count=3"])
    printed = capsys.readouterr().out
    assert "best distance of 3 learning rates" in printed and "at lr 0.0" in printed and surfaces
    assert {path.name for path in tmp_path.iterdir()} >= {
        "rosenbrock3d.md", "rosenbrock3d-maps.svg", "rosenbrock3d-maps.png", "rosenbrock3d-sweep.csv",
    }  # fmt: skip
    assert len(read_csv(tmp_path / "rosenbrock3d-numbers.csv")) == 21


def test_best_distances_are_the_least_of_the_grid():
    rates = torch.tensor([0.02, 0.04], dtype=torch.float64)
    found, numbers = rosenbrock3d.search(rates)
    best = float(toy.end_distances(found["decay"]).min())
    (line,) = [n for n in numbers if n.subject == toy.TITLES["decay"]]
    assert line.obtained.startswith(f"{best:.3f} at lr 0.0")


def test_the_surface_is_drawn(monkeypatch, tmp_path, paths):
    whole = rosenbrock3d_figures._loss_grid
    monkeypatch.setattr(rosenbrock3d_figures, "_loss_grid", lambda count, *limits: whole(20, *limits))
    drawn = rosenbrock3d_figures.draw_surface(paths, tmp_path)
    assert drawn.svg.exists() and (tmp_path / "rosenbrock3d-surface.png").stat().st_size > 10_000
