"""Entries of parameter groups that follow from what a parameter is, not from its name.

AdaRem-S must be told which weights are scale-invariant, AWS which are normalised. Regular expressions over names could
say so for each network by hand; here the networks themselves are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from adamp import layers
from tasks.base import InputError
from tasks.engine.optim import Rule, check_rules

Names = Mapping[str, Sequence[str]]  # network role -> names of some of its parameters
Marks = Mapping[str, Mapping[str, Any]]  # property -> entries for the groups of the parameters that have it

NORMALISED = (layers.WNConv2d, layers.WSConv2d, layers.WNLinear, layers.WSLinear)
MISSING = {
    "scale_invariant": "no parameter of this task's networks is known to be scale-invariant",
    "filter_invariant": "no parameter of this task's networks is known to be scale-invariant filter by filter",
    "normalised": "no layer of this task's networks normalises its weight; normalise=ws (or wn) makes some",
}


def convert_networks(networks: Mapping[str, nn.Module], kind: str | None, *, eps: float = 1e-5) -> None:
    """Weight-normalise ("wn") or -standardise ("ws") the convolutions without bias of all networks, in place.

    Raises:
        InputError: The kind is not known, there is no such convolution, or one has filters of a single entry.
    """
    if kind is None:
        return
    if kind not in ("wn", "ws"):
        raise InputError(f"normalise is {kind!r}; choose wn, ws or null")
    chosen = [
        net
        for net in networks.values()
        if any(type(m) is nn.Conv2d and m.bias is None and m is not net for m in net.modules())
    ]
    if not chosen:
        raise InputError(f"normalise is {kind}, but this task's networks have no convolution without bias to convert")
    for net in chosen:
        try:
            layers.convert(net, "wn" if kind == "wn" else "ws", eps=eps)
        except ValueError as error:
            raise InputError(f"normalise is {kind}: {error}") from None


def normalised_parameters(networks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return network role -> names of the weights that a layer of `adamp.layers` normalises."""
    return {
        role: [f"{path}.weight" if path else "weight" for path, m in net.named_modules() if isinstance(m, NORMALISED)]
        for role, net in networks.items()
    }


def marked_rules(
    rules: Sequence[Rule], marks: Marks, *, networks: Mapping[str, nn.Module], having: Mapping[str, Names]
) -> list[Rule]:
    """Return the parameter rules with the marks worked in: rules for the marked parameters, then the given ones.

    A marked parameter keeps the entries of the rule that it matches; these win over a mark's where both say something.

    Args:
        rules: Parameter rules, see `tasks.engine.optim.parameter_groups`.
        marks: Property -> entries, e.g. `{"normalised": {"shrink": True}}`.
        networks: The networks, by role.
        having: Property -> the parameters that have it; a property that is left out has none.

    Raises:
        InputError: A property is not known or no parameter has it, its entries are no mapping, or a rule is broken.
    """
    check_rules(networks, rules)
    entries: dict[str, dict[str, Any]] = {}  # "network.parameter" -> what it is marked with
    for kind, given in marks.items():
        if kind not in MISSING:
            raise InputError(f"marks: {kind!r} is no property; choose among {', '.join(MISSING)}")
        if not isinstance(given, Mapping) or not given:
            raise InputError(f"marks.{kind} is {given!r}; it must hold entries, e.g. {{scale_invariant: true}}")
        names = [f"{role}.{name}" for role, found in having.get(kind, {}).items() for name in found]
        if not names:
            raise InputError(f"marks.{kind}: {MISSING[kind]}")
        for name in names:
            entries.setdefault(name, {}).update(given)
    together: dict[tuple[int, str], tuple[Rule, list[str]]] = {}  # one group a rule and mark
    for name, mark in entries.items():
        hits = (i for i, rule in enumerate(rules) if re.search(rule["match"], name))
        index = next(hits, len(rules))
        own = rules[index] if index < len(rules) else {}
        together.setdefault((index, repr(mark)), ({**mark, **own}, []))[1].append(name)
    exact = [{**rule, "match": f"^({'|'.join(map(re.escape, names))})$"} for rule, names in together.values()]
    return [*exact, *rules]
