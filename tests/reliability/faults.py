"""Faults from outside, injected on purpose: each must be survived, with a line or two and nothing lost.

usage: python tests/reliability/faults.py [kinds=WORD,WORD] [out=results/faults.json] [page=docs/reliability.md]

Options: kinds=WORD,... takes the kinds whose names hold one of the words; out= and page= say where the figures go, the
page between its two marks. With kinds= nothing is written unless out= or page= is given, and the file keeps its figures
of other kinds, each with the commit and the machine that it was made on. Exit code 1 if a fault is not survived. Needs
no root and no network; what a machine cannot make is skipped with a reason.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checkout import ROOT
from scripts import options

MOST_SECONDS = 1200  # of one fault, on a busy machine; then the command ends


@dataclass
class Outcome:
    """What came of one fault; `trouble` is empty where it was survived, `skipped` says why it was not injected."""

    kind: str
    name: str
    trouble: str = ""
    skipped: str = ""


def inject(case: Any) -> Outcome:
    """Inject one fault into a folder of its own, and put back what it may have left in this process."""
    from tests.engine import toys
    from tests.reliability.fault_cases import SkippedError

    outcome = Outcome(case.kind, case.name)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
        try:
            case.inject(Path(folder))
        except SkippedError as reason:
            outcome.skipped = str(reason)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome.trouble = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:300]
        finally:
            for record in toys.OPEN:
                record.close()
            toys.OPEN.clear()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return outcome


def counts(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Return kind -> how many faults were injected, and how many of them survived."""
    injected, survived = Counter[str](), Counter[str]()
    for outcome in outcomes:
        if not outcome.skipped:
            injected[outcome.kind] += 1
            survived[outcome.kind] += not outcome.trouble
    return {kind: {"injected": injected[kind], "survived": survived[kind]} for kind in injected}


def table(kinds: dict[str, dict[str, int]]) -> str:
    """Return the page's table."""
    total = {key: sum(row[key] for row in kinds.values()) for key in ("injected", "survived")}
    rows = [("Kind", "injected", "survived"), ("---", "---", "---")]
    rows += [(kind, str(row["injected"]), str(row["survived"])) for kind, row in kinds.items()]
    rows += [(f"**{len(kinds)} kinds**", f"**{total['injected']}**", f"**{total['survived']}**")]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_page(page: Path, text: str, *, command: str) -> None:
    """Put a table between the marks of the command that makes it."""
    begin, end = f"<!-- {command}: written by make {command} -->", f"<!-- end of {command} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise options.ReadError(f"page={page} has no lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def all_cases() -> Sequence[Any]:
    """Return every case; loads torch."""
    from tests.reliability.fault_machines import CASES  # those of fault_cases too

    return CASES


def main(argv: Sequence[str]) -> int:
    """Inject the faults, print a line a kind, write the figures and return the exit code."""
    values = options.parse(argv, options={"kinds": "", "out": "", "page": ""})
    cases = all_cases()

    wanted = [word for word in values["kinds"].split(",") if word]
    chosen = [case for case in cases if not wanted or any(word in case.kind for word in wanted)]
    if not chosen:
        raise options.ReadError(
            f"kinds={values['kinds']} is in none of: {', '.join(dict.fromkeys(c.kind for c in cases))}"
        )
    begun, outcomes = time.monotonic(), []
    for case in chosen:
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True, file=sys.__stderr__)
        with contextlib.redirect_stderr(sys.stdout):
            outcomes.append(outcome := inject(case))
        state = f"skipped: {outcome.skipped}" if outcome.skipped else outcome.trouble or "survived"
        print(f"{case.kind}, {case.name}: {state}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    kinds = counts(outcomes)
    total = sum(row["injected"] for row in kinds.values())
    lost = [outcome for outcome in outcomes if outcome.trouble]
    print(f"{total} faults of {len(kinds)} kinds, {total - len(lost)} survived, in {time.monotonic() - begun:.0f} s")
    if values["out"] or not wanted:
        from tasks.engine.provenance import provenance

        out = Path(values["out"] or options.results("faults.json"))
        out.parent.mkdir(parents=True, exist_ok=True)
        skipped = [[outcome.kind, outcome.name, outcome.skipped] for outcome in outcomes if outcome.skipped]
        faults = [[outcome.kind, outcome.name, outcome.trouble] for outcome in lost]
        where = provenance(ROOT)
        rows: dict[str, Any] = {kind: {**row, "where": where} for kind, row in kinds.items()}
        seconds = round(time.monotonic() - begun)
        if wanted and out.is_file():  # a part: the other kinds keep their figures, commit and machine
            before = json.loads(out.read_text(encoding="utf-8"))
            rows = {**before["kinds"], **rows}
            seconds += before["seconds"]
            faults = [*(each for each in before["not survived"] if each[0] not in counts(outcomes)), *faults]
            skipped = [*(each for each in before["skipped"] if each[0] not in counts(outcomes)), *skipped]
        kinds = rows
        injected, survived = (sum(row[key] for row in kinds.values()) for key in ("injected", "survived"))
        facts = {"seconds": seconds, "injected": injected, "survived": survived, "kinds": kinds,
                 "not survived": faults, "skipped": skipped}  # fmt: skip
        out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if values["page"] or not wanted:
        write_page(Path(values["page"] or ROOT / "docs" / "reliability.md"), table(kinds), command="faults")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
