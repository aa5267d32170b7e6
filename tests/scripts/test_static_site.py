"""The static site: its pages and data, and what a browser makes of them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from evidence.claims.page import HEADS as CLAIM_HEADS
from evidence.records.row import result_row
from evidence.runs import run as runs
from evidence.site import pages, run_data
from evidence.site.pages import environment
from scripts import report
from tests.commands import measured

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def built(root: Path, *words: str) -> Path:
    assert report.main([f"runs={root}/runs", f"out={root}/reports", *words]) == 0
    return root / "reports"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Path:
    """A site of two experiments, with a hostile name, broken folders, a table and a ledger."""
    root = tmp_path_factory.mktemp("site")
    for opt, decay in (("sgd", 1e-4), ("sgdp", 1e-5), ("adamp", 1e-2), ("adamp", 0.0)):
        for seed in (0, 1, 2):
            make_run(root / "runs", opt, weight_decay=decay, seed=seed)
    make_run(root / "runs", "adamp", change={"experiment": "another", "argv": ["experiment=another", "opt=adam p"]})
    make_run(root / "runs", EVIL, folder="evil b#c?d%", change={"experiment": "another", "name": EVIL})
    (make_run(root / "runs", seed=7, folder="half-json") / "run.json").write_text('{"name": "ha')
    half = make_run(root / "runs", "sgd", seed=8, folder="half-line") / "metrics.jsonl"
    half.write_text(half.read_text() + '{"step": 99, "epo')
    (make_run(root / "runs", "sgd", seed=9, folder="no-metrics") / "metrics.jsonl").unlink()
    (root / "runs" / "imagenet-resnet18" / "empty").mkdir()
    (root / "tables").mkdir()
    claim = ["a", "AdamP", "T1", "effect", EVIL, *" " * (len(CLAIM_HEADS) - 6), "not run"]
    for name, rows in (
        ("claims", [CLAIM_HEADS, claim, ["b", *CLAIM_HEADS[1:-1], "reproduced"]]),
        ("table-1", [["setting", EVIL], ["sgd", "70.00 ± 0.10"]]),
    ):  # fmt: skip
        with (root / "tables" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return built(root)


def data(path: Path) -> object:
    """Return what a data file hands to the page."""
    found = re.fullmatch(r"site\.\w+\((.*)\);\n", path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_kind_of_page_is_there_and_nothing_comes_from_a_network(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert pages == {
        "index.html", "compare.html", "run.html", "tables.html", "claims.html", "another/index.html",
        "imagenet-resnet18/index.html",
    }  # fmt: skip
    for path in [*site.rglob("*.html"), *site.glob("*.js"), *site.glob("*.css")]:
        without = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in without and "https:" not in without, path


def test_broken_folders_are_listed_and_the_others_shown(site):
    summary = json.loads((site / "imagenet-resnet18" / "data" / "summary.json").read_text())
    assert {name: why.split(" (")[0] for name, why in summary["broken"]} == {
        "half-json": "run.json is broken", "empty": "no readable run.json",
        "half-line": "metrics.jsonl ends in half a line", "no-metrics": "metrics.jsonl is missing",
    }  # fmt: skip
    assert summary["runs"] == 14
    for page in ("index.html", "imagenet-resnet18/index.html"):
        text = (site / page).read_text()
        assert all(name in text for name in ("half-json", "half-line", "no-metrics", "empty"))


def test_a_run_of_the_data_has_its_command_curves_and_layers(site):
    index = data(site / "another" / "data" / "index.js")
    (place,) = [k for k, row in enumerate(index["runs"]) if row[index["keys"].index("opt")] == "adamp"]
    _, _, chunk = data(site / "another" / "data" / "0000.js")
    run = chunk[place]
    assert run["repeat"] == "python scripts/train.py experiment=another 'opt=adam p'"
    assert run["curves"]["val/top1"][1] == [1, 2, 3, 4]
    assert run["layers"]["norm"]["layers"][0] == "conv1.weight" and len(run["layers"]["norm"]["values"][0]) == 4
    assert not any(key.startswith("norm/conv1") for key in run["curves"])


def test_no_text_of_a_run_is_markup_in_a_page(site):
    for path in site.rglob("*.html"):
        assert "<script>alert" not in path.read_text() and "<img" not in path.read_text()


def test_an_experiment_whose_runs_are_gone_leaves_the_site(tmp_path, write_run):
    write_run(tmp_path / "runs")
    write_run(tmp_path / "runs", change={"experiment": "old"})
    out = built(tmp_path)
    assert "old" in (out / "index.html").read_text()
    shutil.rmtree(tmp_path / "runs" / "old")
    assert ">old<" not in (built(tmp_path) / "index.html").read_text()
    assert not (out / "old" / "index.html").exists()


def test_an_unknown_experiment_is_refused_in_words(tmp_path, write_run):
    write_run(tmp_path / "runs")
    with pytest.raises(runs.ReadError, match="no runs of experiment=nope"):
        report.main([f"runs={tmp_path}/runs", f"out={tmp_path}/o", "experiment=nope"])


def test_a_long_file_is_sampled_kind_by_kind_with_its_ends(tmp_path, write_run):
    folder = write_run(tmp_path)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            more = f',"val/top1":{step / 1000}' if step % 500 == 0 else ""
            file.write(f'{{"step":{step},"epoch":{step / 500},"train/loss":{1 / step}{more}}}\n')
    run = runs.read_run(folder, most=100)
    assert len(run.metrics) < 450
    assert run.series("val/top1")[0] == list(range(500, 20_001, 500))  # few lines have scores: all stay
    assert run.series("train/loss")[0][0] == 1 and run.metrics[-1]["step"] == 20_000
    steps, _, values = run_data.details(run, site=tmp_path)["curves"]["train/loss"]
    assert len(steps) <= run_data.POINTS + 1 and values[-1] == pytest.approx(1 / 20_000)


@pytest.mark.parametrize(
    ("change", "outcome", "epochs"),
    [
        ({"epochs": 0.1, "config": {"train": {"max_steps": 2}}}, "cut short", [0.1, 4]),
        ({"status": "interrupted", "epochs": 2}, "interrupted", [2, 4]),
        ({"status": "running", "epochs": 2}, "interrupted", [2, 4]),  # its process is gone
        ({"status": "failed", "epochs": 2}, "failed", [2, 4]),
    ],
)
def test_a_run_without_its_whole_schedule_is_marked_and_has_no_score(tmp_path, write_run, change, outcome, epochs):
    write_run(tmp_path / "runs", "sgd")
    write_run(tmp_path / "runs", "adamp", change=change)
    out = built(tmp_path)
    index = data(out / "imagenet-resnet18" / "data" / "index.js")
    run, whole = (dict(zip(index["keys"], row, strict=True)) for row in index["runs"])
    assert run["status"] == outcome and [run["epochs"], run["planned"]] == epochs
    assert run["score"] is None and run["best"] is None and whole["score"] > 90
    page = (out / "imagenet-resnet18" / "index.html").read_text()
    assert f'">{outcome}</span>' in page and page.count("best mean</td>") == 1
    assert "max_steps=none" not in page
    assert json.loads((out / "imagenet-resnet18" / "data" / "summary.json").read_text())["outcomes"] == {
        "finished": 1, outcome: 1,
    }  # fmt: skip


def test_phases_say_how_long_the_schedule_is(tmp_path, write_run):
    phases = [{"epochs": 3}, {"epochs": 1}]
    whole = runs.read_run(write_run(tmp_path, change={"config": {"phases": phases, "train": {"epochs": 99}}}))
    assert (whole.epochs, whole.outcome) == (4, "finished")
    assert result_row(whole).outcome == "finished"


def test_a_page_of_pictures_made_before_the_site_links_back_to_it(tmp_path, write_run):
    report_page = write_run(tmp_path / "runs", epochs=1, layers=()) / "report.html"
    report_page.write_text(environment().get_template("base.html.j2").render(title="pictures"))
    out = built(tmp_path)
    for _ in range(2):
        (link,) = re.findall(r'<a href="([^"]+)">← All runs of imagenet-resnet18</a>', report_page.read_text())
        assert (report_page.parent / link).resolve() == (out / "imagenet-resnet18" / "index.html").resolve()
        built(tmp_path)


def test_one_is_no_plural(tmp_path, write_run):
    write_run(tmp_path / "runs")
    assert "1 run of 1 experiment," in re.sub(r"\s+", " ", (built(tmp_path) / "index.html").read_text())


def test_tables_are_shown_as_their_markdown_has_them(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "x.csv").write_text("a,b\n1,2\n")
    text = "# Title\n\n**digits, scale mini**\n\n| a | b |\n| --- | ---: |\n| x\\|y &lt;b> | **1** |\n\nA note.\n"
    (tmp_path / "tables" / "x.md").write_text(text)
    page = pages.write_site(tmp_path / "reports", tmp_path).with_name("tables.html").read_text()
    assert "<h3>digits, scale mini</h3>" in page and "A note." in page
    assert "x|y &lt;b&gt;</td><td>1</td>" in page and "---" not in page


# In a browser ---------------------------------------------------------------------------------------------------------


def opened(page: Path, tmp_path: Path, **chosen: str) -> tuple[str, list[str]]:
    """Return the page as a browser shows it with an address such as #opt=adamp, and what its console said."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    words = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
        f"file://{quote(str(page))}#{urlencode(chosen)}",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_in_a_browser_filters_choose_runs_and_curves_are_drawn(site, tmp_path):
    page = site / "imagenet-resnet18" / "index.html"
    shown, said = opened(page, tmp_path, opt="adamp", wd="0.01", curve="norm/mean")
    assert said == []
    assert 'data-ready="1"' in shown and "3 of 14 runs; 3 drawn" in shown
    assert shown.count('class="curve"') == 3 and 'data-metric="norm/mean"' in shown
    assert shown.count('data-map="') == 6  # norm and effective step of each of the three
    assert len(re.findall(r"run\.html#run=imagenet-resnet18", shown)) == 3


def test_in_a_browser_a_hostile_name_is_text_and_its_page_has_the_command(site, tmp_path):
    shown, said = opened(site / "run.html", tmp_path, run="another/evil b#c?d%", theme="dark")
    assert said == []
    assert "&lt;script&gt;alert(1)" in shown and "<script>alert" not in shown and "<img" not in shown
    assert 'id="repeat"' in shown and "scripts/train.py experiment=imagenet-resnet18" in shown
    assert shown.count('class="curve"') == 4 and 'data-theme="dark"' in shown


def test_in_a_browser_no_page_is_cut_at_1400_px_or_wider_than_a_phone(site, tmp_path):
    shutil.copytree(ROOT / "results" / "tables", tmp_path / "tables")
    shutil.copytree(site, tmp_path / "reports")
    pages.write_site(tmp_path / "reports", tmp_path)
    names = ("index.html", "tables.html", "claims.html", "imagenet-resnet18/index.html", "run.html")
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px" src="reports/{name}#run=imagenet-resnet18/half-line"></iframe>'
        for width in (390, 1400)
        for name in names
    )
    script = """onload = () => setTimeout(() => { for (const frame of document.querySelectorAll("iframe")) {
      const page = frame.contentDocument, wide = (e) => e.scrollWidth > e.clientWidth + 1;
      const cut = frame.clientWidth < 1000 ? [] : [...page.querySelectorAll(".scroll")].filter(wide);
      const name = frame.src.split("/reports/")[1];
      if (wide(page.documentElement) || cut.length) document.body.append(`CUT ${frame.clientWidth} ${name}; `);
    } document.body.append("MEASURED"); }, 3000)"""
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{frames}<script>{script}</script></body>")
    shown, _ = opened(tmp_path / "frames.html", tmp_path)
    assert "MEASURED" in shown.split("</script>")[-1]
    assert re.findall(r"CUT [^;]+", shown.split("</script>")[-1]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chosen", "words"),
    [
        ("compare.html", {"seed": "0"}, ("6 of 16 runs; 6 drawn",)),
        ("compare.html", {"experiment": "another", "x": "step", "y": "log"}, ("2 of 16 runs", "(log)")),
        ("claims.html", {"verdict": "reproduced"}, ('data-verdict="not run" hidden=""',)),
        ("index.html", {}, ("16 runs of 2 experiments",)),
        ("tables.html", {}, ("70.00 ± 0.10", "&lt;script&gt;")),
        ("run.html", {"run": "another/none"}, ("There is no run another/none here",)),
    ],
)
def test_in_a_browser_every_page_works_without_an_error(site, tmp_path, name, chosen, words):
    shown, said = opened(site / name, tmp_path, **chosen)
    assert said == []
    assert all(word in shown for word in words)


# At scale -------------------------------------------------------------------------------------------------------------


def copies(root: Path, write_run: Callable[..., Path], count: int) -> None:
    """Write so many run folders: ten experiments, of which each run has its own seed, optimizer and decay."""
    source = write_run(root / "one")
    record, lines = json.loads((source / "run.json").read_text()), (source / "metrics.jsonl").read_text()
    for k in range(count):
        opt, decay = ("sgd", "sgdp", "adamw", "adamp")[k % 4], (0.0, 1e-5, 1e-4)[k // 4 % 3]
        record |= {"name": f"{opt},wd={decay:g},seed={k}", "experiment": f"e{k % 10}", "opt_name": opt, "seed": k}
        record["config"]["opt"] |= {"weight_decay": decay, "beta": k // 30}
        folder = root / "runs" / record["experiment"] / record["name"]
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text(lines)
    (root / "runs" / "e0" / "broken").mkdir()


@pytest.mark.slow
def test_ten_thousand_runs_take_less_than_a_minute_and_two_gigabytes(tmp_path, write_run):
    copies(tmp_path, write_run, 10_000)
    cost = measured(["scripts/report.py", f"runs={tmp_path}/runs", f"out={tmp_path}/reports"], tmp_path / "log")
    assert cost.code == 0, cost.text
    assert cost.cpu_seconds < 60 and cost.peak_mib < 2048
    assert "10000 runs of 10 experiments" in re.sub(r"\s+", " ", (tmp_path / "reports" / "index.html").read_text())


@pytest.mark.slow
def test_ten_million_lines_are_read_in_bounded_memory(tmp_path, write_run):
    folder = write_run(tmp_path / "runs")
    with (folder / "metrics.jsonl").open("w") as file:
        for block in range(100):
            first = block * 100_000
            file.writelines(
                f'{{"step":{s},"epoch":{s / 1e5},"train/loss":0.5}}\n' for s in range(first, first + 100_000)
            )
            file.write(f'{{"step":{first + 100_000},"epoch":{block + 1},"train/loss":0.4,"val/top1":{block}}}\n')
    cost = measured(["scripts/report.py", f"runs={tmp_path}/runs", f"out={tmp_path}/reports"], tmp_path / "log")
    assert cost.code == 0, cost.text
    assert cost.peak_mib < 512
    (run,) = data(tmp_path / "reports" / "imagenet-resnet18" / "data" / "0000.js")[2]
    assert len(run["curves"]["val/top1"][0]) == 100 and run["curves"]["train/loss"][0][-1] == 10_000_000
