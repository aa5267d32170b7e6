"""Every closed-form claim holds, every wrong version of it is found out; and the check itself can say no."""

import math

import pytest

from scripts.theory import CLAIMS
from tasks.toy.claims import Claim, Control, check


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_the_claim_holds_and_its_controls_fail(claim):
    verdict = check(claim)
    assert verdict.deviation <= claim.tolerance
    wrong = [c.words for c, caught in zip(claim.controls, verdict.caught, strict=True) if not caught]
    assert not wrong, "these must fail and do not"
    assert verdict.holds


def test_claims_have_names_of_their_own_and_at_least_one_control():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS) == 31
    assert all(claim.controls for claim in CLAIMS)
    assert {claim.paper for claim in CLAIMS} == {"AdamP", "AWS", "AdaRem"}


def claim(deviation, *controls):
    return Claim(
        "key", "paper", "name", "x = y", "relative", 0.1, lambda: deviation,
        tuple(Control("wrong", lambda value=value: value) for value in controls),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("deviation", "controls", "holds"),
    [
        (0.05, (0.5,), True),
        (0.1, (math.inf, math.nan), True),
        (0.2, (0.5,), False),
        (math.nan, (0.5,), False),
        (0.05, (0.05,), False),
        (0.05, (0.5, 0.1), False),
        (0.05, (), False),
    ],
)
def test_a_claim_holds_only_if_it_fits_and_all_controls_are_off(deviation, controls, holds):
    assert check(claim(deviation, *controls)).holds is holds
