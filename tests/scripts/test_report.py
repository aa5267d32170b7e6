import fcntl
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evidence.runs import run as runs
from evidence.site import page_data as views
from evidence.site import reports
from scripts import report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, links and text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def plain_figures(monkeypatch):
    """Draw no figures: the texts are under test."""
    monkeypatch.setattr(reports, "draw_run", lambda run, folder: [])
    monkeypatch.setattr(reports, "draw_comparison", lambda groups, folder, *, prefix: [])


@pytest.fixture(scope="module")
def page_path(tmp_path_factory, make_run):
    """The page of one run with all figures, drawn once."""
    return reports.write_run_report(make_run(tmp_path_factory.mktemp("runs"), epochs=1))


def test_a_run_page_holds_figures_scores_and_provenance(page_path):
    folder, page = page_path.parent, Page(page_path.read_text())
    assert page_path.name == "report.html"
    assert page.open == []
    assert page.tags.count("svg") == 5
    for words in ("val/top1", "803200ab", "2 cores of a test machine", "torch 2.11.0", "812 MiB", "2 min 10 s", "1297"):
        assert words in page.text
    assert (folder / "figures" / "norms.png").exists()


def test_a_page_asks_the_network_for_nothing(page_path):
    page = Page(page_path.read_text())
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("#", "figures/", "data:")) for link in page.links)


def test_ids_of_a_page_are_unique_and_text_takes_the_page_colour(page_path):
    text = page_path.read_text()
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert ids and len(ids) == len(set(ids))
    assert "currentColor" in text and "#1c2024;" not in text.split("</style>", 1)[1]


@pytest.mark.usefixtures("plain_figures")
def test_hostile_texts_are_shown_not_obeyed(tmp_path, write_run):
    evil = "<script>alert(1)</script>{{ 7 * 7 }}\"'><img src=x onerror=y>"
    change = {
        "name": evil, "status": evil, "error": evil, "command": evil, "scale": evil, "notices": {evil: 1},
        "data": {"name": evil}, "git": {"commit": evil}, "config": {evil: evil}, "versions": {evil: evil},
        "hardware": {"machine": evil}, "scores": {f"val/{evil}": 1.0},
    }  # fmt: skip
    folder = write_run(tmp_path, evil, folder="a b#c?d%", change=change)
    pages = [
        reports.write_run_report(folder),
        reports.write_experiment_report(tmp_path, "imagenet-resnet18", tmp_path / "o"),
    ]
    for path, own_scripts in zip(pages, (0, 5), strict=True):
        page = Page(path.read_text())
        assert page.tags.count("script") == own_scripts and "img" not in page.tags
        assert "alert(1)" in page.text and "{{ 7 * 7 }}" in page.text
        assert page.open == []


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("status", ["failed", "running", "interrupted"])
def test_runs_that_did_not_finish_are_listed_as_such(tmp_path, write_run, status):
    write_run(tmp_path, seed=0)
    folder = write_run(
        tmp_path, seed=1, change={"status": status, "error": "loss is nan", "scores": None, "ended": None}
    )
    with (folder / ".lock").open("w") as lock:
        if status == "running":
            fcntl.flock(lock, fcntl.LOCK_EX)  # as its process does; without it the run has been killed
        page = Page(reports.write_experiment_report(tmp_path, "imagenet-resnet18", tmp_path / "o").read_text())
    assert f"1 {status}" in page.text and "1 of 2" in page.text
    assert status in Page(reports.write_run_report(folder).read_text()).text


@pytest.mark.usefixtures("plain_figures")
def test_a_run_with_no_metrics_and_nearly_no_record_still_has_a_page(tmp_path):
    folder = tmp_path / "imagenet-resnet18" / "new"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert "No metrics have been logged yet" in Page(reports.write_run_report(folder).read_text()).text
    assert (
        "1 unknown"
        in Page(reports.write_experiment_report(tmp_path, "imagenet-resnet18", tmp_path / "o").read_text()).text
    )


@pytest.mark.usefixtures("plain_figures")
def test_unreadable_runs_are_named_on_the_page(tmp_path, write_run):
    write_run(tmp_path, seed=0)
    (write_run(tmp_path, seed=1, folder="half") / "run.json").write_text("{")
    page = Page(reports.write_experiment_report(tmp_path, "imagenet-resnet18", tmp_path / "o").read_text())
    assert "half: run.json is broken" in page.text


def test_data_sets_and_scales_have_figures_of_their_own(tmp_path, write_run):
    write_run(tmp_path, epochs=1, layers=(), folder="a")
    write_run(tmp_path, epochs=1, layers=(), folder="b", data="Image Net", scale="full")
    path = reports.write_experiment_report(tmp_path, "imagenet-resnet18", tmp_path / "o")
    stems = {found.stem for found in (path.parent / "figures").glob("*norms.svg")}
    assert stems == {"digits-mini-1-norms", "image-net-full-0-norms"}


def test_pictures_are_drawn_when_asked_for_and_stay_on_the_page(tmp_path, write_run):
    write_run(tmp_path / "runs", epochs=1, layers=())
    words = [f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'o'}"]
    assert report.main([*words, "--pictures"]) == 0
    path = tmp_path / "o" / "imagenet-resnet18" / "index.html"
    count = Page(path.read_text()).tags.count("svg")
    assert count == 4
    assert report.main(words) == 0  # without drawing again
    assert Page(path.read_text()).tags.count("svg") == count


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(runs.ReadError, match=r"holds no readable run\.json"):
        reports.write_run_report(tmp_path)


@pytest.mark.slow
def test_the_command_works_as_a_script_and_fails_in_one_line(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.report", f"runs={tmp_path}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: no runs found in {tmp_path}; make one with: make imagenet-resnet18\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), ("x", "–"), (48.26, "48.3 s"), (130.4, "2 min 10 s"), (12000, "3 h 20 min")]
)
def test_durations_are_readable(seconds, text):
    assert views.duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "–"), ([70.0], "70.00"), ([70.0, 71.0], "70.50 ± 0.71"), ([1e-4, 2e-4], "1.50e-04 ± 7.07e-05")],
)
def test_spreads_have_a_deviation_from_two_values_on(values, text):
    assert views.mean_cell(values) == text


def test_the_page_shows_the_resolved_configuration(tmp_path, write_run, plain_figures):
    folder = write_run(tmp_path)
    page = Page(reports.write_run_report(folder).read_text())
    config = json.loads((folder / "run.json").read_text())["config"]
    assert json.dumps(config["opt"], indent=2).splitlines()[1].strip() in page.text
