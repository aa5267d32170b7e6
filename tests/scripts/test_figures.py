import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

from evidence.figures import curves as figures
from evidence.figures import heatmaps
from evidence.figures import style as board
from evidence.figures import sweep as sweep_figure
from evidence.records.settings import group_by_setting
from evidence.runs import run as runs
from evidence.site import pages
from evidence.tables.cells import Cell


def groups_of(root):
    (found,) = group_by_setting(runs.load_runs(root)).values()
    return found


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory, make_run):
    """One run and its figures, drawn once."""
    folder = make_run(tmp_path_factory.mktemp("runs"), epochs=1)
    run = runs.load_run(folder)
    return run, figures.draw_run(run, folder / "figures")


@pytest.fixture
def norms_only(monkeypatch):
    """Draw the chart of norms alone: the others are drawn by the same code."""
    monkeypatch.setattr(figures, "CHARTS", figures.CHARTS[:1])


def test_a_run_is_drawn_as_svg_png_and_csv(drawn_run):
    _, drawn = drawn_run
    assert [figure.stem for figure in drawn] == ["norms", "learning", "projection", "oscillation", "layers"]
    for figure in drawn:
        assert figure.svg.read_text().lstrip().startswith("<?xml")
        assert figure.svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert figure.svg.with_suffix(".csv").stat().st_size > 100


def test_the_numbers_behind_a_figure_are_complete(drawn_run):
    run, drawn = drawn_run
    with drawn[0].svg.with_suffix(".csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "norm/mean"]
    assert [float(row["value"]) for row in rows] == run.series("norm/mean")[2]
    assert {row["seed"] for row in rows} == {"0"}


@pytest.mark.usefixtures("norms_only")
def test_the_same_run_gives_the_same_bytes(tmp_path, write_run):
    run = runs.load_run(write_run(tmp_path, epochs=1, layers=()))
    first, second = (figures.draw_run(run, tmp_path / name)[0].svg for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_run_without_metrics_has_no_figures(tmp_path, write_run):
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").unlink()
    assert figures.draw_run(runs.load_run(folder), tmp_path / "out") == []


@pytest.mark.usefixtures("norms_only")
@pytest.mark.parametrize("value", [0.0, -1.0, None, math.inf, 1e300])
def test_values_that_no_axis_can_show_do_not_stop_a_figure(tmp_path, value):
    keys = ("norm/mean", "effective_step/mean", "norm/conv.weight")
    lines = [{"step": i, "epoch": i, **dict.fromkeys(keys, value)} for i in range(3)]
    run = runs.Run(tmp_path, {"opt_name": "sgd"}, lines)
    assert figures.draw_run(run, tmp_path / "out")


@pytest.mark.usefixtures("norms_only")
def test_hostile_names_are_drawn_as_text(tmp_path, write_run):
    for opt in ("a$b_{x\\", "<script>", "_hidden", "\x00\u202e漢", "x" * 300):
        write_run(tmp_path, opt, epochs=1, layers=("$\\frac{", "<b>"), folder=f"r{hash(opt)}", data="$d$ & <i>")
    drawn = figures.draw_comparison(groups_of(tmp_path), tmp_path / "out")
    assert len(drawn) == 3
    assert "<script" not in drawn[0].svg.read_text()


@pytest.mark.usefixtures("norms_only")
def test_groups_of_a_comparison_are_named_in_its_numbers(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, "sgd", seed=seed, epochs=1, layers=())
    write_run(tmp_path, "sgdp", epochs=1, layers=(), change={"status": "failed"})
    figures.draw_comparison(groups_of(tmp_path), tmp_path / "out", prefix="digits-")
    with (tmp_path / "out" / "digits-norms.csv").open() as file:
        found = {(row["group"], row["seed"]) for row in csv.DictReader(file)}
    assert found == {("sgd, wd=0", "0"), ("sgd, wd=0", "1"), ("sgdp, wd=0", "0")}


def test_labels_count_finished_and_unfinished_runs(tmp_path, write_run):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, change={"status": "running"})
    (group,) = groups_of(tmp_path)
    assert figures.counted(group) == "sgdp, wd=0 (n=1, 1 unfinished)"


def test_the_band_covers_the_steps_that_all_seeds_have(tmp_path):
    lines = [{"step": i, "epoch": i / 10, "a": float(i)} for i in range(5)]
    long, short = runs.Run(tmp_path, {}, lines), runs.Run(tmp_path, {}, lines[1:4])
    epochs, values = figures.over_seeds([long, short, runs.Run(tmp_path, {}, [])], "a")
    assert epochs == [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(values, [[1, 2, 3], [1, 2, 3]])


def test_every_optimizer_of_the_configurations_has_a_colour():
    assert {path.stem for path in Path("configs/opt").glob("*.yaml")} <= board.COLOURS.keys()


def test_one_optimizer_has_one_colour_in_all_columns_of_a_sweep():
    def cells(*opts):
        return [Cell({"opt": opt, "opt.weight_decay": str(k)}) for k, opt in enumerate(opts)]

    for columns in (("sgd", "sgdp", "adam"), ("adam", "sgd"), ("adam", "adam")):
        lines = sweep_figure.line_styles(cells(*columns), by_optimizer=True)
        assert [line["color"] for line in lines] == [board.colour(opt) for opt in columns]
        assert len({(line["color"], line["linestyle"]) for line in lines}) == len(columns)


def test_colours_of_settings_are_those_of_no_optimizer():
    script = (Path(pages.TEMPLATES) / "site.js").read_text()
    in_browser = re.findall(r'"(#[0-9a-f]{6})"', script)
    drawn = {
        line["color"] for n in range(1, 15) for line in sweep_figure.line_styles([Cell({})] * n, by_optimizer=False)
    }
    assert in_browser and not {*in_browser, *drawn, *board.SPARE} & {*board.COLOURS.values()}


def test_every_optimizer_has_its_own_colour_in_every_figure():
    assert len(set(board.COLOURS.values())) == len(board.COLOURS)
    assert board.colour("unheard-of") == board.colour("unheard-of")
    assert board.colour("unheard-of") not in board.COLOURS.values()


def test_groups_of_one_optimizer_differ_in_dashes_or_marker(tmp_path, write_run):
    for count, (decay, lr) in enumerate([(0, 0.1), (1e-4, 0.1), (1e-4, 0.2), (1e-3, 0.1)]):
        write_run(tmp_path, weight_decay=decay, lr=lr, folder=f"r{count}")
    styles = figures.styles(groups_of(tmp_path))
    assert len({style["color"] for style in styles}) == 1
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 4


@pytest.mark.usefixtures("norms_only")
def test_nothing_of_a_long_legend_leaves_the_figure(tmp_path, write_run, monkeypatch):
    for count in range(14):
        write_run(tmp_path, "adamw", weight_decay=count * 1e-5, epochs=1, layers=(), folder=f"r{count}")
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *args, **kwargs: kept.append(figure))
    figures.draw_comparison(groups_of(tmp_path), tmp_path / "out")
    figure = kept[0]
    figure.draw_without_rendering()
    (legend,), outside = figure.legends, figure.bbox
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 14
    assert outside.x0 <= box.x0 and box.x1 <= outside.x1 and outside.y0 <= box.y0
    assert all(box.y1 <= axis.get_tightbbox().y0 + 1 for axis in figure.axes)
    assert all(axis.get_window_extent().height > 150 for axis in figure.axes)


def test_long_series_are_thinned_for_drawing_only():
    x = np.arange(10_001.0)
    picked, means = board.thin(x, x, mean=False), board.thin(x, x, mean=True)
    assert len(picked[0]) <= board.MAX_POINTS + 1 and picked[0][-1] == 10_000
    assert len(means[0]) <= board.MAX_POINTS
    assert means[1][0] == pytest.approx(x[: math.ceil(10_001 / board.MAX_POINTS)].mean())


def test_the_layer_matrix_has_nan_where_a_layer_was_not_logged(tmp_path):
    lines = [{"step": 1, "epoch": 1, "norm/a": 1.0, "norm/b": 2.0}, {"step": 2, "epoch": 2, "norm/b": 3.0}]
    layers, epochs, values = heatmaps.matrix(runs.Run(tmp_path, {}, lines), "norm")
    assert (layers, epochs) == (["a", "b"], [1, 2])
    np.testing.assert_array_equal(values, [[1, math.nan], [2, 3]])


def test_titles_name_experiment_data_set_and_scale(tmp_path, write_run):
    run = runs.load_run(write_run(tmp_path))
    assert re.fullmatch(r"imagenet-resnet18 · digits · scale mini", figures.where(run))


@pytest.mark.usefixtures("norms_only")
def test_a_single_point_is_drawn_as_a_marker(tmp_path, write_run, monkeypatch):
    for seed, status in enumerate(["finished", "running"]):
        path = write_run(tmp_path, seed=seed, layers=(), change={"status": status}) / "metrics.jsonl"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *args, **kwargs: kept.append(figure))
    figures.draw_comparison(groups_of(tmp_path), tmp_path / "out")
    assert [line.get_marker() for line in kept[0].axes[0].lines] == ["o", "o"]
