"""The ledger of the papers' claims (results/claims.yaml): each a sentence, a command and a rule, never a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import yaml

from evidence.runs.run import ReadError

KEYS = ("id", "paper", "where", "claim", "command", "rule")


class Rule(TypedDict, total=False):
    """How a claim is judged: by `kind`, or by the file of results that `checks`, `numbers` or `overhead` names."""

    kind: str  # a name of `verdicts.BY_RUNS`
    score: str | list[str]  # of several, the first that a run has counts; of a curve its last value
    to_score: str  # the score of `to`, where it is another one (ratio)
    of: Any  # words of the command whose runs the claim is about; of `overhead` the name of an optimizer
    to: Any  # the same of the runs that they are compared with
    mini: dict[str, Any]  # further words at this scale; words under `of` and `to` are for that side alone
    full: dict[str, Any]
    scales: list[str]
    expect: str  # "higher", "lower" or "equal" (within `margin`)
    margin: float
    at_least: float  # bound of a ratio or a value; ours, as the margin is, since the papers print none
    at_most: float
    best_over: str  # the key over whose recorded values each side is searched
    holds: str  # "at any scale": a claim about a mechanism, which a small run tests as well as a large one
    published: dict[str, Any]  # values that name a row of results/paper.csv; under `of` and `to` those of a side
    printed: str  # the paper's words where results/paper.csv has no number
    checks: str
    numbers: str
    runs: str | list[str]
    quantity: str
    overhead: str


class Claim(TypedDict):
    """One claim of a paper."""

    id: str
    paper: str
    where: str
    claim: str
    command: str
    rule: Rule


def substitute(value: Any, words: Mapping[str, Any]) -> Any:
    """Return a value with `{word}` replaced in its texts; a text that is one word alone becomes that word's value."""
    if isinstance(value, str):
        if value.startswith("{") and value.endswith("}") and value[1:-1] in words:
            word = words[value[1:-1]]
            return substitute(word, words) if isinstance(word, str) and "{" in word else word
        try:
            return value.format_map(words) if "{" in value else value
        except (KeyError, ValueError, IndexError) as error:
            raise ReadError(f"{value!r} in claims.yaml needs a word that its `for` does not give: {error}") from None
    if isinstance(value, dict):
        return {key: substitute(entry, words) for key, entry in value.items()}
    return [substitute(entry, words) for entry in value] if isinstance(value, list) else value


def read_claims(path: Path) -> Iterator[Claim]:
    """Yield the claims of a file, one for each member of an entry's `for`.

    Raises:
        ReadError: The file cannot be read, or an entry lacks a key or shares its id.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ReadError(f"cannot read {path}: {error}") from None
    seen: set[str] = set()
    for entry in entries:
        for words in entry.get("for", [{}]):
            claim = {key: substitute(value, words) for key, value in entry.items() if key != "for"}
            if missing := [key for key in KEYS if key not in claim]:
                raise ReadError(f"{path}: claim {claim.get('id', '?')} has no {', '.join(missing)}")
            claim["id"] = str(claim["id"]).replace(" ", "-").replace(",", "").replace("+", "and")
            if claim["id"] in seen:
                raise ReadError(f"{path}: two claims have the id {claim['id']}")
            seen.add(claim["id"])
            yield cast(Claim, claim)
