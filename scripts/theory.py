"""Check every closed-form claim of the three papers, and that wrong versions of it fail.

Exit code: 0 if every claim holds and every control fails, 1 if not, 2 for wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from evidence.csv_files import write_csv
from evidence.runs.run import ReadError
from evidence.tables.render import markdown, provenance
from scripts.options import command, parse, results
from tasks.toy import claims_adarem, claims_aws, claims_growth, claims_shrink
from tasks.toy.claims import Claim, Verdict, check

CLAIMS: tuple[Claim, ...] = (
    *claims_growth.CLAIMS, *claims_aws.CLAIMS, *claims_shrink.CLAIMS, *claims_adarem.CLAIMS,
)  # fmt: skip

USAGE = """
usage: python scripts/theory.py [claim=NAME] [out=FOLDER]

Measures how far the optimizers are from each formula of the AdamP, AWS and AdaRem papers, prints a line each with the
deviation, the tolerance and PASS or FAIL, and the same for its controls: wrong versions, each of which must fail.
Writes OUT/theory.md and theory-claims.csv.

  claim=NAME   only claims whose name holds this, e.g. lemma; nothing is written then
  out=FOLDER   default results/toy

claims: {claims}

example: python scripts/theory.py claim=lemma-2.2
"""

HEADS = ("name", "paper", "claim", "formula", "deviation", "is", "tolerance", "verdict")


def mark(*, passed: bool) -> str:
    """Return PASS or FAIL."""
    return "PASS" if passed else "FAIL"


def report(verdict: Verdict) -> str:
    """Return a claim's lines for the screen: the formula, then the deviation and those of the controls."""
    claim = verdict.claim
    fits = verdict.deviation <= claim.tolerance
    lines = [f"{claim.paper}, {claim.name}: {claim.formula}"]
    lines.append(f"  {mark(passed=fits)}  {verdict.deviation:9.2e}  at most {claim.tolerance:.0e}  {claim.unit}")
    for control, value, caught in zip(claim.controls, verdict.controls, verdict.caught, strict=True):
        words = "fails, as it must" if caught else "DOES NOT FAIL"
        lines.append(f"  {mark(passed=caught)}  {value:9.2e}  control {words}: {control.words}")
    return "\n".join(lines)


def rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return a row a claim and a row a control; a control's verdict is PASS if it fails as it must."""
    found: list[tuple[str, ...]] = []
    for verdict in verdicts:
        claim = verdict.claim
        fits = mark(passed=verdict.deviation <= claim.tolerance)
        deviation, tolerance = f"{verdict.deviation:.2e}", f"{claim.tolerance:.0e}"
        found.append((claim.key, claim.paper, claim.name, claim.formula, deviation, claim.unit, tolerance, fits))
        for control, value, caught in zip(claim.controls, verdict.controls, verdict.caught, strict=True):
            words = "" if caught else "does not fail"
            limit = f"above {claim.tolerance:.0e}"
            found.append((claim.key, "", "control", control.words, f"{value:.2e}", words, limit, mark(passed=caught)))
    return found


NOTES = """
A control is a wrong version of the claim measured in the same way: its PASS means that it fails. Deviations of one unit
in the last place differ between machines; verdicts do not. The derivations are in docs/theory.md.
"""


def write(verdicts: Sequence[Verdict], folder: Path, *, made: str) -> Path:
    """Write theory.md and theory-claims.csv and return the first."""
    found = rows(verdicts)
    write_csv(folder / "theory-claims.csv", HEADS, found)
    shown = [[cell.replace("|", "\\|") for cell in row[1:]] for row in found]
    path = folder / "theory.md"
    text = f"# Claims in closed form\n\n{markdown(HEADS[1:], shown)}\n\n{NOTES.strip()}\n\n{provenance(made)}\n"
    path.write_text(text, encoding="utf-8")
    return path


def main(words: Sequence[str]) -> int:
    """Check, print and write."""
    options = parse(words, options={"claim": "", "out": results("toy")})
    chosen = [claim for claim in CLAIMS if options["claim"] in claim.key]
    if not chosen:
        raise ReadError(f"claim={options['claim']} fits none of: {', '.join(claim.key for claim in CLAIMS)}")
    torch.set_num_threads(1)  # one order of summation, so the same digits everywhere
    verdicts = []
    for claim in chosen:
        verdicts.append(check(claim))
        print(report(verdicts[-1]), flush=True)
    holding, controls = sum(v.holds for v in verdicts), [caught for v in verdicts for caught in v.caught]
    print(f"\n{holding} of {len(verdicts)} claims hold; {sum(controls)} of {len(controls)} controls fail, as they must")
    if not options["claim"]:
        print(f"written to {write(verdicts, Path(options['out']), made=' '.join(['make theory', *words]))}")
    print(mark(passed=holding == len(verdicts)))
    return 0 if holding == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(command(main, USAGE.format(claims=", ".join(claim.key for claim in CLAIMS))))
