"""Committed results are made again from the records, and what differs is named."""

import json
from pathlib import Path

import pytest

from evidence.csv_files import read_csv
from evidence.runs.run import ReadError
from scripts import claims, tables, verify_results


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_run):
    """A folder of results with runs, records, a table, a ledger and a page."""
    root = tmp_path_factory.mktemp("results")
    for opt in ("sgd", "sgdp"):
        for seed in (0, 1, 2):
            make_run(root / "runs", opt, seed=seed, epochs=20, layers=())
    (root / "results.md").write_text(
        "<!-- table:imagenet-resnet18 begin -->\n<!-- table:imagenet-resnet18 end -->\n", encoding="utf-8"
    )
    words = [f"runs={root}/runs", f"records={root}/records.csv", f"out={root}/tables", f"page={root}/results.md"]
    assert tables.main([*words, "--page"]) == 0
    assert claims.main([f"records={root}/records.csv", f"out={root}/tables"]) == 0
    return root


@pytest.fixture
def drawings(monkeypatch):
    monkeypatch.setattr(tables, "draw_figures", lambda *args, **kwargs: [])


def verify(root: Path, capsys) -> tuple[int, str]:
    code = verify_results.main([f"results={root}", f"page={root}/results.md"])
    return code, capsys.readouterr().out


def altered(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return lambda: path.write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("drawings")
def test_results_that_come_from_their_records_pass(whole, capsys):
    code, said = verify(whole, capsys)
    assert code == 0, said
    assert "PASS; 14 files and runs" in said  # 3 records, 3 tables, 2 of the ledger, 6 runs


@pytest.mark.usefixtures("drawings")
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tables/imagenet-resnet18.md", "94.20", "95.20"),
        ("tables/imagenet-resnet18.csv", "94.2", "95.2"),
        ("tables/claims.csv", "not run", "reproduced"),
        ("results.md", "94.20", "95.20"),
    ],
)
def test_a_number_that_somebody_typed_is_named(whole, capsys, name, old, new):
    back = altered(whole / name, old, new)
    code, said = verify(whole, capsys)
    back()
    assert code == 1 and name.rpartition("/")[2] in said and "FAIL: 1 differ" in said


@pytest.mark.usefixtures("drawings")
def test_a_record_that_is_not_what_its_run_says_is_named(whole, capsys):
    row = read_csv(whole / "records.csv")[0]
    back = altered(whole / "records.csv", row["norm_last"], "99.9")
    code, said = verify(whole, capsys)
    back()
    assert code == 1 and f"{row['name']}: norm_last: 99.9 there" in said


@pytest.mark.usefixtures("drawings")
def test_a_run_made_again_at_another_commit_is_named_and_fails_nothing(whole, capsys):
    path = next(iter(sorted((whole / "runs").glob("*/*/run.json"))))
    run = json.loads(path.read_text())
    text = path.read_text()
    path.write_text(json.dumps({**run, "git": {"commit": "f" * 40, "dirty": False}, "steps": 7}))
    forged, _ = verify(whole, capsys)  # another commit for the same run
    path.write_text(json.dumps({**json.loads(path.read_text()), "wall_time_s": 12345.6}))
    code, said = verify(whole, capsys)
    path.write_text(text)
    assert (forged, code) == (1, 0), said
    assert "1 runs were made again at another commit" in said and path.parent.name in said


@pytest.mark.usefixtures("drawings")
def test_a_table_that_no_command_makes_and_a_picture_without_numbers_are_named(whole, capsys):
    extra, picture = whole / "tables" / "by-hand.md", whole / "figures" / "by-hand.png"
    picture.parent.mkdir(exist_ok=True)
    extra.write_text("x")
    picture.write_bytes(b"")
    code, said = verify(whole, capsys)
    extra.unlink(), picture.unlink()
    assert code == 1 and "no command makes it" in said and "by-hand.png: the numbers" in said


def test_without_records_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(ReadError, match="make tables writes it"):
        verify_results.main([f"results={tmp_path}"])


@pytest.mark.slow
def test_the_committed_results_are_what_their_records_say(capsys):
    assert verify_results.main([]) == 0, capsys.readouterr().out
