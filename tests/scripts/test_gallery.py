import re
from html.parser import HTMLParser

import pytest

from evidence.csv_files import read_csv, write_csv
from evidence.runs.run import ReadError
from evidence.site import gallery as gallery_page
from launch.checkout import ROOT
from scripts import gallery

TOY = ROOT / "results" / "toy"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Outline(HTMLParser):
    """Collects ids and what is loaded, and checks that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.loaded.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("gallery")
    assert gallery.main([f"toy={TOY}", f"out={out}"]) == 0
    assert [path.name for path in out.iterdir()] == ["index.html"]
    return (out / "index.html").read_text()


def test_the_page_is_whole_and_loads_nothing(page):
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    assert len(outline.ids) == len(set(outline.ids)) > 100
    assert all(link.startswith(("#", "data:image/")) for link in outline.loaded)


def test_numbers_stand_beside_the_published_ones(page):
    assert re.search(r'27\.87</td><td class="number">27\.8715</td>', page)
    assert "2.527 at 43" in page and "Lemma 2.2" in page and "Theorem 1" in page
    assert "22 of 22" in page and page.count("data:image/gif;base64,") == 1
    assert ">FAIL<" not in page and "DOES NOT" not in page


def test_missing_results_are_named_with_their_commands(tmp_path):
    with pytest.raises(ReadError, match="make rosenbrock3d, make theory, make toy2d"):
        gallery.main([f"toy={tmp_path}", f"out={tmp_path / 'out'}"])


def test_a_failure_shows(tmp_path):
    heads = ("run", "quantity", "published", "obtained", "agrees_when", "verdict")
    rows = [("gd", "norm at the end", "1.02", "1.03", "", "FAIL"), ("gd", "loss at the end", "1", "1", "", "PASS")]
    write_csv(tmp_path / "rows.csv", heads, rows)
    (line,) = gallery_page.lines_2d(read_csv(tmp_path / "rows.csv"))
    assert (line.verdict, line.norm, line.loss) == ("FAIL", ("1.02", "1.03"), ("1", "1"))


def test_controls_belong_to_the_claim_before_them():
    rows = [{"paper": "AWS", "claim": "a"}, {"paper": "", "claim": "control"}, {"paper": "AWS", "claim": "b"}]
    (found,) = gallery_page.claims_by_paper(rows).values()
    assert [(entry.claim["claim"], len(entry.controls)) for entry in found] == [("a", 1), ("b", 0)]
