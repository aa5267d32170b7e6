import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

from evidence import sweeps
from evidence.figures import curves as figures
from evidence.figures import heatmaps, rosenbrock3d, toy2d
from evidence.figures import style as board
from evidence.figures import sweep as sweep_figure
from evidence.records.row import ResultRow
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


FIGURES = sorted(
    path.stem
    for path in sweeps.SWEEPS.glob("*.yaml")
    if "rows" in (sweeps.read(path.stem).get("sweep", {}).get("figure") or {})
)


def drawn_sweep(name, monkeypatch, *, points=6):
    """Return the figure of a sweep, drawn from made-up curves of three seeds, and what stands in its title."""
    spec = sweeps.read(name)["sweep"]
    cells = []
    for count, (block, overrides) in enumerate(sweeps.cells(name, "full", {"train.seed": "0"})):
        cell = Cell({key: value for key, value in overrides.items() if key != "train.seed"}, block)
        for seed in range(3):
            curve = (range(points), [k / 2 for k in range(points)], [1.0 + count + seed + k for k in range(points)])
            cell.rows[seed] = ResultRow(name=f"{count}-{seed}", curves=dict.fromkeys(spec["figure"]["rows"], curve))
        cells.append(cell)
    kept = []
    monkeypatch.setattr(sweep_figure, "save", lambda figure, *args, **kwargs: kept.append(figure))
    loose = spec.get("table", {}).get("loose", ())
    sweep_figure.draw(cells, spec["figure"], Path("x.svg"), title=spec["title"], unsaid=loose)
    return kept[0], spec["title"], cells


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_a_sweep_gives_an_optimizer_its_colour_and_nothing_covers_anything(name, monkeypatch):
    figure, title, cells = drawn_sweep(name, monkeypatch)
    figure.draw_without_rendering()
    drawn = {line.get_color() for axis in figure.axes for line in axis.lines}
    optimizers = {cell.overrides.get("opt", "sgd") for cell in cells}
    if sweeps.read(name)["sweep"]["figure"].get("columns") != "opt" and len(optimizers) > 1:
        assert drawn == {board.colour(opt) for opt in optimizers}
    else:
        assert len(cells) == 1 or not drawn & {*board.COLOURS.values()}
    assert figure.get_suptitle().replace("\n", " ") == title
    page, panels = figure.bbox, [axis for axis in figure.axes if axis.lines]
    boxes = [figure._suptitle.get_window_extent(), *(axis.get_tightbbox() for axis in panels)]
    legends = [*figure.legends, *(axis.get_legend() for axis in panels if axis.get_legend())]
    assert legends
    for box in [*boxes, *(legend.get_window_extent() for legend in legends)]:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
    for legend in legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(axis.get_window_extent()) for axis in panels)
        assert all("(n=3)" in text.get_text() for text in legend.get_texts())
    for axis in panels:  # the mean of three seeds with its band, and no number hidden in an offset
        assert len(axis.collections) == len(axis.lines)
        assert not axis.yaxis.get_offset_text().get_text()


def test_two_points_are_drawn_as_the_seeds_last_values(monkeypatch):
    figure, _, cells = drawn_sweep("aws-figure-1", monkeypatch, points=2)
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "training top-1 (%), last value"
    assert [line.get_ydata().tolist() for line in axis.lines] == [[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]
    assert len(axis.collections) == len(cells)


@pytest.mark.parametrize(
    ("values", "scale", "label"),
    [((1.0, 1.007), "linear", "1.002"), ((1.1, 3.0), "linear", "1.5"), ((2e-5, 3e-5), "linear", "2.2e-05"),
     ((1.0, 500.0), "log", "20"), ((1e-5, 1.0), "log", "$\\mathdefault{10^{-2}}$")],
)  # fmt: skip
def test_ticks_of_a_logarithmic_metric_are_written_out(values, scale, label):
    with board.canvas("t", columns=1, size=(4, 3)) as (figure, (axis,)):
        axis.plot([0, 1], values)
        board.tame([axis])
        figure.draw_without_rendering()
    assert axis.get_yscale() == scale
    assert label in [text.get_text() for text in axis.get_yticklabels()]
    assert not axis.yaxis.get_offset_text().get_text()


def test_every_colour_is_seen_on_the_light_and_on_the_dark_page():
    css = (Path(pages.TEMPLATES) / "site.css").read_text()
    cards = [board.luminance(card) for card in re.findall(r"--card: (#[0-9a-f]{6})", css)]
    assert max(cards) > 0.9 and min(cards) < 0.1
    for shade in [*board.COLOURS.values(), *board.SPARE, *board.setting_colours(8)]:
        for card in cards:
            low, high = sorted((board.luminance(shade), card))
            assert (high + 0.05) / (low + 0.05) >= 1.95, shade


def test_the_browser_draws_settings_in_the_figures_colours():
    script = (Path(pages.TEMPLATES) / "site.js").read_text()
    assert re.findall(r'"(#[0-9a-f]{6})"', script) == board.setting_colours(8)


def test_the_toys_use_the_optimizers_colours():
    sgd, sgdp = board.colour("sgd"), board.colour("sgdp")
    assert {"momentum": sgd, "decay": sgd, "in place": sgdp, "projected": sgdp} == rosenbrock3d.HUES
    assert {toy2d.LOOKS[key]["color"] for key in ("projected", "in place")} == {sgdp}
    assert toy2d.LOOKS["momentum"]["color"] == sgd


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
    assert len(legend.get_texts()) == 14 + 1  # the predicted cap
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


@pytest.mark.parametrize(
    ("opt", "options", "base", "expected"),
    [
        ("sgd", {"momentum": 0.0}, "sgd", [1 / 2, 0.5 / math.sqrt(5.625)]),
        ("sgdp", {"momentum": 0.9}, "sgd", [math.sqrt(0.1 / 1.9) / 2, math.sqrt(0.1 / 1.9) * 0.5 / math.sqrt(5.625)]),
        ("adamp", {"betas": [0.0, 0.999]}, "adamw", [1 / math.sqrt(2), 0.5 / math.sqrt(2.8125)]),
        ("lamb", {}, "", []),
    ],
)
def test_the_predicted_cap_is_that_of_the_unprojected_optimizer_under_the_runs_schedule(
    tmp_path, opt, options, base, expected
):
    # Rates 1, 1, 0.75 (between two logged steps), 0.5: squares add up to 2 and 2.8125
    lines = [{"step": step, "epoch": step / 4, "lr": rate} for step, rate in ((2, 1.0), (4, 0.5))]
    run = runs.Run(tmp_path, {"opt_name": opt, "config": {"opt": options}}, lines)
    found, steps, _, caps = figures.cap_of(run)
    assert found == base
    assert caps == pytest.approx(expected)
    assert steps == ([2, 4] if expected else [])


@pytest.mark.usefixtures("norms_only")
def test_the_predicted_cap_is_drawn_once_beside_effective_steps_and_kept_in_the_numbers(tmp_path, write_run):
    found = [runs.load_run(write_run(tmp_path, opt, epochs=1, layers=())) for opt in ("sgd", "sgdp")]
    (drawn,) = figures.draw_comparison(groups_of(tmp_path), tmp_path / "out", only=["norms"])
    with drawn.svg.with_suffix(".csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "predicted cap (SGD without decay)"]
    assert [int(row["step"]) for row in rows] == found[0].series("lr")[0]
