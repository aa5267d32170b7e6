import math

import pytest

from evidence.csv_files import read_csv
from evidence.runs.run import ReadError
from scripts import theory
from tasks.toy.claims import Claim, Control


def claim(key, deviation, *controls):
    return Claim(
        key, "AWS", "eq. 1", "a | b", "relative", 1e-3, lambda: deviation,
        tuple(Control(f"wrong {value}", lambda value=value: value) for value in controls),
    )  # fmt: skip


@pytest.fixture
def claims(monkeypatch):
    def replace(*found):
        monkeypatch.setattr(theory, "CLAIMS", found)

    return replace


def test_all_claims_that_hold_give_exit_code_0_and_are_written(claims, tmp_path, capsys):
    claims(claim("one", 1e-9, 0.5, math.nan), claim("two", 0.0, 1.0))
    assert theory.main([f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 claims hold; 3 of 3 controls fail, as they must" in printed
    assert printed.rstrip().endswith("PASS") and "1.00e-09" in printed and "1e-03" in printed
    rows = read_csv(tmp_path / "theory-claims.csv")
    assert [(row["name"], row["claim"], row["verdict"]) for row in rows] == [
        ("one", "eq. 1", "PASS"), ("one", "control", "PASS"), ("one", "control", "PASS"),
        ("two", "eq. 1", "PASS"), ("two", "control", "PASS"),
    ]  # fmt: skip
    text = (tmp_path / "theory.md").read_text()
    assert "a \\| b" in text and "command: `make theory" in text


def test_a_claim_that_does_not_hold_gives_exit_code_1(claims, tmp_path, capsys):
    claims(claim("one", 1e-9, 0.5), claim("two", 0.1, 0.5))
    assert theory.main([f"out={tmp_path}"]) == 1
    assert "FAIL" in (tmp_path / "theory.md").read_text()
    assert capsys.readouterr().out.rstrip().endswith("FAIL")


def test_a_control_that_does_not_fail_gives_exit_code_1(claims, tmp_path, capsys):
    claims(claim("one", 1e-9, 1e-9))
    assert theory.main([f"out={tmp_path}"]) == 1
    assert "DOES NOT FAIL" in capsys.readouterr().out
    assert read_csv(tmp_path / "theory-claims.csv")[1]["verdict"] == "FAIL"


def test_a_choice_of_claims_writes_nothing(claims, tmp_path, capsys):
    claims(claim("lemma-1", 0.0, 0.5), claim("other", 0.1, 0.5))
    assert theory.main(["claim=lemma", f"out={tmp_path}"]) == 0
    assert "1 of 1 claims" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_an_unknown_claim_is_refused_with_the_known_ones(claims):
    claims(claim("lemma-1", 0.0, 0.5))
    with pytest.raises(ReadError, match=r"claim=corollary fits none of: lemma-1"):
        theory.main(["claim=corollary"])
