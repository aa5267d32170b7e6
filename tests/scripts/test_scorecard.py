"""`make scorecard`: optimizers by spec, what is refused and why, the runs, and known answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evidence.runs.run import ReadError
from evidence.scorecard.card import TUNED, read_card
from evidence.scorecard.verdicts import BEHIND, SAME, compare
from launch.scorecard.candidate import check, in_child, resolve
from scripts import scorecard, scorecard_table
from tests.scorecards import optimizers_file, small_battery


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimizers_file(tmp_path_factory.mktemp("candidates"))


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("adamp", "adamp.AdamP"),
        ("timm:lion", "timm.optim.lion.Lion"),
        ("torch:adamax", "torch.optim.adamax.Adamax"),
        ("pytorch_optimizer:SOAP", "pytorch_optimizer.optimizer.soap.SOAP"),
    ],
)
def test_a_spec_names_a_configuration_or_a_class_of_a_package(spec: str, target: str) -> None:
    candidate = resolve(spec, {})
    assert (candidate.target, candidate.takes_decay) == (target, True)
    config = {"_target_": target, "_partial_": True, "lr": 0.0, "weight_decay": 0.0}
    check(candidate, candidate.configured(config, lr=1e-3, weight_decay=1e-2))


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        ("adampp", {}, r"did you mean adamp\?"),
        ("adam_sgd_paper", {}, "several phases"),
        ("adamp", {"deltaa": 1}, "deltaa"),
        ("schedulefree_x:AdamWScheduleFree", {}, "pip install schedulefree_x"),
        ("timm:lionn", {}, r"did you mean Lion\?"),
        ("torch:LBFGS", {}, "needs a closure"),
        ("pytorch_optimizer:SAM", {}, "needs the option base_optimizer"),
        ("FILE:SignSGD", {}, "needs the option floor: give opt.floor=VALUE"),
        ("FILE:SignSGD", {"florr": 1}, r"florr: SignSGD has no such option \(did you mean floor\?\)"),
        ("FILE:NeedsClosure", {}, "needs a closure"),
        ("FILE:NoRate", {}, "no option lr"),
        ("FILE:plain_function", {}, "no optimizer"),
        ("./nowhere.py:SGD", {}, "no file ./nowhere.py"),
    ],
)
def test_what_is_no_usable_class_is_refused_in_one_line(spec: str, options: dict, reason: str, file: Path) -> None:
    with pytest.raises(ReadError, match=reason) as refused:
        resolve(spec.replace("FILE", str(file)), options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("TwoCalls", "a step without a closure fails: RuntimeError: call first_step"),
        ("AtOnceNan", "not finite within 3 steps"),
        ("NewStorage", "identity of its parameters: their storage"),
        ("OtherParameters", "identity of its parameters: its groups"),
    ],
)
def test_what_cannot_be_trained_is_refused_after_its_first_steps(name: str, reason: str, file: Path) -> None:
    candidate = resolve(f"{file}:{name}", {})
    with pytest.raises(ReadError, match=reason) as refused:
        check(candidate, candidate.configured({}, lr=0.1, weight_decay=0.0))
    assert "\n" not in str(refused.value)


def test_options_are_typed_and_reach_the_constructor(file: Path) -> None:
    candidate = resolve(f"{file}:SignSGD", {"floor": 0.25})
    assert candidate.name.endswith("SignSGD-floor-0-25")
    opt = candidate.configured({}, lr=0.1, weight_decay=0.0)
    assert in_child(_floor, candidate, opt) == 0.25


def _floor(candidate, opt):  # type: ignore[no-untyped-def]
    import torch

    return candidate.made_by(opt)([torch.nn.Parameter(torch.ones(2))]).floor


def score(folder: Path, *words: str) -> int:
    battery, _ = small_battery(folder)
    places = [f"out={folder}/cards", f"runs={folder}/runs", f"battery={battery}", "jobs=1", "cost=false"]
    return scorecard.main([*words, *places])


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Path:
    """Return a folder with cards of AdamW, of AdamP without projection and of a wrong bias correction."""
    folder = tmp_path_factory.mktemp("scorecards")
    assert score(folder, "opt=adamp", "opt.delta=0", "name=unprojected", "baselines=rerun") == 0
    assert score(folder, f"opt={file}:WrongBias", "name=wrong") == 0
    return folder


def test_a_card_is_tuned_on_held_out_pictures_and_scored_with_fresh_seeds(cards: Path) -> None:
    card = read_card(cards / "cards" / "adamw.json")
    assert [point.weight_decay == 0 for point in card.points("toy")] == [p.place[1] < 1 / 3 for p in card.points("toy")]
    assert card.runs("toy", TUNED).keys() == {7, 8, 9}
    named = {
        json.loads(path.read_text())["data"]["name"]: path.parent.name.partition("seed=")[2]
        for path in (cards / "runs" / "adamw" / "toy").glob("*/run.json")
    }
    assert named["directions_held_out_0.2"] == "1"
    assert named["directions"] in ("7", "8", "9")
    pages = cards / "cards" / "pages"
    page = (pages / "wrong.html").read_text()
    assert "cannot tell" in page or "behind" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (pages / "wrong" / "wrong-profile.png").stat().st_size > 1000


def test_known_answers(cards: Path) -> None:
    _, battery = small_battery(cards)
    adamw, unprojected, wrong = (read_card(cards / "cards" / f"{n}.json") for n in ("adamw", "unprojected", "wrong"))
    (verdict,) = compare(unprojected, [adamw], battery, TUNED)
    assert verdict.word == SAME
    (verdict,) = compare(wrong, [adamw], battery, TUNED)
    assert verdict.word == BEHIND


def test_the_same_command_runs_nothing_again(cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (cards / "cards" / "adamw.json").read_text()
    assert score(cards, "opt=adamw") == 0
    assert "networks at once" not in capsys.readouterr().out
    assert json.loads(before)["workloads"] == json.loads((cards / "cards" / "adamw.json").read_text())["workloads"]


def test_weights_that_are_scored_and_not_trained(cards: Path, file: Path) -> None:
    assert score(cards, f"opt={file}:Averaging", "name=averaging") == 0
    card = read_card(cards / "cards" / "averaging.json")
    assert card.data["optimizer"]["schedule"] == "constant"
    assert all(point.weight_decay == 0 for point in card.points("toy"))
    assert all(run["status"] == "finished" for run in card.runs("toy", TUNED).values())


def test_the_league_is_made_of_the_cards_alone_and_of_equal_budgets(cards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    shutil.copytree(cards / "cards", folder, ignore=shutil.ignore_patterns("pages"))
    path, _ = small_battery(tmp_path)
    assert scorecard_table.main([f"cards={folder}", f"battery={path}"]) == 0
    table = (folder / "league.md").read_text().splitlines()
    rows = {line.split(" | ")[0][2:] for line in table if line.startswith("| ")}
    assert rows >= {"adamw", "averaging", "unprojected", "wrong"}
    assert "behind adamw" in (folder / "wrong.md").read_text()
    with pytest.raises(ReadError, match="has no card of lion"):
        scorecard_table.main([f"cards={folder}", f"battery={path}", "opts=lion"])
    path, _ = small_battery(tmp_path, budget=5)
    with pytest.raises(ReadError, match="unequal budgets"):
        scorecard_table.main([f"cards={folder}", f"battery={path}", "opts=wrong"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "opt= is missing"),
        (["opt=sgd", "delta=1"], "opt.delta"),
        (["opt=sgd", "only=mlp,mpl"], "only=mpl"),
        (["opt=sgd", "space.lr=1..0.1"], r"LOW\.\.HIGH"),
        (["opt=sgd", "baselines=again"], "choose among rerun"),
    ],
)
def test_wrong_words_are_refused(words: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=reason):
        scorecard.main([*words, f"out={tmp_path}"])
