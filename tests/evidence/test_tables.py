import csv
import io

import pytest

from evidence.csv_files import read_csv
from evidence.paper import read_paper
from evidence.records import store
from evidence.records.row import ResultRow, from_csv, result_row, to_csv
from evidence.runs import run as runs
from evidence.tables import formats
from evidence.tables.sections import result_tables
from scripts import tables

PAPER = read_paper(tables.Path(__file__).parents[2] / "results" / "paper.csv")
PAGE = "# title\n<!-- table:imagenet-resnet18 begin -->\nold\n<!-- table:imagenet-resnet18 end -->\nrest\n"


@pytest.fixture
def place(tmp_path, write_run):
    """A folder with runs and a page, and the words that make tables.py use it."""
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", "sgdp", weight_decay=1e-5, seed=seed)
        write_run(tmp_path / "runs", "sgd", weight_decay=1e-4, seed=seed)
    (tmp_path / "results.md").write_text(PAGE)
    names = {"runs": "runs", "records": "records.csv", "out": "tables", "page": "results.md"}
    return tmp_path, [f"{key}={tmp_path / name}" for key, name in names.items()]


def rows_of(**changes: str) -> list[ResultRow]:
    base = {"experiment": "imagenet-resnet18", "opt": "sgd", "weight_decay": "0.0001", "lr": "0.1", "epochs": "4"}
    base |= {"scale": "mini", "data": "digits", "setting": "aa", "commit": "c", "dirty": "no", "machine": "m"}
    return [from_csv(base | {"val/top1": "70", "name": "n", "seed": "0"} | changes)]


def test_the_published_numbers_are_whole():
    assert len(PAPER) == 262
    assert {number.paper for number in PAPER} == {"adamp", "project_page", "adarem", "aws"}
    assert all(number.value and number.metric for number in PAPER)


def test_finished_runs_become_rows_and_others_do_not(place, write_run):
    root, words = place
    write_run(root / "runs", "adamw", change={"status": "failed"})
    write_run(root / "runs", "adamp", change={"status": "running"})
    assert tables.main(words) == 0
    rows = read_csv(root / "records.csv")
    assert [(row["opt"], row["seed"]) for row in rows] == [(opt, str(s)) for opt in ("sgd", "sgdp") for s in (0, 1, 2)]
    assert float(rows[0]["norm_first"]) == pytest.approx(1.5**0.5)
    assert rows[0]["dirty"] == "no" and rows[0]["date"] == "2026-01-02" and float(rows[0]["val/top1"]) > 90


def test_running_twice_changes_nothing(place):
    root, words = place
    tables.main([*words, "--page"])
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    tables.main([*words, "--page"])
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_rows_of_runs_that_are_gone_or_elsewhere_stay(place):
    root, words = place
    store.write_rows(root / "records.csv", rows_of(name="far away", **{"val/ap": "3"}))
    tables.main(words)
    rows = read_csv(root / "records.csv")
    assert len(rows) == 7
    assert next(row for row in rows if row["name"] == "far away")["val/ap"] == "3"


def test_a_run_made_anew_replaces_its_row():
    old, new = rows_of(**{"val/top1": "1"}), rows_of(**{"val/top1": "2"})
    assert [row.scores["val/top1"] for row in store.merge(old, new)] == [2.0]


def test_tables_can_be_made_without_run_folders(place):
    root, words = place
    tables.main(words)
    before = (root / "tables" / "imagenet-resnet18.md").read_bytes()
    assert tables.main([f"runs={root / 'gone'}", *words[1:]]) == 0
    assert (root / "tables" / "imagenet-resnet18.md").read_bytes() == before


def test_without_runs_and_records_there_is_an_error(tmp_path):
    with pytest.raises(runs.ReadError, match="no runs found"):
        tables.main([f"runs={tmp_path / 'x'}", f"records={tmp_path / 'r.csv'}", f"out={tmp_path}"])


def test_the_block_of_a_page_is_made_from_the_records_and_the_rest_stays(place):
    root, words = place
    tables.main([*words, "--page"])
    text = (root / "results.md").read_text()
    assert text.startswith("# title\n<!-- table") and text.endswith("end -->\nrest\n") and "old" not in text
    assert "70.73" in text and "± 0.30" in text and "803200ab" in text


def test_check_tells_a_stale_page(place, capsys):
    root, words = place
    tables.main([*words, "--page"])
    assert tables.main([*words, "--check"]) == 0
    (root / "results.md").write_text((root / "results.md").read_text().replace("70.73", "79.73"))
    assert tables.main([*words, "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert "79.73" in (root / "results.md").read_text()


def test_a_page_without_the_block_says_what_to_put_in():
    with pytest.raises(runs.ReadError, match=r"<!-- table:toy begin -->\n<!-- table:toy end -->"):
        tables.rewrite_blocks(PAGE, [], PAPER, only="toy")
    with pytest.raises(runs.ReadError, match="put these two lines"):
        tables.rewrite_blocks("nothing", [], PAPER)


def test_a_block_without_records_names_the_command():
    assert "`make imagenet-resnet18` makes one" in tables.rewrite_blocks(PAGE, [], PAPER)


def test_paper_and_ours_never_share_a_heading():
    for data in ("digits", "imagenet-100"):
        (section,) = result_tables("imagenet-resnet18", rows_of(data=data), PAPER)
        paper, ours = section.titles[4], section.titles[6]
        assert paper == "paper: top-1 on ImageNet"
        assert ours == f"ours: top-1 on {data}, mini"


@pytest.mark.parametrize(
    ("opt", "decay", "numbers", "source"),
    [
        ("sgd", "0.0001", "70.43 / 70.28", "AdamP Table 1 / AdamP Table 2"),
        ("sgd", "0", "67.94", "AdamP Table 1"),
        ("adamw", "0.1", "70.41", "AdamP Table 2"),  # the paper prints lr x this
        ("adamp", "0.01", "70.81", "AdamP Table 2"),
        ("adamw", "0.0001", "–", "–"),
        ("adarem", "0.0001", "70.67", "AdaRem Table 2"),
        ("gd", "0", "–", "–"),
    ],
)
def test_the_paper_number_is_that_of_our_optimizer_and_decay(opt, decay, numbers, source):
    (section,) = result_tables("imagenet-resnet18", rows_of(opt=opt, weight_decay=decay), PAPER)
    assert (section.rows[0].paper, section.rows[0].source) == (numbers, source)


def test_scales_data_sets_and_settings_are_kept_apart():
    rows = [
        *rows_of(name="a"), *rows_of(name="b", seed="1"), *rows_of(name="c", setting="bb"),
        *rows_of(name="d", scale="full"), *rows_of(name="e", data="imagenet"),
    ]  # fmt: skip
    made = result_tables("imagenet-resnet18", rows, PAPER)
    assert [(section.data, section.scale, [len(line.by_seed) for line in section.rows]) for section in made] == [
        ("digits", "full", [1]), ("digits", "mini", [2, 1]), ("imagenet", "mini", [1]),
    ]  # fmt: skip
    assert [line.label for line in made[1].rows] == ["sgd [aa]", "sgd [bb]"]


def test_one_run_has_no_deviation_and_several_have():
    (section,) = result_tables("imagenet-resnet18", rows_of(), PAPER)
    assert section.rows[0].score_text == "70.00"
    two = [*rows_of(name="a"), *rows_of(name="b", seed="1", **{"val/top1": "71"})]
    assert result_tables("imagenet-resnet18", two, PAPER)[0].rows[0].score_text == "70.50 ± 0.71"


def best_of(*groups: tuple[str, ...]) -> list[str]:
    rows = []
    for opt, *scores in groups:
        for seed, score in enumerate(scores):
            rows += rows_of(opt=opt, setting=opt, name=f"{opt}{seed}", seed=str(seed), **{"val/top1": score})
    (section,) = result_tables("imagenet-resnet18", rows, PAPER)
    return [line.label for line in section.rows if line.is_significant]


def test_bold_needs_the_interval_of_every_paired_difference_to_exclude_0():
    assert best_of(("a", "70", "71", "72"), ("b", "80", "81.1", "82")) == ["b"]
    assert best_of(("a", "70", "74", "71"), ("b", "73", "75", "70.9")) == []  # 1.3 ± 1.6
    assert best_of(("a", "70", "71", "72"), ("b", "80", "81.1", "82"), ("c", "79", "82", "81")) == []
    assert best_of(("a", "70"), ("b", "80")) == []
    assert best_of(("a", "70", "71")) == []


def test_a_diverged_seed_makes_its_setting_a_failed_one_and_never_the_best():
    rows = [*rows_of(name="a"), *rows_of(name="b", seed="1", status="diverged", **{"val/top1": ""})]
    rows += [r for s in "01" for r in rows_of(name=s, seed=s, setting="bb", opt="adam", **{"val/top1": "3"})]
    failed, whole = sorted(result_tables("imagenet-resnet18", rows, PAPER)[0].rows, key=lambda line: len(line.by_seed))
    assert (failed.score_text, failed.seeds) == ("failed", "0, 1 failed")
    assert whole.score_text == "3.00 ± 0.00"


def test_a_run_cut_short_is_no_score_of_a_table(tmp_path, write_run):
    for opt, seed in (("sgd", 0), ("sgd", 1), ("adamw", 0), ("adamw", 1)):
        write_run(tmp_path, opt, seed=seed)
    short = {"epochs": 0.1, "scores": {"val/top1": 99.0}, "config": {"train": {"max_steps": 2}}}
    write_run(tmp_path, "sgdp", change=short)
    rows = store.rows_of_runs(runs.load_runs(tmp_path))
    (table,) = result_tables("imagenet-resnet18", rows, PAPER)
    (row,) = (row for row in table.rows if row.label == "sgdp")
    assert (row.score_text, row.seeds, row.diff_text, row.norm) == ("cut short", "0 cut short", "–", "– → –")
    assert [row.diff_text for row in table.rows].count("best mean") == 1 and not row.has_best_mean


def test_a_loss_is_the_better_the_smaller():
    rows = []
    for opt, scores in (("a", (0.5, 0.6, 0.7)), ("b", (0.2, 0.31, 0.4))):
        for seed, score in enumerate(scores):
            facts = {"monitor": "val/loss", "better": "lower", "val/loss": str(score)}
            rows += rows_of(opt=opt, setting=opt, name=f"{opt}{seed}", seed=str(seed), **facts)
    (section,) = result_tables("imagenet-resnet18", rows, PAPER)
    assert [line.label for line in section.rows if line.is_significant] == ["b"]
    assert section.rows[0].diff_text == "+0.30 [+0.28, +0.31]"


def test_the_epochs_to_the_target_come_from_the_recorded_curves(place):
    root, words = place
    tables.main(words)
    (first, second) = csv.DictReader(io.StringIO((root / "tables" / "imagenet-resnet18.csv").read_text()))
    assert first["seeds"] == "0, 1, 2" and first["epochs_to_target"] == "4.00 ± 0.00 (2 of 3)"
    assert first["target"] == second["target"]


def test_mixed_commits_dirty_trees_and_machines_all_show():
    rows = [*rows_of(name="a"), *rows_of(name="b", seed="1", commit="d", dirty="yes", machine="k")]
    (line,) = result_tables("imagenet-resnet18", rows, PAPER)[0].rows
    assert (line.commits, line.machines) == ("c, d+", "k; m")


def test_hostile_texts_stay_in_their_cells():
    rows = rows_of(opt="a|b\n*c*<img>`d`", machine="x & y_z % $ # {~^}\\")
    made = result_tables("imagenet-resnet18", rows, PAPER)
    lines = formats.markdown("imagenet-resnet18", made).splitlines()
    assert "a\\|b \\*c\\*&lt;img>\\`d\\`" in lines[-1]
    assert r"\textbackslash{}" not in formats.latex("imagenet-resnet18", made)  # machines are not in the LaTeX table
    assert "<img" not in formats.markdown("imagenet-resnet18", made)
    assert formats._tex("&%$#_{}~^\\") == (r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}")


def test_all_three_formats_have_the_same_rows(place):
    root, words = place
    tables.main(words)
    text = {ending: (root / "tables" / f"imagenet-resnet18.{ending}").read_text() for ending in ("md", "csv", "tex")}
    (first, second) = csv.DictReader(io.StringIO(text["csv"]))
    assert (first["optimizer"], second["optimizer"], second["paper"]) == ("sgd", "sgdp", "70.57 / 70.73")
    assert second["paper_data"] == "ImageNet" and second["data"] == "digits" and second["n"] == "3"
    for ending in ("md", "tex"):
        assert text[ending].count("sgdp") == 1 and text[ending].count("70.57 / 70.73") == 1
    assert r"\toprule" in text["tex"] and r"$\pm$" in text["tex"]


def test_a_run_cut_short_shows_the_epochs_it_had(tmp_path, write_run):
    run = runs.load_run(write_run(tmp_path, change={"epochs": 0.25}))
    assert to_csv(result_row(run))["epochs"] == "0.25"


def test_the_folder_of_results_moves_with_the_environment(tmp_path, write_run, monkeypatch):
    write_run(tmp_path / "runs")
    monkeypatch.setenv("ADAMP_RESULTS", str(tmp_path))
    assert tables.main([]) == 0
    assert (tmp_path / "records.csv").exists() and (tmp_path / "tables" / "imagenet-resnet18.md").exists()
