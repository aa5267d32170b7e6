"""Overrides of parameter groups by a property of the parameters, not by their names: the option `marks`.

AdaRem-S must know which weights are scale-invariant, AWS which are normalised. Both are found in the networks, which
saves a regular expression over names for each network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from adamp import layers
from adamp.marks import Mark
from tasks.base import InputError
from tasks.engine.optim import Rule, check_rules

Names = Mapping[str, Sequence[str]]  # network role -> names of some of its parameters
Marks = Mapping[str, Mapping[str, Mark]]  # network role -> name -> slices of a scale-invariant parameter
Overrides = Mapping[str, Mapping[str, Any]]  # property -> group entries for the parameters that have it

NORMALISED = (layers.WNConv2d, layers.WSConv2d, layers.WNLinear, layers.WSLinear)
MISSING = {
    "scale_invariant": "no parameter of this task's networks is known to be scale-invariant",
    "filter_invariant": "no parameter of this task's networks is known to be scale-invariant filter by filter",
    "normalised": "no layer of this task's networks normalises its weight; normalise=ws (or wn) makes some",
}


def convert_networks(networks: Mapping[str, nn.Module], kind: str | None, *, eps: float = 1e-5) -> None:
    """Weight-normalise ("wn") or -standardise ("ws") the convolutions without bias of all networks, in place.

    A network that has normalised layers of its own stays as it is.

    Raises:
        InputError: The kind is not known, there is no such convolution, or one has filters of a single entry.
    """
    if kind is None:
        return
    if kind not in ("wn", "ws"):
        raise InputError(f"normalise is {kind!r}; choose wn, ws or null")
    convertible = [
        net
        for net in networks.values()
        if any(type(m) is nn.Conv2d and m.bias is None and m is not net for m in net.modules())
    ]
    if not convertible and not any(names for names in normalised_parameters(networks).values()):
        raise InputError(f"normalise is {kind}, but this task's networks have no convolution without bias to convert")
    for net in convertible:
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


def override_by_marks(
    rules: Sequence[Rule],
    overrides_by_property: Overrides,
    *,
    networks: Mapping[str, nn.Module],
    scale_invariant: Names,
    marks: Marks,
) -> list[Rule]:
    """Return `expand_overrides` for the scale-invariant parameters and their marks, and the normalised ones."""
    params_by_property = {
        "scale_invariant": scale_invariant,
        "filter_invariant": {
            role: sorted(name for name, mark in marks_of_role.items() if mark == "rows")
            for role, marks_of_role in marks.items()
        },
        "normalised": normalised_parameters(networks),
    }
    return expand_overrides(
        rules, overrides_by_property, networks=networks, params_by_property=params_by_property, marks=marks
    )


def expand_overrides(
    rules: Sequence[Rule],
    overrides_by_property: Overrides,
    *,
    networks: Mapping[str, nn.Module],
    params_by_property: Mapping[str, Names],
    marks: Marks | None = None,
) -> list[Rule]:
    """Return rules for the parameters with a property, followed by the given rules.

    Such a parameter keeps the entries of the rule that it matches; they win over an override of the same entry. The
    entry `scale_invariant: true` becomes the parameter's own mark, since only rows may be projected as rows.

    Args:
        rules: Parameter rules, see `tasks.engine.optim.parameter_groups`.
        overrides_by_property: Property -> entries, e.g. `{"normalised": {"shrink": True}}`.
        networks: The networks, by role.
        params_by_property: Property -> the parameters that have it; a property that is left out has none.
        marks: Marks of the scale-invariant parameters; rows where there is none.

    Raises:
        InputError: A property is not known or no parameter has it, its entries are no mapping, or a rule is broken.
    """
    check_rules(networks, rules)
    # Entries of each parameter "network.parameter", over all its properties
    entries: dict[str, dict[str, Any]] = {}
    for kind, overrides in overrides_by_property.items():
        if kind not in MISSING:
            raise InputError(f"marks: {kind!r} is no property; choose among {', '.join(MISSING)}")
        if not isinstance(overrides, Mapping) or not overrides:
            raise InputError(f"marks.{kind} is {overrides!r}; it must hold entries, e.g. {{scale_invariant: true}}")
        params = params_by_property.get(kind, {})
        names = [f"{role}.{name}" for role, role_names in params.items() for name in role_names]
        if not names:
            raise InputError(f"marks.{kind}: {MISSING[kind]}")
        for name in names:
            entries.setdefault(name, {}).update(overrides)
    for role, marks_of_role in (marks or {}).items():
        for name, mark in marks_of_role.items():
            overrides_of_name = entries.get(f"{role}.{name}", {})
            if overrides_of_name.get("scale_invariant") is True and mark != "rows":
                overrides_of_name["scale_invariant"] = mark
    # One group per combination of rule and entries
    groups: dict[tuple[int, str], tuple[Rule, list[str]]] = {}
    for name, overrides in entries.items():
        hits = (i for i, rule in enumerate(rules) if re.search(rule["match"], name))
        index = next(hits, len(rules))
        rule = rules[index] if index < len(rules) else {}
        groups.setdefault((index, repr(overrides)), ({**overrides, **rule}, []))[1].append(name)
    exact = [{**rule, "match": f"^({'|'.join(map(re.escape, names))})$"} for rule, names in groups.values()]
    return [*exact, *rules]
