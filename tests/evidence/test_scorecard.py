"""Scorecards from JSON alone: the schema, verdicts in words, the profile, and the league."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evidence.runs.run import ReadError
from evidence.scorecard.battery import Battery, read_battery
from evidence.scorecard.card import TUNED, UNDECAYED, Card, read_card
from evidence.scorecard.league import league
from evidence.scorecard.page import text, write_page
from evidence.scorecard.profile import TAUS, profiles, steps_to_target, target
from evidence.scorecard.verdicts import AHEAD, BEHIND, FAILS, MISSING, SAME, UNCLEAR, compare
from tests.commands import ROOT

BATTERY = read_battery(ROOT / "configs" / "scorecard.yaml")
SEEDS = BATTERY.data["seeds"]


def card(
    name: str, shift: float = 0.0, *, noise: float = 0.001, reach: int = 400, seed: int = 0, **changes: Any
) -> Card:
    """Return a card whose final losses are 0.4 and `shift`, and which halves its distance to them at step `reach`."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(0, 0.005, len(SEEDS))  # what seeds share, whatever the optimizer
    space = {"lr": (1e-3, 0.1), "weight_decay": (1e-3, 1.0)}
    trials = [
        {
            "lr": p.lr,
            "weight_decay": p.weight_decay,
            "place": list(p.place),
            "score": 0.4 + p.place[0],
            "status": "finished",
        }
        for p in BATTERY.points(name, space)
    ]
    workloads = {}
    for key in BATTERY.workloads:
        finals = 0.4 + shift + common + rng.normal(0, noise, len(SEEDS))
        runs = {
            str(s): {
                "status": "finished", "score": float(v), "also": 85.0, "mechanism": {},
                "curve": [[k, float(v) if k >= reach else 1.0] for k in range(100, 900, 100)],
            }
            for s, v in zip(SEEDS, finals, strict=True)
        }  # fmt: skip
        workloads[key] = {
            "protocol": BATTERY.protocol_of(key), "trials": trials, "chosen": {TUNED: 0, UNDECAYED: 0},
            "scored": {"0": runs},
        }  # fmt: skip
    data = {
        "schema": "scorecard/1", "name": name, "protocol": BATTERY.protocol, "workloads": workloads, "cost": {},
        "optimizer": {"spec": name, "class": name, "package": "x 1", "options": {}, "family": "Adam", "space": space},
        "provenance": {
            "command": "c", "commit": "0" * 40, "machine": "m", "versions": {"torch": "2"}, "cpu_seconds": 1.0
        },
    }  # fmt: skip
    return Card({**data, **changes})


def changed(base: Card, path: str, value: Any) -> Card:
    """Return a card with one entry changed; a last part that is missing is added."""
    data = copy.deepcopy(dict(base.data))
    *parts, last = path.split("/")
    node: Any = data
    for part in parts:
        node = node[part]
    node[last] = value
    return Card(data)


@pytest.mark.parametrize(
    ("shift", "noise", "word"),
    [(-0.02, 0.001, AHEAD), (0.02, 0.001, BEHIND), (0.0, 0.0005, SAME), (-0.003, 0.02, UNCLEAR)],
)
def test_verdicts_in_words(shift: float, noise: float, word: str) -> None:
    verdicts = compare(card("new", shift, noise=noise, seed=6), [card("adamw", noise=noise)], BATTERY, TUNED)
    assert {verdict.word for verdict in verdicts} == {word}


def test_the_correction_counts_every_comparison_of_the_table() -> None:
    ours, baselines = card("new", -0.002, seed=1), [card("adamw"), card("sgd", seed=2)]
    alone = compare(ours, baselines[:1], BATTERY, TUNED)[0]
    among = next(v for v in compare(ours, baselines, BATTERY, TUNED) if v.baseline == "adamw")
    assert alone.p is not None
    assert among.p is not None
    assert among.p > alone.p
    assert f"{12} of them" in text(ours, baselines, BATTERY)


def test_one_seed_that_diverged_fails_the_workload_and_is_shown() -> None:
    run = {"status": "diverged", "score": None, "also": None, "curve": [], "mechanism": {}}
    ours = changed(card("new", -0.02), f"workloads/mlp/scored/0/{SEEDS[0]}", run)
    verdict = compare(ours, [card("adamw")], BATTERY, TUNED)[0]
    assert (verdict.workload, verdict.word) == ("mlp", FAILS)
    assert "1 of 8 seeds diverged" in text(ours, [card("adamw")], BATTERY)


def test_what_has_not_run_or_cannot_says_so() -> None:
    refused = changed(card("new"), "workloads/conv", {"protocol": BATTERY.protocol_of("conv"), "refused": "no filters"})
    runs = dict(list(card("new").workload("toy")["scored"]["0"].items())[:3])
    ours = changed(refused, "workloads/toy/scored/0", runs)
    words = {v.workload: (v.word, v.reason) for v in compare(ours, [card("adamw")], BATTERY, TUNED)}
    assert words["conv"] == (MISSING, "new cannot run: no filters")
    assert words["toy"] == (MISSING, "not all seeds have run")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("protocol/budget", 24, "its budget is 24, here it is 12"),
        ("protocol/seeds", [1], "unequal budgets or rules"),
        ("workloads/mlp/protocol/words", ["experiment=ws-mlp"], "the workload mlp"),
        ("workloads/mlp/trials", card("x").workload("mlp")["trials"][:5], "mlp has 5 trials, the budget is 12"),
    ],
)
def test_unequal_budgets_and_rules_are_not_compared(path: str, value: Any, reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        compare(changed(card("new"), path, value), [card("adamw")], BATTERY, TUNED)
    with pytest.raises(ReadError, match=reason):
        compare(card("new"), [changed(card("adamw"), path, value)], BATTERY, TUNED)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("schema", "scorecard/9", "reads scorecard/1"),
        ("protocol", 3, "protocol is int"),
        ("provenance/cpu_seconds", "1", "cpu_seconds is '1'"),
        ("workloads/mlp/trials/0/score", "0.4", "trials.0.score"),
        ("workloads/mlp/scored/0/999", card("x").runs("mlp", TUNED)[SEEDS[0]], "the seed 999 is none"),
    ],
)
def test_a_card_of_another_shape_is_refused(path: str, value: Any, reason: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(card("new").data))
    *parts, last = path.split("/")
    node: Any = data
    for part in parts:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    (tmp_path / "new.json").write_text(json.dumps(data))
    with pytest.raises(ReadError, match=reason):
        read_card(tmp_path / "new.json")


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = card("new")
    made.write(tmp_path / "new.json")
    assert read_card(tmp_path / "new.json").data == json.loads(json.dumps(made.data))


def test_the_profile_is_the_share_of_workloads_within_a_ratio_of_the_fastest() -> None:
    fast, slow, never = card("fast", reach=200), card("slow", reach=400), card("never", 0.3)
    goal = target([slow], BATTERY, "mlp")
    assert goal == pytest.approx(0.4 * 1.03, rel=0.02)
    assert set(steps_to_target(fast, "mlp", goal).values()) == {200}
    found = profiles([fast, slow, never], [slow], BATTERY)
    assert set(found["fast"].shares) == {1.0}
    assert {share for tau, share in zip(TAUS, found["slow"].shares, strict=True) if tau < 1.99} == {0.0}
    assert found["slow"].shares[-1] == 1
    assert set(found["never"].shares) == {0.0}
    assert all(
        low <= share <= high for p in found.values() for low, share, high in zip(p.low, p.shares, p.high, strict=True)
    )


def test_points_are_the_same_for_all_and_a_third_is_without_decay() -> None:
    wide = Battery({**BATTERY.data, "budget": 60}, BATTERY.workloads)
    one = wide.points("a", {"lr": (1e-3, 1e-1), "weight_decay": (1e-3, 1.0)})
    other = wide.points("b", {"lr": (0.1, 10.0), "weight_decay": (1e-6, 1e-2)})
    assert [p.place for p in one] == [p.place for p in other]
    assert [p.weight_decay == 0 for p in one] == [p.weight_decay == 0 for p in other]
    assert sum(p.weight_decay == 0 for p in one) == 20
    assert all(p.weight_decay == 0 or 1e-3 <= p.weight_decay <= 1 for p in one)


@pytest.mark.parametrize(
    ("target_name", "spec", "family"),
    [
        ("torch.optim.SGD", "sgd", "SGD"),
        ("adamp.SGDP", "sgdp", "SGD"),
        ("torch.optim.AdamW", "adamw", "Adam"),
        ("torch.optim.Adam", "adam", "Adam with coupled decay"),
        ("adamp.projected.with_projection", "lionp", "sign"),
        ("adamp.shrinking.sgd_with_shrink", "sgd_aws", "SGD"),
        ("schedulefree.AdamWScheduleFree", "schedulefree:AdamWScheduleFree", "Adam"),
        ("schedulefree.SGDScheduleFree", "schedulefree:SGDScheduleFree", "schedule-free SGD"),
        ("prodigyopt.Prodigy", "prodigyopt:Prodigy", "learning-rate-free"),
        ("somebody.Unknown", "m:Unknown", "Adam"),
    ],
)
def test_the_search_space_follows_from_the_family(target_name: str, spec: str, family: str) -> None:
    assert BATTERY.family(target_name, spec)[0] == family


def test_the_page_and_the_league_are_made_of_cards_alone(tmp_path: Path) -> None:
    ours, baselines = card("new", -0.02, reach=200), [card("adamw", seed=5), card("sgd", 0.01, seed=3)]
    page = write_page(ours, baselines, BATTERY, tmp_path).read_text()
    assert "ahead of adamw" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "new" / "new-profile.png").stat().st_size > 1000
    rows = [line for line in league([ours, *baselines], baselines, BATTERY).splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| new", "| adamw", "| sgd"]
    assert "6 ahead" in rows[2]
